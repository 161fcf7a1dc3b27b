"""The state machine, too simple to be wrong: a full copy of the map for every revision."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from struct import unpack
from typing import Any, NamedTuple

from nebuladb.errors import Reason
from nebuladb.kv.answer import (
    Answer,
    DeleteResult,
    KeyValue,
    LeaseResult,
    PutResult,
    RangeResult,
    Result,
    SessionResult,
    TxnResult,
)
from nebuladb.kv.command import Command, Kind, Work
from nebuladb.pb.nebula.v1 import kv_pb2, lease_pb2, session_pb2

Map = dict[bytes, KeyValue]
MAX_SESSIONS, SESSION_WINDOW, MAX_LEASES = 3, 4, 3
"""The bounds that the tests set."""

RESULTS: list[Callable[[Any, Any], bool]] = [operator.eq, operator.gt, operator.lt, operator.ne]
OUTSIDE_SESSIONS = (
    Kind.CLOCK,
    Kind.HASH,
    Kind.SESSION_OPEN,
    Kind.SESSION_CLOSE,
    Kind.LEASE_EXPIRE,
)


class Refused(Exception):
    def __init__(self, reason: Reason, detail: int = 0) -> None:
        self.reason = reason
        self.detail = detail


class ModelLease(NamedTuple):
    ttl: int
    expires: int
    renewal: int


class ModelSession:
    def __init__(self, used: int) -> None:
        self.used = used
        self.lowest = 1
        self.answers: dict[int, Answer] = {}


class ModelEvent(NamedTuple):
    revision: int
    key: bytes
    kv: KeyValue | None
    previous: KeyValue | None


def inside(key: bytes, start: bytes, end: bytes) -> bool:
    if end == b"":
        return key == start
    return start <= key and (end == b"\0" or key < end)


class Model:
    def __init__(self) -> None:
        self.maps: list[Map] = [{}, {}]
        self.floor = 0
        self.clock = 0
        self.leases: dict[int, ModelLease] = {}
        self.sessions: dict[int, ModelSession] = {}
        self.events: list[ModelEvent] = []
        self.index = 0
        self.stamp = 0

    @property
    def revision(self) -> int:
        return len(self.maps) - 1

    @property
    def now(self) -> Map:
        return self.maps[-1]

    def apply(self, work: Work) -> list[tuple[int, Answer]]:
        self.index = work.index
        self.clock = max(self.clock, work.clock)
        answers = []
        for place, command in enumerate(work.commands):
            self.stamp = work.index * 65536 + place
            answers.append((command.request, self.command(command)))
        return answers

    def command(self, command: Command) -> Answer:
        session = None
        if command.epoch not in (0, 1):
            return Answer(self.revision, None, Reason.WRONG_EPOCH, 1)
        if command.session and command.kind not in OUTSIDE_SESSIONS:
            session = self.sessions.get(command.session)
            if session is None:
                return Answer(self.revision, None, Reason.SESSION_EXPIRED)
            lowest = max(session.lowest, command.lowest)
            if not lowest <= command.sequence < lowest + SESSION_WINDOW:
                return Answer(self.revision, None, Reason.SESSION_WINDOW)
            session.lowest = lowest
            session.used = self.stamp
            session.answers = {s: a for s, a in session.answers.items() if s >= lowest}
            if command.sequence in session.answers:
                return session.answers[command.sequence]
        try:
            result = self.run(command)
            answer = Answer(self.revision, result)
        except Refused as refused:
            answer = Answer(self.revision, None, refused.reason, refused.detail)
        if session is not None:
            session.answers[command.sequence] = answer
        return answer

    def run(self, command: Command) -> Result:  # noqa: C901
        body = command.body
        match command.kind:
            case Kind.PUT:
                put = kv_pb2.PutRequest.FromString(body)
                return self.only(("put", put))
            case Kind.DELETE:
                delete = kv_pb2.DeleteRequest.FromString(body)
                return self.only(("delete", delete))
            case Kind.TXN:
                request = kv_pb2.TxnRequest.FromString(body)
                branches = [
                    [(o.WhichOneof("operation"), getattr(o, o.WhichOneof("operation") or "")) for o in branch]
                    for branch in (request.success, request.failure)
                ]
                for branch in branches:
                    self.check_duplicates(branch)
                return TxnResult(*self.txn(request.compare, *branches))
            case Kind.COMPACT:
                revision = kv_pb2.CompactRequest.FromString(body).revision
                if revision <= self.floor:
                    raise Refused(Reason.COMPACTED, self.floor)
                if revision > self.revision:
                    raise Refused(Reason.FUTURE_REVISION)
                self.floor = revision
            case Kind.LEASE_GRANT:
                grant = lease_pb2.LeaseGrantRequest.FromString(body)
                lease, ttl = grant.id or command.chosen, max(grant.ttl, 2)
                if lease <= 0:
                    raise Refused(Reason.INVALID_ARGUMENT)
                if ttl > 9_000_000_000:
                    raise Refused(Reason.LEASE_TTL_TOO_LARGE)
                if lease in self.leases:
                    raise Refused(Reason.LEASE_EXISTS)
                if len(self.leases) >= MAX_LEASES:
                    raise Refused(Reason.TOO_MANY_LEASES)
                self.leases[lease] = ModelLease(ttl * 1000, self.clock + ttl * 1000, self.index)
                return LeaseResult(lease, ttl)
            case Kind.LEASE_KEEP_ALIVE:
                lease = lease_pb2.LeaseKeepAliveRequest.FromString(body).id
                if lease not in self.leases:
                    return LeaseResult(lease, 0)
                ttl = self.leases[lease].ttl
                self.leases[lease] = ModelLease(ttl, self.clock + ttl, self.index)
                return LeaseResult(lease, ttl // 1000)
            case Kind.LEASE_REVOKE:
                lease = lease_pb2.LeaseRevokeRequest.FromString(body).id
                if lease not in self.leases:
                    raise Refused(Reason.LEASE_NOT_FOUND)
                return self.revoke(lease)
            case Kind.LEASE_EXPIRE:
                lease, renewal = unpack(">QQ", body)
                row = self.leases.get(lease)
                if row is None or row.renewal != renewal or row.expires > self.clock:
                    return None
                return self.revoke(lease)
            case Kind.SESSION_OPEN:
                if len(self.sessions) == MAX_SESSIONS:
                    del self.sessions[min(self.sessions, key=lambda name: self.sessions[name].used)]
                self.sessions[self.stamp] = ModelSession(self.stamp)
                return SessionResult(self.stamp)
            case Kind.SESSION_CLOSE:
                name = session_pb2.SessionCloseRequest.FromString(body).id
                if name not in self.sessions:
                    raise Refused(Reason.SESSION_EXPIRED)
                del self.sessions[name]
        return None

    def only(self, operation: tuple[Any, Any]) -> Result:
        result: Result = self.txn([], [operation], [])[1][0]
        return result

    def revoke(self, lease: int) -> LeaseResult:
        keys = sorted(key for key, kv in self.now.items() if kv.lease == lease)
        self.txn([], [("delete", kv_pb2.TxnDelete(key=key)) for key in keys], [])
        del self.leases[lease]
        return LeaseResult(lease, 0)

    def check_duplicates(self, operations: list[tuple[Any, Any]]) -> None:
        puts = [o.key for kind, o in operations if kind == "put"]
        deletes = [(o.key, o.range_end) for kind, o in operations if kind == "delete"]
        if len(set(puts)) < len(puts) or any(inside(key, *span) for key in puts for span in deletes):
            raise Refused(Reason.DUPLICATE_KEY)

    def txn(
        self, compares: Iterable[kv_pb2.Compare], success: list[tuple[Any, Any]], failure: list[tuple[Any, Any]]
    ) -> tuple[bool, tuple[Any, ...]]:
        succeeded = all(self.holds(compare) for compare in compares)
        main = self.revision + 1
        after = dict(self.now)
        events: list[ModelEvent] = []
        results: list[PutResult | DeleteResult | RangeResult] = []
        for kind, o in success if succeeded else failure:
            if kind == "range":
                if o.revision > self.revision:
                    raise Refused(Reason.FUTURE_REVISION)
                if 0 < o.revision < self.floor:
                    raise Refused(Reason.COMPACTED, self.floor)
                source = self.maps[o.revision] if o.revision > 0 else after
                kvs = [source[key] for key in sorted(source) if inside(key, o.key, o.range_end)]
                shown = [] if o.count_only else kvs[: o.limit] if o.limit > 0 else kvs
                if o.keys_only:
                    shown = [kv._replace(value=b"") for kv in shown]
                more = bool(kvs) if o.count_only else len(shown) < len(kvs)
                results.append(RangeResult(tuple(shown), len(kvs), more))
            elif kind == "put":
                if o.lease and o.lease not in self.leases:
                    raise Refused(Reason.LEASE_NOT_FOUND)
                old = after.get(o.key)
                create, version = (main, 1) if old is None else (old.create_revision, old.version + 1)
                after[o.key] = KeyValue(o.key, create, main, version, o.lease, o.value)
                events.append(ModelEvent(main, o.key, after[o.key], old))
                results.append(PutResult(old if o.prev_kv else None))
            else:
                gone = [after.pop(key) for key in sorted(after) if inside(key, o.key, o.range_end)]
                events += [ModelEvent(main, kv.key, None, kv) for kv in gone]
                results.append(DeleteResult(len(gone), tuple(gone) if o.prev_kv else ()))
        if events:
            self.maps.append(after)
            self.events += events
        return succeeded, tuple(results)

    def holds(self, compare: kv_pb2.Compare) -> bool:
        found: list[KeyValue | None] = []
        found += [kv for key, kv in self.now.items() if inside(key, compare.key, compare.range_end)]
        return all(self.satisfies(compare, kv) for kv in found or [None])

    def satisfies(self, compare: kv_pb2.Compare, kv: KeyValue | None) -> bool:
        holds = RESULTS[compare.result]
        if compare.target == kv_pb2.Compare.VALUE:
            return kv is not None and holds(kv.value, compare.value)
        kv = KeyValue(b"", 0, 0, 0, 0, b"") if kv is None else kv
        number = [kv.version, kv.create_revision, kv.mod_revision, 0, kv.lease][compare.target]
        return holds(number, compare.number)

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
    OperationResult,
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


Step = tuple[str, Any]
"""An operation by kind; a nested transaction as a `Decided`."""


class Decided(NamedTuple):
    """A transaction whose compares are done."""

    succeeded: bool
    steps: list[Step]

    def flat(self) -> list[Step]:
        """Its operations with those of nested ones, in order."""
        return [one for kind, o in self.steps for one in (o.flat() if kind == "txn" else [(kind, o)])]


def covered(key: bytes, start: bytes, end: bytes) -> bool:
    """Whether etcd's check of overlaps sees `key` in a deletion: it takes an end of one zero byte for a key."""
    return key == start if end == b"" else start <= key < end


def written(operations: Iterable[kv_pb2.Operation]) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """What a branch puts and deletes. Raises `Refused`."""
    puts: list[bytes] = []
    deletes = [(o.delete.key, o.delete.range_end) for o in operations if o.WhichOneof("operation") == "delete"]
    for o in operations:
        if o.WhichOneof("operation") == "txn":
            (then, gone), (other, gone_too) = written(o.txn.success), written(o.txn.failure)
            both = sorted({*then, *other})
            if any(key in puts or any(covered(key, *span) for span in deletes) for key in both):
                raise Refused(Reason.DUPLICATE_KEY)
            puts += both
            deletes += gone + gone_too
    for key in [o.put.key for o in operations if o.WhichOneof("operation") == "put"]:
        if key in puts or any(covered(key, *span) for span in deletes):
            raise Refused(Reason.DUPLICATE_KEY)
        puts.append(key)
    return puts, deletes


def select(source: Map, o: kv_pb2.RangeRequest) -> RangeResult:
    """A range of one map, as etcd answers it."""
    everything = [source[key] for key in sorted(source) if inside(key, o.key, o.range_end)]
    kvs = everything
    natural = o.order == o.NONE or (o.order == o.ASCEND and o.target == o.KEY)
    bounds = [
        (o.min_mod_revision, o.max_mod_revision, "mod_revision"),
        (o.min_create_revision, o.max_create_revision, "create_revision"),
    ]
    if natural and o.limit > 0 and not any(low or high for low, high, _ in bounds):
        kvs = kvs[: o.limit + 1]
    for low, high, name in bounds:
        kvs = [kv for kv in kvs if (not low or getattr(kv, name) >= low) and (not high or getattr(kv, name) <= high)]
    name = ["key", "version", "create_revision", "mod_revision", "value"][o.target]
    kvs = sorted(kvs, key=lambda kv: getattr(kv, name), reverse=o.order == o.DESCEND)
    shown = kvs[: o.limit] if o.limit > 0 else kvs
    if o.keys_only:
        shown = [kv._replace(value=b"") for kv in shown]
    if o.count_only:
        return RangeResult((), len(everything), more=False)
    return RangeResult(tuple(shown), len(everything), len(shown) < len(kvs))


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
                if put.lease:
                    self.require(put.lease)
                return self.only(("put", put))
            case Kind.DELETE:
                delete = kv_pb2.DeleteRequest.FromString(body)
                return self.only(("delete", delete))
            case Kind.TXN:
                request = kv_pb2.TxnRequest.FromString(body)
                for branch in (request.success, request.failure):
                    written(branch)
                return self.txn(self.decide(request))
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
                if not lease:
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
                lease, renewal = unpack(">qQ", body)
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

    def only(self, operation: Step) -> Result:
        return self.txn(Decided(succeeded=True, steps=[operation])).results[0]

    def require(self, lease: int) -> None:
        if lease not in self.leases:
            raise Refused(Reason.LEASE_NOT_FOUND)

    def revoke(self, lease: int) -> LeaseResult:
        keys = sorted(key for key, kv in self.now.items() if kv.lease == lease)
        self.txn(Decided(succeeded=True, steps=[("delete", kv_pb2.TxnDelete(key=key)) for key in keys]))
        del self.leases[lease]
        return LeaseResult(lease, 0)

    def decide(self, request: Any) -> Decided:
        """Which branches run: of all transactions, before any of them has done anything."""
        succeeded = all(self.holds(compare) for compare in request.compare)
        steps: list[Step] = []
        for operation in request.success if succeeded else request.failure:
            kind = operation.WhichOneof("operation")
            steps.append((kind, self.decide(operation.txn) if kind == "txn" else getattr(operation, kind)))
        return Decided(succeeded, steps)

    def txn(self, decided: Decided) -> TxnResult:
        for kind, o in decided.flat():
            if kind == "put":
                if (o.ignore_value or o.ignore_lease) and o.key not in self.now:
                    raise Refused(Reason.KEY_NOT_FOUND)
                if o.lease:
                    self.require(o.lease)
        for kind, o in decided.flat():
            if kind == "range":
                if o.revision > self.revision:
                    raise Refused(Reason.FUTURE_REVISION)
                if o.revision < (self.floor or -1) and o.revision != 0:
                    raise Refused(Reason.COMPACTED, self.floor or 1)
        after = dict(self.now)
        events: list[ModelEvent] = []
        result = self.act(decided, after, events)
        if events:
            self.maps.append(after)
            self.events += events
        return result

    def act(self, decided: Decided, after: Map, events: list[ModelEvent]) -> TxnResult:
        main = self.revision + 1
        results: list[OperationResult] = []
        for kind, o in decided.steps:
            if kind == "txn":
                results.append(self.act(o, after, events))
            elif kind == "range":
                results.append(select(self.maps[o.revision] if o.revision > 0 else after, o))
            elif kind == "put":
                old = after.get(o.key)
                if (o.ignore_value or o.ignore_lease) and old is None:
                    raise Refused(Reason.KEY_NOT_FOUND)
                value = old.value if old is not None and o.ignore_value else o.value
                lease = old.lease if old is not None and o.ignore_lease else o.lease
                create, version = (main, 1) if old is None else (old.create_revision, old.version + 1)
                after[o.key] = KeyValue(o.key, create, main, version, lease, value)
                events.append(ModelEvent(main, o.key, after[o.key], old))
                results.append(PutResult(old if o.prev_kv else None))
            else:
                gone = [after.pop(key) for key in sorted(after) if inside(key, o.key, o.range_end)]
                events += [ModelEvent(main, kv.key, None, kv) for kv in gone]
                results.append(DeleteResult(len(gone), tuple(gone) if o.prev_kv else ()))
        return TxnResult(decided.succeeded, tuple(results))

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

"""A shard that is too simple to be wrong: a dictionary of histories under one lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from nebuladb import errors
from nebuladb.pb.nebula.v1 import common_pb2, keyspace_pb2, kv_pb2

GROUP = 2
WINDOW = 64
T = TypeVar("T")


class Row(NamedTuple):
    revision: int
    kv: common_pb2.KeyValue | None  # None: deleted


class Store:
    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.revision = 1
        self.floor = 0
        self.history: dict[bytes, list[Row]] = {}
        self.events: list[tuple[int, kv_pb2.Event]] = []
        self.sessions: dict[int, dict[int, object]] = {}
        self.lowest: dict[int, int] = {}
        self.answers_kept = WINDOW
        """Of a session; one that has so many is full."""
        self.leases: dict[int, int] = {}
        self.granted = 0
        self.epoch = 1
        self.keyspaces: dict[str, keyspace_pb2.KeyspaceCreateRequest] = {}
        self.executed: list[str] = []
        self.index = 10

    def header(self) -> common_pb2.Header:
        return common_pb2.Header(cluster_id=7, node_id=1, group=GROUP, revision=self.revision, raft_term=3)

    # Reads

    def read(self, key: bytes, revision: int = 0) -> common_pb2.KeyValue | None:
        revision = revision or self.revision
        if revision < self.floor:
            raise errors.Compacted("compacted", self.floor)
        if revision > self.revision:
            raise errors.FutureRevision
        found = None
        for row in self.history.get(key, ()):
            if row.revision <= revision:
                found = row.kv
        return found

    def keys(self, start: bytes, end: bytes) -> list[bytes]:
        if not end:
            return [start]
        return sorted(k for k in self.history if k >= start and (end == b"\0" or k < end))

    def range(self, request: kv_pb2.RangeRequest) -> kv_pb2.RangeResponse:
        found = [kv for k in self.keys(request.key, request.range_end) if (kv := self.read(k, request.revision))]
        shown = found[: request.limit] if request.limit else found
        return kv_pb2.RangeResponse(kvs=shown, count=len(found), more=len(shown) < len(found))

    def scan(self, request: kv_pb2.ScanRequest) -> Iterator[kv_pb2.ScanResponse]:
        with self.lock:
            pinned = {pair.group: pair.revision for pair in request.revisions}
            revision = pinned.get(GROUP) or request.revision or self.revision
            rows = [kv for k in self.keys(request.key, request.range_end or b"\0") if (kv := self.read(k, revision))]
        more = bool(request.limit) and len(rows) > request.limit
        rows = rows[: request.limit] if request.limit else rows
        if request.keys_only:
            rows = [common_pb2.KeyValue(key=kv.key, mod_revision=kv.mod_revision) for kv in rows]
        size = request.page_size or 3
        pages = [rows[i : i + size] for i in range(0, len(rows), size)] or [[]]
        for number, page in enumerate(pages):
            response = kv_pb2.ScanResponse(header=self.header(), kvs=page)
            if number == 0:
                response.revisions.add(group=GROUP, revision=revision)
            response.more = more and number == len(pages) - 1
            yield response

    # Writes

    def once(self, session: common_pb2.SessionRef, run: Callable[[], T]) -> T:
        """S20: the first answer, refusals included."""
        with self.lock:
            if not session.id:
                return run()
            answers = self.sessions.get(session.id)
            if answers is None:
                raise errors.SessionExpired
            lowest = self.lowest[session.id] = max(self.lowest[session.id], session.lowest_unanswered)
            if not lowest <= session.sequence < lowest + WINDOW:
                raise errors.SessionWindow
            for old in [s for s in answers if s < lowest]:
                del answers[old]
            if session.sequence not in answers:
                if len(answers) >= self.answers_kept:
                    raise errors.SessionWindow
                try:
                    answers[session.sequence] = run()
                except errors.NebulaError as refusal:
                    answers[session.sequence] = refusal
            answer = answers[session.sequence]
            if isinstance(answer, errors.NebulaError):
                raise answer
            return answer  # type: ignore[return-value]

    def put(self, key: bytes, value: bytes, lease: int) -> common_pb2.KeyValue | None:
        """Within a transaction's revision: the caller has stepped it."""
        if not key:
            raise errors.InvalidArgument("a key has at least one byte")
        if lease and lease not in self.leases:
            raise errors.LeaseNotFound
        old = self.read(key)
        kv = common_pb2.KeyValue(
            key=key,
            value=value,
            create_revision=old.create_revision if old else self.revision,
            mod_revision=self.revision,
            version=old.version + 1 if old else 1,
            lease=lease,
        )
        self.history.setdefault(key, []).append(Row(self.revision, kv))
        self._happened(kv_pb2.Event(type=kv_pb2.Event.PUT, kv=kv, prev_kv=old))
        return old

    def delete(self, key: bytes, end: bytes) -> list[common_pb2.KeyValue]:
        gone = [kv for k in self.keys(key, end) if (kv := self.read(k))]
        for kv in gone:
            self.history[kv.key].append(Row(self.revision, None))
            tombstone = common_pb2.KeyValue(key=kv.key, mod_revision=self.revision)
            self._happened(kv_pb2.Event(type=kv_pb2.Event.DELETE, kv=tombstone, prev_kv=kv))
        return gone

    def end_lease(self, lease: int) -> None:
        del self.leases[lease]
        held = [key for key in self.history if (kv := self.read(key)) and kv.lease == lease]
        self.step(lambda: [self.delete(key, b"") for key in held])

    def step(self, run: Callable[[], T]) -> T:
        """One write transaction: a revision if it changed anything."""
        with self.lock:
            self.revision += 1
            before = len(self.events)
            try:
                return run()
            finally:
                if len(self.events) == before:
                    self.revision -= 1
                self.index += 1
                self.changed.notify_all()

    def txn(self, request: kv_pb2.TxnRequest) -> kv_pb2.TxnResponse:
        holds = all(self._holds(c) for c in request.compare)

        def run() -> kv_pb2.TxnResponse:
            response = kv_pb2.TxnResponse(succeeded=holds)
            for operation in request.success if holds else request.failure:
                result = response.results.add()
                which = operation.WhichOneof("operation")
                if which == "put":
                    o = operation.put
                    old = self.put(o.key, o.value, o.lease)
                    result.put.SetInParent()
                    if o.prev_kv and old:
                        result.put.prev_kv.CopyFrom(old)
                elif which == "delete":
                    gone = self.delete(operation.delete.key, operation.delete.range_end)
                    result.delete.deleted = len(gone)
                else:
                    result.range.CopyFrom(self.range(operation.range))
            return response

        response = self.step(run)
        response.header.CopyFrom(self.header())
        return response

    def _holds(self, c: kv_pb2.Compare) -> bool:
        for key in self.keys(c.key, c.range_end):
            kv = self.read(key)
            have: int | bytes
            want: int | bytes = c.number
            if c.target == kv_pb2.Compare.VALUE:
                if kv is None:
                    return False
                have, want = kv.value, c.value
            else:
                name = {0: "version", 1: "create_revision", 2: "mod_revision", 4: "lease"}[c.target]
                have = getattr(kv, name) if kv else 0
            order = (have > want) - (have < want)  # type: ignore[operator]
            if not {0: order == 0, 1: order > 0, 2: order < 0, 3: order != 0}[c.result]:
                return False
        return True

    def _happened(self, event: kv_pb2.Event) -> None:
        self.events.append((self.revision, event))

"""A store on a memory engine, and commands in few words."""

from __future__ import annotations

from collections.abc import Sequence
from struct import pack

from google.protobuf.message import Message

from nebuladb.ids import Generation, GroupId, NodeId
from nebuladb.kv.answer import Answer
from nebuladb.kv.change import Applied
from nebuladb.kv.command import Command, Kind, Work
from nebuladb.kv.limits import DEFAULT_LIMITS, Limits
from nebuladb.kv.store import Store
from nebuladb.kv.watch import WatchHub
from nebuladb.kv.watcher import EventBatch, Watcher
from nebuladb.pb.nebula.v1 import kv_pb2, lease_pb2, session_pb2
from nebuladb.storage.engine import Engine
from nebuladb.storage.memory import MemoryEngine

GROUP, GENERATION, NODE = GroupId(7), Generation(1), NodeId(1)
SMALL = Limits(slice_rows=4, slice_bytes=1 << 20, cache_bytes=4096)


def fresh(limits: Limits = DEFAULT_LIMITS, engine: Engine | None = None) -> tuple[Store, Engine]:
    """An empty shard."""
    engine = MemoryEngine(wal=False) if engine is None else engine
    Store.initialise(engine, GROUP, GENERATION, index=0, term=0, configuration=b"c")
    return Store(engine, GROUP, GENERATION, NODE, limits), engine


def reopen(engine: Engine, limits: Limits = DEFAULT_LIMITS) -> Store:
    return Store(engine, GROUP, GENERATION, NODE, limits)


def drain(store: Store, works: Sequence[Work]) -> list[Applied]:
    """Apply all of `works`, in as many calls as it takes."""
    calls = []
    while works and store.index < works[-1].index:
        calls.append(store.apply(works))
    return calls


class Log:
    """Builds entries; each command's request number is its place among all commands."""

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self.request = 0

    def work(self, *commands: Command, clock: int = 0, configuration: bytes = b"") -> Work:
        numbered = []
        for command in commands:
            self.request += 1
            numbered.append(command._replace(origin=NODE, request=self.request))
        self.index += 1
        return Work(self.index, 1, clock, numbered, configuration)


def run(store: Store, log: Log, *commands: Command, clock: int = 0) -> list[Answer]:
    """Apply one entry; its answers."""
    calls = drain(store, [log.work(*commands, clock=clock)])
    return [answer for call in calls for _, answer in call.answers]


def finish(store: Store) -> None:
    """All background work."""
    while store.background(3):
        pass


def _command(kind: Kind, message: Message, **header: int) -> Command:
    return Command(kind, message.SerializeToString(), **header)


def put(key: bytes, value: bytes = b"", lease: int = 0, *, prev_kv: bool = False, **header: int) -> Command:
    return _command(Kind.PUT, kv_pb2.PutRequest(key=key, value=value, lease=lease, prev_kv=prev_kv), **header)


def delete(key: bytes, end: bytes = b"", *, prev_kv: bool = False, **header: int) -> Command:
    return _command(Kind.DELETE, kv_pb2.DeleteRequest(key=key, range_end=end, prev_kv=prev_kv), **header)


def txn(request: kv_pb2.TxnRequest, **header: int) -> Command:
    return _command(Kind.TXN, request, **header)


def compact(revision: int, **header: int) -> Command:
    return _command(Kind.COMPACT, kv_pb2.CompactRequest(revision=revision), **header)


def grant(lease: int, ttl: int = 10, *, chosen: int = 0, **header: int) -> Command:
    return _command(Kind.LEASE_GRANT, lease_pb2.LeaseGrantRequest(id=lease, ttl=ttl), chosen=chosen, **header)


def revoke(lease: int, **header: int) -> Command:
    return _command(Kind.LEASE_REVOKE, lease_pb2.LeaseRevokeRequest(id=lease), **header)


def keep_alive(lease: int, **header: int) -> Command:
    return _command(Kind.LEASE_KEEP_ALIVE, lease_pb2.LeaseKeepAliveRequest(id=lease), **header)


def expire(lease: int, renewal: int) -> Command:
    return Command(Kind.LEASE_EXPIRE, pack(">qQ", lease, renewal))


def open_session(**header: int) -> Command:
    return _command(Kind.SESSION_OPEN, session_pb2.SessionOpenRequest(), **header)


def close_session(session: int) -> Command:
    return _command(Kind.SESSION_CLOSE, session_pb2.SessionCloseRequest(id=session))


class Told:
    """What a watcher was told, parts put together; a revision that isn't whole yet is left out."""

    def __init__(self) -> None:
        self.batches: list[EventBatch] = []
        self.parts: list[EventBatch] = []

    def add(self, batches: Sequence[EventBatch]) -> None:
        for batch in batches:
            assert all(part.revision == batch.revision for part in self.parts), "the end of a revision was told"
            assert batch.events or self.parts, "a part has events, and so has what is whole"
            self.parts.append(batch)
            if not batch.more:
                self.batches.append(
                    EventBatch(batch.revision, tuple(event for part in self.parts for event in part.events))
                )
                self.parts = []


def taken(hub: WatchHub, *watchers: Watcher) -> list[list[EventBatch]]:
    """What each is told until nobody lags, parts put together."""
    told = [Told() for _ in watchers]
    on = True
    while on:
        on = hub.catch_up(256)
        for watcher, its in zip(watchers, told, strict=True):
            its.add(watcher.take())
        on = on or any(watcher.lagging and not watcher.canceled for watcher in watchers)
    return [its.batches for its in told]


HASH = Command(Kind.HASH, b"")
CLOCK = Command(Kind.CLOCK, b"")


def attached(store: Store, lease: int) -> tuple[bytes, ...]:
    """The keys of a lease."""
    view = store.attached(lease)
    try:
        return tuple(view.read())
    finally:
        view.close()


def state_hash(store: Store, log: Log) -> bytes:
    """The hash as of a new entry."""
    drain(store, [log.work(HASH)])
    while store.hash_at(log.index) is None:
        assert store.background(5) or store.hash_at(log.index) is not None
    digest = store.hash_at(log.index)
    assert digest is not None
    return digest

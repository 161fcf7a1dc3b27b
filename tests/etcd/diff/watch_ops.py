"""Watch streams and what a client may say on them."""

from __future__ import annotations

from random import Random
from typing import Final

from nebuladb.pb.etcd import kv_pb2 as kv
from nebuladb.pb.etcd import watch_pb2 as pb
from tests.etcd.diff import values
from tests.etcd.diff.calls import Call, CloseWatch, OpenWatch, Operation, Settle, WatchStep
from tests.etcd.diff.values import World, chance

MAX_STREAMS: Final = 3
WITNESS: Final = 1 << 40
"""The id of each stream's first watcher."""
IDS: Final = (0, 0, 0, 0, 1, 2, 3, -1, -7, WITNESS, 12345)


def create_request(rng: Random, world: World) -> pb.WatchCreateRequest:
    """Every option."""
    key, end = values.span(rng, 6)
    request = pb.WatchCreateRequest(key=key, range_end=end, watch_id=rng.choice(IDS))
    if chance(rng, 50):
        # Not negative: etcd 3.5.16 keeps such a watcher, silent, until something is compacted (etcd 34).
        # Not a compact revision: of a key that it changed twice etcd has the last only, once it has compacted.
        start = max(0, values.edge(rng, world))
        request.start_revision = start + (start in world.floors)
    for name in ("prev_kv", "fragment", "progress_notify"):
        setattr(request, name, chance(rng, 40))
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        request.filters.append(rng.choice((0, 1, 1, 9)))  # type: ignore[arg-type]  # 9 doesn't exist
    return request


def do_watch(rng: Random, world: World) -> Operation:
    """A creation, on a new stream or an old one."""
    if len(world.streams) < MAX_STREAMS and (not world.streams or chance(rng, 15)):
        stream = world.next_stream
        world.next_stream += 1
        world.streams.append(stream)
        yield OpenWatch(stream)
    request = create_request(rng, world)
    late = 0 != request.start_revision <= world.revision
    stream = rng.choice(world.streams)
    if request.start_revision > world.revision or (late and request.start_revision < world.floor):
        world.waiting.add(stream)
    yield WatchStep(stream, pb.WatchRequest(create_request=request), answered=True, late=late)


def do_cancel(rng: Random, world: World) -> Operation:
    """A cancellation, also of nobody. What is due before it must have come: it may overtake events."""
    if not world.streams:
        return
    watcher = rng.choice((0, 0, 1, 1, 2, 3, 4, -1, -7, 999, 12345))
    yield Settle()
    yield WatchStep(rng.choice(world.streams), pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=watcher)))
    yield Settle()


def do_progress(rng: Random, world: World) -> Operation:
    """A request for progress, or an empty message."""
    # etcd 3.5.16 answers while a watcher waits for a revision to come, which 3.6 doesn't; and never again on a stream
    # once a watcher's start was compacted (etcd 35, 41; docs/etcd.md).
    streams = [stream for stream in world.streams if stream not in world.waiting]
    if not streams:
        return
    request = pb.WatchRequest(progress_request=pb.WatchProgressRequest()) if chance(rng, 90) else pb.WatchRequest()
    yield Settle()
    yield WatchStep(rng.choice(streams), request)
    yield Settle()


def do_close(rng: Random, world: World) -> Operation:
    """The end of a stream."""
    if not world.streams or chance(rng, 50):
        return
    stream = rng.choice(world.streams)
    yield Settle()
    yield CloseWatch(stream)
    world.streams.remove(stream)


def do_settle(_: Random, __: World) -> Operation:
    """A look at what came."""
    yield Settle()


def do_fragments(rng: Random, world: World) -> Operation:
    """A transaction whose events, with what was there before, need more than one message (etcd 37)."""
    if not world.streams or chance(rng, 60):
        return
    request = pb.WatchCreateRequest(key=b"f/", range_end=b"f0", prev_kv=True, fragment=chance(rng, 70), watch_id=500)
    stream = rng.choice(world.streams)
    yield WatchStep(stream, pb.WatchRequest(create_request=request), answered=True)
    for letter in (b"x", b"y"):
        puts = [kv.PutRequest(key=b"f/%d" % at, value=letter * 400_000) for at in range(3)]
        yield Call("KV/Txn", kv.TxnRequest(success=[kv.RequestOp(request_put=put) for put in puts]))
    yield Settle()
    yield Call("KV/DeleteRange", kv.DeleteRangeRequest(key=b"f/", range_end=b"f0"))
    yield Settle()
    cancel = pb.WatchCancelRequest(watch_id=500)
    yield WatchStep(stream, pb.WatchRequest(cancel_request=cancel))
    yield Settle()

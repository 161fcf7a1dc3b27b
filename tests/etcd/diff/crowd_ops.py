"""Thousands of keys, for what few don't show: pages, caches that forget, catching up in stretches.

Alone, by ``--families crowd_ops``: nothing here sorts by what keys have in common, and the other kinds do.
"""

from __future__ import annotations

from random import Random
from typing import Final

from nebuladb.pb.etcd import kv_pb2 as pb
from nebuladb.pb.etcd import maintenance_pb2
from nebuladb.pb.etcd import watch_pb2 as watches
from tests.etcd.diff import values
from tests.etcd.diff.calls import Call, OpenWatch, Operation, Settle, WatchStep
from tests.etcd.diff.values import World, chance

MOST_KEYS: Final = 4000
SIZES: Final = (0, 1, 10, 100, 1000, 3000)


def name(rng: Random) -> bytes:
    """A key among many."""
    return b"%04d" % rng.randrange(MOST_KEYS)


def stretch(rng: Random) -> tuple[bytes, bytes]:
    """A range: a few keys, a tenth, a half, all."""
    start = rng.randrange(MOST_KEYS)
    width = rng.choice((1, 5, MOST_KEYS // 10, MOST_KEYS // 2))
    return rng.choice(((b"%04d" % start, b"%04d" % (start + width)), (b"%04d" % start, b"\0"), (b"\0", b"\0")))


def do_load(rng: Random, _: World) -> Operation:
    """Many puts at once."""
    keys = sorted({name(rng) for _ in range(rng.choice((1, 20, 100, 128)))})
    rng.shuffle(keys)
    puts = [pb.PutRequest(key=key, value=rng.randbytes(rng.choice(SIZES)), prev_kv=chance(rng, 10)) for key in keys]
    yield Call("KV/Txn", pb.TxnRequest(success=[pb.RequestOp(request_put=put) for put in puts]))


def do_read(rng: Random, world: World) -> Operation:
    """A range, in a transaction or by itself."""
    key, end = stretch(rng)
    request = pb.RangeRequest(key=key, range_end=end, revision=values.revision(rng, world))
    request.limit = rng.choice((0, 1, 10, 100, 1000, 1001))
    request.sort_order = rng.randrange(3)  # type: ignore[assignment]
    request.keys_only, request.count_only = chance(rng, 30), chance(rng, 20)
    for field in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"):
        if chance(rng, 8):
            setattr(request, field, rng.randint(0, world.revision + 1))
    if chance(rng, 15):
        # What a transaction reads has a bound here that etcd hasn't (docs/etcd.md).
        request.limit, request.keys_only = 100, True
        yield Call("KV/Txn", pb.TxnRequest(success=[pb.RequestOp(request_range=request)]))
    else:
        yield Call("KV/Range", request)


def do_remove(rng: Random, _: World) -> Operation:
    """A few, or a tenth of all."""
    start = rng.randrange(MOST_KEYS)
    width = rng.choice((1, 20, 20, MOST_KEYS // 10))
    request = pb.DeleteRangeRequest(key=b"%04d" % start, range_end=b"%04d" % (start + width), prev_kv=chance(rng, 40))
    yield Call("KV/DeleteRange", request)


def do_compact(rng: Random, world: World) -> Operation:
    """Of the older half, or of what can't be."""
    revision = rng.choice((world.floor, world.revision + 1, (world.floor + world.revision) // 2, world.revision))
    if revision <= world.floor and not world.floor:
        return
    yield Settle()
    answer = yield Call("KV/Compact", pb.CompactionRequest(revision=revision, physical=True))
    if isinstance(answer, pb.CompactionResponse):
        world.floor = revision
        world.floors.add(revision)


def do_watch(rng: Random, world: World) -> Operation:
    """From the past, all of it, in stretches."""
    if not world.streams:
        world.streams.append(world.next_stream)
        yield OpenWatch(world.next_stream)
        world.next_stream += 1
    key, end = stretch(rng)
    start = rng.randint(world.floor, world.revision)
    request = watches.WatchCreateRequest(
        key=key, range_end=end, start_revision=start, prev_kv=chance(rng, 50), fragment=chance(rng, 50), watch_id=9
    )
    stream = world.streams[0]
    yield WatchStep(stream, watches.WatchRequest(create_request=request), answered=True, late=start > 0)
    yield Settle()
    yield WatchStep(stream, watches.WatchRequest(cancel_request=watches.WatchCancelRequest(watch_id=9)))
    yield Settle()


def do_hash(rng: Random, world: World) -> Operation:
    """Of a revision, which looks at all."""
    revision = rng.randint(world.floor + 1, world.revision + 2)
    if revision not in world.floors:
        yield Call("Maintenance/HashKV", maintenance_pb2.HashKVRequest(revision=revision))

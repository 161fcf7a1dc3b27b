"""Ranges, puts, deletes and compactions."""

from __future__ import annotations

from random import Random
from typing import Any

from nebuladb.pb.etcd import kv_pb2 as pb
from tests.etcd.diff import values
from tests.etcd.diff.calls import Call, Operation, Settle
from tests.etcd.diff.values import MAX_REQUEST, World, chance


def range_request(rng: Random, world: World) -> pb.RangeRequest:
    """Every shape, every field."""
    key, end = values.span(rng)
    request = pb.RangeRequest(key=key, range_end=end, revision=values.revision(rng, world))
    if chance(rng, 40):
        request.limit = rng.choice((1, 2, 3, 5, 100, -1, values.BIG))
    if chance(rng, 45):
        # No unknown ones: etcd 3.5.16 takes any order, and a target that doesn't exist makes it panic (etcd 4).
        request.sort_order = rng.randrange(3)  # type: ignore[assignment]
        request.sort_target = rng.randrange(5)  # type: ignore[assignment]
        if request.revision and key <= values.CROWD and (end > values.CROWD or end == b"\0"):
            request.sort_target = pb.RangeRequest.KEY  # of more than twelve that are equal etcd leaves the order open
    request.serializable = chance(rng, 30)
    request.keys_only = chance(rng, 15)
    request.count_only = chance(rng, 12)
    for name in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"):
        if chance(rng, 9):
            setattr(request, name, values.edge(rng, world))
    return request


def enum(rng: Random, known: int) -> Any:
    """A number of an enum with `known` values; now and then one that it doesn't have."""
    return rng.choice((known, 99, -1)) if chance(rng, 6) else rng.randrange(known)


def put_request(rng: Random, world: World) -> pb.PutRequest:
    """Also with what contradicts itself."""
    request = pb.PutRequest(key=values.key(rng, 5), lease=values.lease(rng, world), prev_kv=chance(rng, 40))
    request.ignore_value = chance(rng, 15)
    request.ignore_lease = chance(rng, 15)
    if not request.ignore_value or chance(rng, 30):
        request.value = values.value(rng)
    if request.ignore_lease and chance(rng, 60):
        request.lease = 0
    return request


def delete_request(rng: Random) -> pb.DeleteRangeRequest:
    """Mostly of little, so that something stays."""
    key, end = values.span(rng, 6) if chance(rng, 40) else (values.key(rng, 8), b"")
    return pb.DeleteRangeRequest(key=key, range_end=end, prev_kv=chance(rng, 40))


def do_range(rng: Random, world: World) -> Operation:
    """A read."""
    yield Call("KV/Range", range_request(rng, world))


def do_put(rng: Random, world: World) -> Operation:
    """A put."""
    yield Call("KV/Put", put_request(rng, world))


def do_delete(rng: Random, _: World) -> Operation:
    """A deletion."""
    yield Call("KV/DeleteRange", delete_request(rng))


def do_compact(rng: Random, world: World) -> Operation:
    """A compaction, mostly of what should not be. `physical`, so that etcd is done with it when it answers."""
    if chance(rng, 70):
        revision = rng.choice((0, -1, -values.BIG - 1, world.floor, world.floor - 1, world.revision + 1, values.BIG))
    else:
        revision = rng.choice((world.floor + 1, world.revision, rng.randint(world.floor, world.revision)))
    if not world.floor:
        # Of 0 etcd says once that it did it, and then that it was done.
        revision = revision or -1
    # What a watcher is still owed must have been sent: etcd drops what it has not, and when it does is chance.
    yield Settle()
    physical = world.floor < revision <= world.revision or chance(rng, 50)
    answer = yield Call("KV/Compact", pb.CompactionRequest(revision=revision, physical=physical))
    if isinstance(answer, pb.CompactionResponse):
        world.floor = revision
        world.floors.add(revision)
        if chance(rng, 50):
            yield Call("KV/Range", pb.RangeRequest(key=b"\0", range_end=b"\0", revision=revision))


def do_big(rng: Random, _: World) -> Operation:
    """A request at the bound of a request's size, of gRPC's own, or of neither."""
    key = rng.choice((b"big", b"a"))
    # Exactly where etcd draws the line depends on how it wraps a request for its log; 1 KiB is beyond that.
    size = rng.choice((MAX_REQUEST - 1024, MAX_REQUEST + 1024, MAX_REQUEST + (1 << 19) + 1024, 3 << 20))
    if chance(rng, 50):
        yield Call("KV/Put", pb.PutRequest(key=key, value=b"x" * size))
    else:
        put = pb.RequestOp(request_put=pb.PutRequest(key=key, value=b"x" * size))
        yield Call("KV/Txn", pb.TxnRequest(success=[put]))
    yield Call("KV/Range", pb.RangeRequest(key=key))
    yield Call("KV/DeleteRange", pb.DeleteRangeRequest(key=key))

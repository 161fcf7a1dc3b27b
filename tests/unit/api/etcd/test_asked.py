"""Names and keys of up to 2 MiB: what waits with them is bounded by their bytes, and they are let go with it."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
import weakref
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import grpc.aio
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2

from nebuladb.api import asked, scan, watch
from nebuladb.api.asked import Asked
from nebuladb.api.etcd import line
from nebuladb.api.pace import Pace
from nebuladb.errors import TooManyRequests
from nebuladb.kv.answer import KeyValue
from nebuladb.pb.etcd import election_pb2, lease_pb2, lock_pb2
from nebuladb.pb.nebula.v1 import kv_pb2 as nebula
from nebuladb.shard import Descriptor
from tests.unit.api.etcd.faced import Faced
from tests.unit.api.etcd.streams import ask, begin, cancel, create, eventually, refused, watching
from tests.unit.node.lone import SECONDS

MANY = (StatusCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests")


@pytest.fixture(autouse=True)
def _bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "MAX_BYTES", 40_000)


def test_what_is_large_counts_until_it_is_given_back() -> None:
    held = Asked()
    assert held.take(asked.SMALL_BYTES) == 0, "those are bounded by their number"
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(held.holding(10_000))
        with pytest.raises(TooManyRequests), held.holding(asked.SMALL_BYTES + 1):
            raise AssertionError("it was let in")
    assert held.held == 0


async def test_watches_keys_have_a_bound_in_bytes(etcd: Faced) -> None:
    """50,000 of a MiB each were allowed."""
    async with watching(etcd) as stream:
        for number in range(3):
            stream.send(create(b"%d" % number + b"k" * 9_999, b"z"))
            assert not (await stream.next()).canceled
        stream.send(create(b"a" * 20_000))
        told = await stream.next()
        assert (told.created, told.canceled, told.watch_id) == (True, True, -1)
        assert "the names and keys" in told.cancel_reason
        stream.send(create(b"k"))
        assert not (await stream.next()).canceled, "a small one"
        stream.send(cancel(0))
        assert (await stream.next()).canceled
        stream.send(create(b"a", b"a" * 9_999))
        assert not (await stream.next()).canceled, "there is room again"
        assert etcd.backend.asked.held == 30_002
    await etcd.until(lambda: etcd.backend.asked.held == 0)


async def test_observers_names_have_a_bound_in_bytes(etcd: Faced) -> None:
    observe: Any = etcd.channel.unary_stream("/v3electionpb.Election/Observe")
    request = election_pb2.LeaderRequest(name=b"n" * 10_000).SerializeToString()
    first: Any = observe(request)
    await etcd.until(lambda: etcd.backend.asked.held == 3 * len(request))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(anext(aiter(observe(request))), SECONDS)
    assert (caught.value.code(), caught.value.details()) == MANY
    first.cancel()
    await etcd.until(lambda: etcd.backend.asked.held == 0)


async def test_names_of_locks_that_are_waited_for_have_a_bound_in_bytes(etcd: Faced) -> None:
    """Who is refused leaves no entry, behind which others would wait."""
    name = b"L" * 6_000
    for lease in (1, 2, 3):
        await ask(etcd, lease_pb2.LeaseGrantRequest(TTL=60, ID=lease))
    await ask(etcd, lock_pb2.LockRequest(name=name, lease=1))
    second = begin(etcd, lock_pb2.LockRequest(name=name, lease=2))
    await etcd.until(lambda: etcd.backend.asked.held == 4 * len(name))
    assert await refused(etcd, lock_pb2.LockRequest(name=name, lease=3)) == MANY

    async def two() -> bool:
        return (await etcd.range(name, b"M", keys_only=True)).count == 2

    await eventually(two)
    await ask(etcd, lock_pb2.UnlockRequest(key=name + b"/1"))
    assert (await second).key == name + b"/2"
    assert etcd.backend.asked.held == 0


async def test_a_line_is_let_go_with_those_who_waited(etcd: Faced) -> None:
    """It led to its watch and that to it: the names of all its entries were left to the collector."""
    for lease in (1, 2):
        await ask(etcd, lease_pb2.LeaseGrantRequest(TTL=60, ID=lease))
    await ask(etcd, lock_pb2.LockRequest(name=b"L", lease=1))
    gc.disable()
    try:
        second = begin(etcd, lock_pb2.LockRequest(name=b"L", lease=2))
        lines = etcd.api.face.lines
        await etcd.until(lambda: len(lines) == 1)
        [waited] = [weakref.ref(one) for one in lines._lines.values()]
        await ask(etcd, lock_pb2.UnlockRequest(key=b"L/1"))
        await second
        await etcd.until(lambda: waited() is None)
    finally:
        gc.enable()


@pytest.mark.parametrize("whole", [False, True])
async def test_of_the_entries_under_a_name_it_is_not_kept_for_each(whole: bool) -> None:
    """20,000 whose names have 16 KiB are 320 MiB, which each call had for itself that looked for a leader."""
    name, count = b"E" * (1 << 20), 32

    class Pin:
        revision = 9

        def __init__(self) -> None:
            self._left = iter(range(count, 0, -1))

        def scan(self, *_: Any, **__: Any) -> Any:
            number = next(self._left)
            kv = KeyValue(name + b"/%02d" % number, number, number, 1, 0, b"")
            return SimpleNamespace(kvs=(kv,), cursor=b"more" if number > 1 else b"")

        def close(self) -> None:
            pass

    store = SimpleNamespace(pin=Pin)
    backend: Any = SimpleNamespace(glances=Pace(), pace=Pace(), pump=SimpleNamespace(store=lambda _: store))
    shard = Descriptor(7, "k", 1, b"", b"", (0, 0), ())
    tracemalloc.start()
    try:
        if whole:
            found = await line.standing(backend, shard, name)
            assert (found.revision, sorted(found.entries)) == (9, [(n, b"/%02d" % n) for n in range(1, count + 1)])
        else:
            revision, first = await line.earliest(backend, shard, name)
            assert (revision, first and first.create_revision) == (9, 1)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 8 * len(name)


@pytest.fixture
def shards(etcd: Faced, monkeypatch: pytest.MonkeyPatch) -> list[Descriptor]:
    """One that there is, as if it were many."""
    own = etcd.backend.routing.shards("default")
    many = own * 8
    routing: Any = SimpleNamespace(covering=lambda *_: many, shards=lambda _: many)
    monkeypatch.setattr(type(etcd.backend), "routing", routing)
    return many


async def test_the_parts_of_a_watch_share_its_keys(etcd: Faced, shards: list[Descriptor]) -> None:
    """A key of a MiB was copied for each of a thousand shards."""
    request = nebula.WatchRequest(key=b"k" * 9_999, range_end=b"l" * 9_999)
    told: Any = watch.watch(etcd.backend, request)
    assert (await anext(told)).created
    hub = etcd.pump.hub(shards[0].group)
    watchers = list(hub._live)
    assert len(watchers) == len(shards)
    assert len({(id(one.key), id(one.end)) for one in watchers}) == 1
    await told.aclose()


async def test_the_parts_of_a_scan_share_its_keys(etcd: Faced, shards: list[Descriptor]) -> None:
    request = nebula.ScanRequest(key=b"k" * 9_999, range_end=b"l" * 9_999)
    parts = scan.Scan(etcd.backend, request, [(shard, 2) for shard in shards])._parts
    assert len({(id(part.start), id(part.end)) for part in parts}) == 1


async def test_a_health_check_of_what_can_be_no_service_is_refused(etcd: Faced) -> None:
    """Who watches a name that nobody knows waits, and is kept, with three copies of it."""
    watched: Any = etcd.channel.unary_stream("/grpc.health.v1.Health/Watch")
    short: Any = watched(health_pb2.HealthCheckRequest(service="s" * 256).SerializeToString())
    told = health_pb2.HealthCheckResponse.FromString(await asyncio.wait_for(anext(aiter(short)), SECONDS))
    assert told.status == told.SERVICE_UNKNOWN
    short.cancel()
    long = watched(health_pb2.HealthCheckRequest(service="s" * 257).SerializeToString())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(anext(aiter(long)), SECONDS)
    assert caught.value.code() is StatusCode.INVALID_ARGUMENT

"""Scans of several pages through a real server while their data is overwritten, deleted and compacted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, Final

import grpc
import grpc.aio
import pytest

from nebuladb.api import scan
from nebuladb.api.pace import Pace
from nebuladb.client import AsyncClient
from nebuladb.errors import Reason
from nebuladb.ids import DEFAULT_GROUP
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.store import Store
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.shard import Descriptor
from tests.unit.api.served import Served, error_detail
from tests.unit.node.lone import SECONDS

KEYS: Final = 24
SIZE: Final = 1 << 20
"""Of a value: a page each, far more together than waits in the transport for a client that reads slowly."""


class Scanned(Served):
    """A node with `KEYS` large values."""

    async def fill(self, byte: bytes) -> None:
        for number in range(KEYS):
            await self.do(Kind.PUT, kv_pb2.PutRequest(key=b"%03d" % number, value=byte * SIZE))

    async def do(self, kind: Kind, request: Any) -> None:
        answer = await self.pump.propose(DEFAULT_GROUP, Command(kind, request.SerializeToString()), SECONDS)
        assert answer.reason == 0

    async def compact(self) -> None:
        """Everything that isn't the newest."""
        await self.do(Kind.COMPACT, kv_pb2.CompactRequest(revision=self.store.revision))

    @property
    def store(self) -> Store:
        return self.pump.store(DEFAULT_GROUP)

    @property
    def pins(self) -> int:
        """Open ones."""
        return sum(not pin.closed for pin in self.store._pins)

    def scan(self, **fields: Any) -> Any:
        call = self.channel.unary_stream(
            "/nebula.v1.KV/Scan", kv_pb2.ScanRequest.SerializeToString, kv_pb2.ScanResponse.FromString
        )
        return call(kv_pb2.ScanRequest(key=b"0", range_end=b"1", **fields), timeout=SECONDS)

    async def deleted(self) -> None:
        """Until nothing is left to be deleted."""
        await self.until(lambda: not self.store.busy)


@pytest.fixture
async def served() -> AsyncIterator[Scanned]:
    served = Scanned()
    await asyncio.wait_for(served.open(), SECONDS)
    await served.fill(b"a")
    yield served
    await served.close()


def rows(page: kv_pb2.ScanResponse) -> list[tuple[bytes, bytes]]:
    return [(kv.key, kv.value[:1]) for kv in page.kvs]


async def rest(pages: AsyncIterator[kv_pb2.ScanResponse]) -> list[tuple[bytes, bytes]]:
    return [row async for page in pages for row in rows(page)]


async def test_a_compaction_in_the_middle_takes_nothing_from_a_scan(served: Scanned) -> None:
    pages = aiter(served.scan())
    found = rows(await anext(pages))
    await served.fill(b"b")
    await served.do(Kind.DELETE, kv_pb2.DeleteRequest(key=b"01", range_end=b"02"))
    await served.compact()
    floor = served.store.floor
    assert served.pins == 1  # it is in the middle
    found += await rest(pages)
    assert found == [(b"%03d" % number, b"a") for number in range(KEYS)]
    assert served.store.floor == floor == served.store.revision
    await served.deleted()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rest(served.scan(revision=floor - 1))
    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE


@pytest.mark.parametrize("compacts", [False, True])
async def test_a_client_that_takes_no_page_holds_nothing_for_long(
    served: Scanned, compacts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "HOLD_SECONDS", 0.01)
    pages = aiter(served.scan())
    found = rows(await anext(pages))
    await served.until(lambda: not served.pins)
    await served.fill(b"b")
    if compacts:
        await served.compact()
        await served.deleted()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rest(pages)
        assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
    else:
        found += await rest(pages)
        assert found == [(b"%03d" % number, b"a") for number in range(KEYS)]


async def test_a_scan_that_is_given_up_holds_nothing(served: Scanned) -> None:
    call = served.scan()
    await anext(aiter(call))
    assert served.pins == 1
    call.cancel()
    await served.until(lambda: not served.pins)


async def test_the_loop_comes_round_while_a_scan_passes_what_is_deleted(
    served: Scanned, monkeypatch: pytest.MonkeyPatch
) -> None:
    await served.do(Kind.DELETE, kv_pb2.DeleteRequest(key=b"0", range_end=b"1"))
    monkeypatch.setattr(scan, "STRETCH_ROWS", 2)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    [page] = [page async for page in scan.scan(served.backend, kv_pb2.ScanRequest(key=b"0", range_end=b"1"), SECONDS)]
    counting.cancel()
    assert not page.kvs
    assert turns >= KEYS // 2


@pytest.mark.parametrize("limit", [0, 3])
@pytest.mark.parametrize("kind", ["single", "hash", "range"])
async def test_a_scan_that_passes_what_is_deleted_says_that_it_goes_on(
    served: Scanned, kind: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client waits for a page no longer than its time-out, and would begin anew, for ever."""
    monkeypatch.setattr(scan, "STRETCH_ROWS", 2)
    monkeypatch.setattr(scan, "ALIVE_SECONDS", 0.0)
    keys = [b"%03d" % number for number in range(200)]
    kept = [b"040", b"041", b"120", b"150", b"199"]
    parts: dict[str, dict[str, Any]] = {"single": {}, "hash": {"shards": 3}, "range": {"split_at": [b"050", b"150"]}}
    async with AsyncClient([served.address], timeout=SECONDS) as client:
        await client.create_keyspace("k", kind, **parts[kind])
    async with AsyncClient([served.address], keyspace="k", timeout=SECONDS) as client:
        await client.batch(dict.fromkeys(keys, b"v"))
        await client.batch({}, [key for key in keys if key not in kept])
        request = kv_pb2.ScanRequest(keyspace="k", key=b"0", range_end=b"2", limit=limit)
        pages = [page async for page in scan.scan(served.backend, request, SECONDS)]
        assert len([page for page in pages if not page.kvs]) > 20
        assert [key for page in pages for key, _ in rows(page)] == (kept[:limit] if limit else kept)
        assert [bool(page.revisions) for page in pages] == [True, *[False] * (len(pages) - 1)]
        assert [page.more for page in pages] == [*[False] * (len(pages) - 1), bool(limit)]
        assert [row.key async for row in client.scan(b"0", b"2", limit=limit)] == (kept[:limit] if limit else kept)


async def test_a_scan_that_names_shards_of_another_keyspace_is_refused(served: Scanned) -> None:
    """One of the same name, say, that was dropped meanwhile: the rest of it would be this one's."""
    pages = served.scan(revisions=[kv_pb2.ShardRevision(group=99, revision=1)])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rest(aiter(pages))
    assert error_detail(caught.value).reason == Reason.WRONG_SHARD


async def test_where_a_scan_goes_on_at_a_node_that_is_behind_it_waits_for_its_revisions() -> None:
    shard = Descriptor(7, "k", 1, b"", b"", (0, 0), ((1, 1),))
    asked: list[bool] = []

    async def current(shard: Descriptor, timeout: float, **how: Any) -> Any:
        asked.append(how.get("serializable", False))
        return SimpleNamespace(revision=5)

    backend: Any = SimpleNamespace(current=current, check_groups=lambda keyspace, groups: None, glances=Pace())
    for revision, waits in ((5, []), (6, [False])):
        asked.clear()
        request = kv_pb2.ScanRequest(serializable=True, revisions=[kv_pb2.ShardRevision(group=7, revision=revision)])
        assert await scan._pin(backend, request, [shard], SECONDS) == [(shard, revision)]
        assert asked == [True, *waits]


async def test_of_a_thousand_shards_some_are_asked_a_turn_of_the_loop() -> None:
    shards = [
        Descriptor(group, "k", 1, b"", b"", (0, 0), ((1, 1),)) for group in range(10, 10 + 3 * scan.SHARDS_AT_ONCE)
    ]
    asked: list[int] = []
    answered = asyncio.Event()

    async def current(shard: Descriptor, timeout: float, **how: Any) -> int:
        asked.append(shard.group)
        await answered.wait()
        return shard.group

    backend: Any = SimpleNamespace(current=current, glances=Pace())
    reading = asyncio.create_task(scan._stores(backend, shards, SECONDS))
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(asked) == scan.SHARDS_AT_ONCE
    answered.set()
    found: list[Any] = await reading
    assert found == [shard.group for shard in shards]


async def test_a_scan_that_is_given_up_while_it_asks_leaves_nobody_asking() -> None:
    ended = asyncio.Event()

    async def current(shard: Descriptor, timeout: float, **how: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    backend: Any = SimpleNamespace(current=current, glances=Pace())
    shard = Descriptor(7, "k", 1, b"", b"", (0, 0), ((1, 1),))
    reading = asyncio.create_task(scan._stores(backend, [shard], SECONDS))
    await asyncio.sleep(0)
    reading.cancel()  # in the turn in which it is asked
    with pytest.raises(asyncio.CancelledError):
        await reading
    await asyncio.wait_for(ended.wait(), SECONDS)

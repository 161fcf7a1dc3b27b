"""What scans hold that nobody reads: bounded for all of a node together, at no cost for those who read, even slowly."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from functools import partial
from types import SimpleNamespace
from typing import Any, Final

import pytest

from nebuladb.api import scan as module
from nebuladb.api.deliveries import PACE_BYTES, PATIENCE_SECONDS, SMALL_BYTES, Deliveries
from nebuladb.api.scan import FIRST_PAGE_BYTES, PAGE_BYTES, scan
from nebuladb.client import AsyncClient
from nebuladb.pb.nebula.v1 import kv_pb2
from tests.unit.api.hands import Hands
from tests.unit.api.served import Served
from tests.unit.node.lone import SECONDS

LARGE: Final = 1 << 20
"""Of a value: a page each."""
LIMIT: Final = 8 << 20
ROOM: Final = 5
"""Pages of `LARGE` values for which three quarters of it have room."""
SCANS: Final = 12
Pages = AsyncIterator[kv_pb2.ScanResponse]


async def put(served: Served, keyspace: str, rows: dict[bytes, bytes]) -> None:
    async with AsyncClient([served.address], keyspace=keyspace, timeout=SECONDS) as client:
        await client.batch(rows)


async def rest(pages: Pages) -> list[bytes]:
    return [kv.key for page in [page async for page in pages] for kv in page.kvs]


class Waiting:
    """`SCANS` scans of large values, each as far as it gets without its client."""

    def __init__(self, served: Served) -> None:
        self.clock = Hands()
        self.deliveries = served.backend.deliveries = Deliveries(LIMIT, self.clock)
        self.ended: list[int] = []
        request = kv_pb2.ScanRequest(key=b"0", range_end=b"1")
        self.pages: list[Pages] = [
            scan(served.backend, request, SECONDS, partial(self.ended.append, number)) for number in range(SCANS)
        ]
        self.first = [asyncio.ensure_future(anext(pages)) for pages in self.pages]

    @property
    def begun(self) -> list[int]:
        return [number for number, page in enumerate(self.first) if page.done()]

    async def whole(self, number: int) -> list[bytes]:
        return [kv.key for kv in (await self.first[number]).kvs] + await rest(self.pages[number])


@pytest.fixture
async def waiting(served: Served) -> AsyncIterator[Waiting]:
    await put(served, "default", {b"%03d" % number: bytes(LARGE) for number in range(8)})
    waiting = Waiting(served)
    lane = waiting.deliveries.lane(LARGE + 3)
    await served.until(lambda: len(lane._waiting) == SCANS - ROOM)
    yield waiting
    for page in waiting.first:
        page.cancel()
    await asyncio.gather(*waiting.first, return_exceptions=True)
    for pages in waiting.pages:
        await pages.aclose()  # type: ignore[attr-defined]
    assert not waiting.deliveries.used


async def test_scans_that_nobody_reads_hold_no_more_than_the_bound_and_all_go_on_when_they_are_read(
    waiting: Waiting,
) -> None:
    """A thousand of them took 4 GiB."""
    assert len(waiting.begun) == ROOM
    assert waiting.deliveries.used <= LIMIT
    async with asyncio.timeout(SECONDS):
        found = await asyncio.gather(*map(waiting.whole, range(SCANS)))
    assert found == [[b"%03d" % number for number in range(8)]] * SCANS
    assert not waiting.ended


async def test_who_keeps_other_scans_waiting_is_ended_counted_from_when_its_page_was_ready(
    waiting: Waiting, served: Served
) -> None:
    begun = waiting.begun
    waiting.clock.pass_by(PATIENCE_SECONDS)
    assert not waiting.ended
    waiting.clock.pass_by(2 * LARGE / PACE_BYTES)
    assert waiting.ended
    assert set(waiting.ended) <= set(begun)
    await served.until(lambda: len(waiting.begun) == ROOM + len(waiting.ended))


async def test_pages_grow_for_a_client_that_reads_and_stay_small_for_one_that_is_slow(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(served, "default", {b"%05d" % number: bytes(4_000) for number in range(1_000)})
    request = kv_pb2.ScanRequest(key=b"0", range_end=b"1")

    async def sizes() -> list[int]:
        found: list[int] = []
        async for page in scan(served.backend, request, SECONDS):
            found.append(sum(len(kv.value) for kv in page.kvs))
            used = served.backend.deliveries.used
            assert used == 0 or SMALL_BYTES <= used < 2 * PAGE_BYTES + 8_000
        assert sum(found) == 4_000_000
        return found

    grown = await sizes()
    assert grown[0] <= FIRST_PAGE_BYTES + 4_000
    assert max(grown) >= PAGE_BYTES - 8_000
    monkeypatch.setattr(module, "SLOW_SECONDS", -1.0)
    assert max(await sizes()) <= FIRST_PAGE_BYTES + 4_000
    assert not served.backend.deliveries.used


async def test_a_scan_that_is_given_up_amid_its_rows_holds_none_of_them(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector had them, by and by: 400 scans of large values kept 170 MiB."""
    await put(served, "default", {b"%03d" % number: bytes(100) for number in range(8)})
    begun: list[weakref.ref[module.Scan]] = []

    class Watched(module.Scan):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            begun.append(weakref.ref(self))

    monkeypatch.setattr(module, "Scan", Watched)
    pages = scan(served.backend, kv_pb2.ScanRequest(key=b"0", range_end=b"1", page_size=2), SECONDS)
    assert len((await anext(pages)).kvs) == 2
    gc.disable()
    try:
        await pages.aclose()  # type: ignore[attr-defined]
        del pages
        assert [scan() for scan in begun] == [None]
    finally:
        gc.enable()


class Moody:
    """Has no room for any page when it is asked first."""

    def __init__(self, room: asyncio.Event, end: object) -> None:
        self.room = room
        self._held = self._asked = False

    def admits(self, size: int) -> bool:
        self._held, self._asked = self._asked, True
        self.room.set()
        return self._held

    def begin(self) -> None:
        assert self._held

    def give(self) -> None:
        self._held = self._asked = False


@pytest.mark.parametrize("kind", ["hash", "range"])
@pytest.mark.parametrize(("page", "limit"), [(1, 0), (7, 0), (0, 0), (7, 21), (7, 20), (1_000, 5), (3, 200), (3, 199)])
async def test_what_is_given_up_is_read_again_each_row_once(
    served: Served, kind: str, page: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_PAGE_BYTES", 300)
    keys = [b"%03d" % number for number in range(200)]
    async with AsyncClient([served.address], timeout=SECONDS) as client:
        splits: dict[str, Any] = {"split_at": [b"010", b"011", b"100"]} if kind == "range" else {"shards": 5}
        await client.create_keyspace("k", kind, **splits)
    await put(served, "k", dict.fromkeys(keys, b"v" * 20))
    deliveries = [served.backend.deliveries, SimpleNamespace(stream=Moody)]
    request = kv_pb2.ScanRequest(keyspace="k", key=b"0", range_end=b"1\xff", page_size=page, limit=limit)
    pages: list[list[tuple[list[bytes], bool, int]]] = []
    for one in deliveries:
        served.backend.deliveries = one  # type: ignore[assignment]
        pages.append(
            [
                ([kv.key for kv in page.kvs], page.more, len(page.revisions))
                async for page in scan(served.backend, request, SECONDS)
            ]
        )
    served.backend.deliveries = deliveries[0]  # type: ignore[assignment]
    assert pages[0] == pages[1]
    assert [key for found, _, _ in pages[1] for key in found] == (keys[:limit] if limit else keys)
    assert pages[1][-1][1] == (0 < limit < len(keys))
    assert [count for _, _, count in pages[1]] == [5 if kind == "hash" else 4, *[0] * (len(pages[1]) - 1)]

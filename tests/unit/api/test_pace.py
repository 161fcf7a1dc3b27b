"""Long reads at once: stretches share the loop, and nobody who goes away takes the others' turn along."""

from __future__ import annotations

import asyncio

import pytest

from nebuladb.api import pace
from nebuladb.api.pace import Pace


async def test_stretches_of_many_reads_do_not_share_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "STRETCH_SECONDS", 0.0)
    turns, turn = [], 0
    shared = Pace()
    loop = asyncio.get_running_loop()

    def count() -> None:
        nonlocal turn
        turn += 1
        loop.call_soon(count)

    async def read() -> None:
        for _ in range(3):
            async with shared:
                turns.append(turn)

    count()
    async with asyncio.timeout(10):
        await asyncio.gather(*(read() for _ in range(10)))
    assert len(turns) == len(set(turns)) == 30


async def test_a_read_that_is_cancelled_in_its_turn_leaves_it_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "STRETCH_SECONDS", 0.0)
    shared = Pace()
    done = 0

    async def read() -> None:
        nonlocal done
        async with shared:
            done += 1

    reads = [asyncio.create_task(read()) for _ in range(20)]
    async with asyncio.timeout(10):
        for doomed in reads[::2]:
            await asyncio.sleep(0)
            doomed.cancel()
        await asyncio.gather(*reads, return_exceptions=True)
    async with asyncio.timeout(10):
        await read()
    assert done >= 11

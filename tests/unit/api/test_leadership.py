"""Which streams end when a node knows no leader, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from nebuladb.api import leadership as module
from nebuladb.api.leadership import MAX_MISSES, Leadership
from nebuladb.errors import NebulaError, NoLeader

SECONDS = 20.0


class Looks:
    """A `Leadership` that looks when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.leaders = {2: 11, 3: 11, 4: 12}
        self.leadership = Leadership(lambda group: self.leaders.get(group, 0))
        self.lost: list[str] = []
        self._turns = asyncio.Semaphore(0)
        self._waits = asyncio.Event()
        monkeypatch.setattr(module, "asyncio", SimpleNamespace(create_task=asyncio.create_task, sleep=self._sleep))

    async def _sleep(self, seconds: float) -> None:
        assert seconds == module.CHECK_SECONDS
        self._waits.set()
        await self._turns.acquire()
        self._waits.clear()

    async def look(self, count: int = 1) -> None:
        async with asyncio.timeout(SECONDS):
            for _ in range(count):
                await self._waits.wait()
                self._turns.release()
                self._waits.clear()
                await asyncio.sleep(0)
                await asyncio.sleep(0)

    def follow(self, name: str, *groups: int) -> Any:
        def lost(error: NebulaError) -> None:
            assert isinstance(error, NoLeader)
            self.lost.append(name)

        return self.leadership.followed(groups, lost)

    async def end(self) -> None:
        self._turns.release()
        async with asyncio.timeout(SECONDS):
            while self.leadership.busy:  # noqa: ASYNC110
                await asyncio.sleep(0)


@pytest.fixture
async def looks(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Looks]:
    found = Looks(monkeypatch)
    yield found
    await found.end()


async def test_an_election_ends_no_stream_and_a_lost_leader_those_that_need_it(looks: Looks) -> None:
    with looks.follow("one", 2), looks.follow("many", 3, 4, 2), looks.follow("other", 3):
        for _ in range(3):
            looks.leaders[2] = 0
            await looks.look(MAX_MISSES - 1)
            looks.leaders[2] = 12
            await looks.look()
        assert looks.lost == []
        looks.leaders[2] = 0
        await looks.look(MAX_MISSES)
        assert looks.lost == ["one", "many"]
        await looks.look(2 * MAX_MISSES)
        assert looks.lost == ["one", "many"], "each is told once"


async def test_who_comes_back_is_given_as_much_time_again(looks: Looks) -> None:
    """Or thousands of watches without any better node would begin anew every second."""
    looks.leaders[2] = 0
    with looks.follow("first", 2), looks.follow("other", 3):
        await looks.look(MAX_MISSES)
        assert looks.lost == ["first"]
        with looks.follow("again", 2):
            await looks.look(MAX_MISSES - 1)
            assert looks.lost == ["first"]
            await looks.look()
            assert looks.lost == ["first", "again"]


async def test_who_has_ended_is_told_nothing_and_leaves_nothing_to_look_at(looks: Looks) -> None:
    with ExitStack() as streams:
        streams.enter_context(looks.follow("gone", 2, 3))
        streams.enter_context(looks.follow("stays", 3))
        assert looks.leadership.busy
        with looks.follow("short", 2):
            pass
    looks.leaders = {}
    await looks.end()
    assert looks.lost == []
    assert not looks.leadership.busy

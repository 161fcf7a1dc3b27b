"""Reads that may be so old and no older: the leader is asked once in that time."""

from __future__ import annotations

import asyncio

import pytest

from nebuladb.errors import NoLeader
from nebuladb.ids import DEFAULT_GROUP
from tests.unit.node.lone import SECONDS, Lone


async def test_the_leader_is_asked_again_only_when_the_last_answer_is_too_old(
    alone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    confirm = alone.pump.confirm

    def counted(group: int, timeout: float) -> asyncio.Future[None]:
        asked.append(alone.clock.time)
        return confirm(group, timeout)

    monkeypatch.setattr(alone.pump, "confirm", counted)
    begun = alone.clock.time
    for passed in (0, 300, 500, 501, 900, 1_002):
        alone.clock.time = begun + passed
        await alone.pump.confirm_within(DEFAULT_GROUP, 500, SECONDS)
    assert asked == [begun, begun + 501, begun + 1_002]


async def test_what_nobody_confirms_is_not_known_to_be_new(alone: Lone, monkeypatch: pytest.MonkeyPatch) -> None:
    await alone.pump.confirm_within(DEFAULT_GROUP, 500, SECONDS)

    def refused(group: int, timeout: float) -> asyncio.Future[None]:
        raise NoLeader

    monkeypatch.setattr(alone.pump, "confirm", refused)
    await alone.pump.confirm_within(DEFAULT_GROUP, 500, SECONDS)
    alone.clock.time += 501
    for _ in range(2):
        with pytest.raises(NoLeader):
            await alone.pump.confirm_within(DEFAULT_GROUP, 500, SECONDS)


async def test_a_replica_that_came_anew_knows_nothing(alone: Lone, monkeypatch: pytest.MonkeyPatch) -> None:
    await alone.pump.confirm_within(DEFAULT_GROUP, 500, SECONDS)
    alone.node.host.replicas[DEFAULT_GROUP].id += 1
    asked: list[int] = []

    def counted(group: int, timeout: float) -> asyncio.Future[None]:
        asked.append(group)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    monkeypatch.setattr(alone.pump, "confirm", counted)
    await alone.pump.confirm_within(DEFAULT_GROUP, 500, SECONDS)
    assert asked == [DEFAULT_GROUP]
    alone.node.host.replicas[DEFAULT_GROUP].id -= 1

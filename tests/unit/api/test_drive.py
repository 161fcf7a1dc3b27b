"""Steps of the meta group, with a backend that answers as it is told to: what is taken again, and what ends it."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from nebuladb.api import drive as module
from nebuladb.api.backend import Backend
from nebuladb.api.drive import Due, drive, until
from nebuladb.errors import InvalidArgument, NebulaError, NoLeader, Unavailable, UnknownOutcome
from nebuladb.kv.command import Command
from nebuladb.node.meta import Meta
from nebuladb.shard import Descriptor

SECONDS = 10.0
UNFINISHED = Unavailable("the node is on its way")


class Answers:
    """A backend whose proposals end one after the other: with an error, or with None in success."""

    def __init__(self, *answers: NebulaError | None) -> None:
        self.meta = Meta()
        self.did: list[str] = []
        self._answers = [*answers]

    async def refresh(self, timeout: float) -> None:
        assert 0 < timeout <= SECONDS
        self.did.append("refresh")

    async def propose(self, shard: Descriptor, command: Command, timeout: float) -> None:
        assert 0 < timeout <= SECONDS
        self.did.append("step")
        answer = self._answers.pop(0)
        if answer is not None:
            raise answer

    async def drive(self) -> None:
        """Until there is no answer left."""
        backend = cast(Backend, self)
        await drive(backend, lambda meta: b"step" if self._answers else None, Due(SECONDS), UNFINISHED)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.001)


async def test_steps_follow_each_other_by_one_picture() -> None:
    backend = Answers(None, None, None)
    await backend.drive()
    assert backend.did == ["refresh", "step", "step", "step"]


@pytest.mark.parametrize("met", [NoLeader(), UnknownOutcome()], ids=["failed", "unknown"])
async def test_a_step_that_was_or_may_be_lost_is_planned_anew(met: NebulaError) -> None:
    backend = Answers(None, met, None)
    await backend.drive()
    assert backend.did == ["refresh", "step", "step", "refresh", "step"]


async def test_what_can_never_succeed_isnt_tried_again() -> None:
    backend = Answers(InvalidArgument("for the test"), None)
    with pytest.raises(InvalidArgument, match="for the test"):
        await backend.drive()
    assert backend.did == ["refresh", "step"]


@pytest.mark.parametrize(
    ("answers", "raised"),
    [([NoLeader()], NoLeader), ([None, NoLeader()], Unavailable), ([UnknownOutcome()], Unavailable)],
    ids=["none", "one", "maybe one"],
)
async def test_when_time_is_up_it_is_said_whether_a_step_was_taken(
    answers: list[NebulaError | None], raised: type[NebulaError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", SECONDS)
    with pytest.raises(raised) as caught:
        await Answers(*answers).drive()
    assert (caught.value is UNFINISHED) == (raised is Unavailable)


async def test_who_waits_is_told_when_time_is_up() -> None:
    async with asyncio.timeout(SECONDS):
        with pytest.raises(Unavailable) as caught:
            await until(lambda: False, Due(0.0), UNFINISHED)
        assert caught.value is UNFINISHED
        looks = iter([False, False, True])
        await until(lambda: next(looks), Due(SECONDS), UNFINISHED)

"""Steps of the meta group, taken until there is none; each is planned from a picture of it and names that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Final

from nebuladb.api.backend import Backend
from nebuladb.errors import NebulaError, Outcome, TooManyRequests, Unavailable, UnknownOutcome
from nebuladb.ids import META_GROUP
from nebuladb.kv.command import Command, Kind
from nebuladb.node.meta import Meta
from nebuladb.shard import Descriptor

POLL_SECONDS: Final = 0.02
META: Final = Descriptor(META_GROUP, "", 1, b"", b"", (0, 0), ())
"""The meta group, as if it were a shard; whose replicas are nobody's concern here."""


def goes_on(text: str) -> NebulaError:
    """What was begun does, though the caller waits no more; the text says how to hear of it."""
    error = Unavailable(text)
    error.outcome = Outcome.UNKNOWN
    return error


class Due:
    """A deadline, in seconds from now."""

    def __init__(self, seconds: float) -> None:
        self._time = asyncio.get_running_loop().time
        self._at = self._time() + seconds

    def left(self) -> float:
        """Seconds; not positive once it has passed."""
        return self._at - self._time()


class Turns:
    """Of those that take steps of a kind through this node: one at a time, or each that is taken would have all others
    proposed in vain, and planned anew, which of a thousand is half a million entries."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def turn(self, due: Due) -> AsyncIterator[None]:
        """Raises `TooManyRequests` if it doesn't come in time."""
        try:
            async with asyncio.timeout(due.left()):
                await self._lock.acquire()
        except TimeoutError:
            raise TooManyRequests("too many such changes are under way through this node; try again") from None
        try:
            yield
        finally:
            self._lock.release()


async def drive(
    backend: Backend,
    step_of: Callable[[Meta], bytes | None],
    due: Due,
    unfinished: NebulaError | None = None,
    turns: Turns | None = None,
) -> None:
    """Propose what `step_of` plans from this node's picture of meta, step after step, until it gives None. Lost leaders
    and races only repeat a step: each names what it is from.

    Raises what `step_of` refuses with, judged by a picture that is at least as new as the call. When time is up it
    raises `unfinished` or `UnknownOutcome` if a step was or may have been taken, else what was in the way.
    """
    begun = known = False
    while True:
        try:
            if not known:
                await backend.refresh(due.left())
                known = True
            async with turns.turn(due) if turns else nullcontext():
                step = step_of(backend.meta)
                if step is None:
                    return
                await backend.propose(META, Command(Kind.TXN, step), due.left())
                begun = True
        except NebulaError as error:
            if not (error.retryable or error.outcome is Outcome.UNKNOWN):
                raise
            begun |= error.outcome is Outcome.UNKNOWN
            if due.left() <= POLL_SECONDS:
                if not begun:
                    raise
                raise unfinished or UnknownOutcome(f"a step may have been taken; now: {error.message}") from error
            known = False
            await asyncio.sleep(POLL_SECONDS)


async def until(done: Callable[[], bool], due: Due, unfinished: NebulaError) -> None:
    """Wait; raises `unfinished` when time is up."""
    while not done():
        if due.left() <= POLL_SECONDS:
            raise unfinished
        await asyncio.sleep(POLL_SECONDS)

"""Steps of the meta group, taken until there is none; each is planned from a fresh picture and names it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from nebuladb.api.backend import Backend
from nebuladb.errors import NebulaError, Outcome
from nebuladb.ids import META_GROUP
from nebuladb.kv.command import Command, Kind
from nebuladb.node.meta import Meta
from nebuladb.shard import Descriptor

POLL_SECONDS: Final = 0.02
META: Final = Descriptor(META_GROUP, "", 1, b"", b"", (0, 0), ())


class Due:
    """A deadline, in seconds from now."""

    def __init__(self, seconds: float) -> None:
        self._time = asyncio.get_running_loop().time
        self._at = self._time() + seconds

    def left(self) -> float:
        """Seconds; not positive once it has passed."""
        return self._at - self._time()


async def drive(backend: Backend, step_of: Callable[[Meta], bytes | None], due: Due) -> None:
    """Until `step_of` gives None. Lost leaders and races only repeat a step. Raises what `step_of` refuses with, which
    it does by a picture that is as new as the call, or, when time is up, what was in the way."""
    while True:
        try:
            await backend.refresh(due.left())
            step = step_of(backend.meta)
            if step is None:
                return
            await backend.propose(META, Command(Kind.TXN, step), due.left())
        except NebulaError as error:
            if not (error.retryable or error.outcome is Outcome.UNKNOWN) or due.left() <= POLL_SECONDS:
                raise
            await asyncio.sleep(POLL_SECONDS)


async def until(done: Callable[[], bool], due: Due, unfinished: NebulaError) -> None:
    """Wait; raises `unfinished` when time is up."""
    while not done():
        if due.left() <= POLL_SECONDS:
            raise unfinished
        await asyncio.sleep(POLL_SECONDS)

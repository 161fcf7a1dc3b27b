"""Metadata ``hasleader``: who sends it wants no node that has lost its leader (etcd 44)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from nebuladb.api.backend import Backend
from nebuladb.errors import NebulaError, NoLeader

HAS_LEADER: Final = "hasleader"
CHECK_SECONDS: Final = 1.0
"""The longest election timeout."""
MAX_MISSES: Final = 3
"""Looks that find no leader, one after the other, until a stream is given up: to connect anew costs its client more
than to wait for an election (as etcd's monitorLeader)."""

Lost = Callable[[NebulaError], None]


def wanted(metadata: Any) -> bool:
    """Whether a call came with it."""
    return any(key == HAS_LEADER and value == "true" for key, value in metadata or ())


class Leadership:
    """Looks at the leaders of the groups that streams depend on, while there are such streams."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._streams: dict[Lost, int] = {}
        """What to call for whom, and which group it depends on."""
        self._misses: dict[int, int] = {}
        self._task: asyncio.Task[None] | None = None

    def check(self, group: int) -> None:
        """Raises `NoLeader` if this node knows no leader of `group`."""
        if not self._backend.leader(group):
            raise NoLeader

    @contextmanager
    def required(self, context: Any, group: int, lost: Lost) -> Iterator[None]:
        """While this is open, and if the call says so, `lost` is called once when the leader is gone for good. Raises
        `NoLeader` if there is none now."""
        if not wanted(context.invocation_metadata()):
            yield
            return
        self.check(group)
        self._streams[lost] = group
        if self._task is None:
            self._task = asyncio.create_task(self._look(), name="leadership")
        try:
            yield
        finally:
            self._streams.pop(lost, None)

    async def _look(self) -> None:
        try:
            while self._streams:
                await asyncio.sleep(CHECK_SECONDS)
                self._count()
        finally:
            self._task = None

    def _count(self) -> None:
        groups = dict.fromkeys(self._streams.values())
        self._misses = {group: 0 if self._backend.leader(group) else self._misses.get(group, 0) + 1 for group in groups}
        for lost, group in list(self._streams.items()):
            if self._misses[group] >= MAX_MISSES:
                del self._streams[lost]
                lost(NoLeader())

"""Ends streams on a node that has lost the leaders that they depend on.

It may be cut off from the majority, and would be silent for as long as that lasts, while others serve. So all watches
of ``nebula.v1`` end, whose clients go on at another node, and those of etcd's streams that say ``hasleader`` (etcd 44).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Final

from nebuladb.errors import NebulaError, NoLeader

HAS_LEADER: Final = "hasleader"
CHECK_SECONDS: Final = 1.0
"""The longest election timeout."""
MAX_MISSES: Final = 3
"""Looks that find no leader, one after the other, until a stream is given up: to connect anew costs its client more
than to wait for an election (as etcd's monitorLeader)."""

Lost = Callable[[NebulaError], None]


def wanted(metadata: Any) -> bool:
    """Whether a call of etcd's came with it."""
    return any(key == HAS_LEADER and value == "true" for key, value in metadata or ())


class _Stream:
    """Which groups it depends on, and what to call when one has no leader."""

    __slots__ = ("groups", "lost")

    def __init__(self, groups: Collection[int], lost: Lost) -> None:
        self.groups = groups
        self.lost = lost


class Leadership:
    """Looks at the leaders of the groups that streams depend on, while there are such streams."""

    def __init__(self, leader: Callable[[int], int]) -> None:
        """`leader(group)`: node id of its leader as this node knows it; 0 = unknown."""
        self._leader = leader
        self._streams: dict[_Stream, None] = {}
        self._groups: Counter[int] = Counter()
        """Group → how many streams depend on it."""
        self._misses: dict[int, int] = {}
        """Group → looks that have found no leader, if the last one has."""
        self._task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether it looks at any."""
        return self._task is not None

    def check(self, group: int) -> None:
        """Raises `NoLeader` if this node knows no leader of `group`."""
        if not self._leader(group):
            raise NoLeader

    @contextmanager
    def required(self, context: Any, group: int, lost: Lost) -> Iterator[None]:
        """Of etcd's calls: `followed`, if the call says so. Raises `NoLeader` if there is none now."""
        if not wanted(context.invocation_metadata()):
            yield
            return
        self.check(group)
        with self.followed((group,), lost):
            yield

    @contextmanager
    def followed(self, groups: Collection[int], lost: Lost) -> Iterator[None]:
        """While this is open, `lost` is called once when the leader of one of `groups` is gone for good."""
        stream = _Stream(groups, lost)
        self._streams[stream] = None
        self._groups.update(groups)
        if self._task is None:
            self._task = asyncio.create_task(self._look(), name="leadership")
        try:
            yield
        finally:
            self._forget(stream)

    def _forget(self, stream: _Stream) -> None:
        if stream not in self._streams:
            return
        del self._streams[stream]
        for group in stream.groups:
            self._groups[group] -= 1
            if not self._groups[group]:
                # Who comes back, having found no better node, is given as much time as before.
                del self._groups[group]
                self._misses.pop(group, None)

    async def _look(self) -> None:
        try:
            while self._streams:
                await asyncio.sleep(CHECK_SECONDS)
                self._count()
        finally:
            self._task = None

    def _count(self) -> None:
        self._misses = {group: self._misses.get(group, 0) + 1 for group in self._groups if not self._leader(group)}
        gone = {group for group, misses in self._misses.items() if misses >= MAX_MISSES}
        if not gone:
            return
        for stream in [stream for stream in self._streams if not gone.isdisjoint(stream.groups)]:
            self._forget(stream)
            stream.lost(NoLeader())

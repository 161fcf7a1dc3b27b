"""Requests that wait until compaction's work is done: what was superseded is deleted on this node (etcd 25)."""

from __future__ import annotations

import asyncio
from typing import Final

from nebuladb.env import probe
from nebuladb.errors import NebulaError, TooManyRequests
from nebuladb.kv.store import Store

MAX_WAITING: Final = 1_000
"""Requests that wait at a time."""


class Reclaims:
    """For the loop's thread. `settle` is called after every slice of background work."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[Store, int, asyncio.Future[None]]] = []

    def wait(self, store: Store, revision: int) -> asyncio.Future[None]:
        """Done when `store` has deleted what a compaction at `revision` superseded; whoever doesn't wait any longer
        cancels it. Raises `TooManyRequests`; the future, `Unavailable` if the store is replaced."""
        self._forget()
        if len(self._waiting) >= MAX_WAITING:
            raise TooManyRequests(f"{MAX_WAITING} requests wait for compactions already")
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append((store, revision, future))
        self.settle()
        if not future.done():
            probe("client waits for the deletion")
        return future

    def settle(self) -> None:
        """Answer those whose wait is over."""
        if not self._waiting:
            return
        for store, revision, future in self._waiting:
            if future.done():
                continue
            try:
                if store.reclaimed(revision):
                    future.set_result(None)
            except NebulaError as error:
                future.set_exception(error)
        self._forget()

    def _forget(self) -> None:
        self._waiting = [wait for wait in self._waiting if not wait[2].done()]

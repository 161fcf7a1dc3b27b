"""The data store's tables: flushed when the node wants that, compacted where it is short of space, each in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from nebuladb.node.node import Node


class Tables:
    """One flush and one compaction at a time, side by side: while much is compacted the log is cut all the same."""

    def __init__(
        self,
        node: Node,
        wake: Callable[[], None],
        failed: Callable[[BaseException], None],
        writes: Callable[[], None],
    ) -> None:
        """`wake`: a turn is to be taken; `writes`: a flush begins, or has ended."""
        self._node = node
        self._wake = wake
        self._failed = failed
        self._writes = writes
        self._loop = asyncio.get_running_loop()
        self._flush: asyncio.Task[None] | None = None
        self._compaction: asyncio.Task[None] | None = None
        self._stopped = False

    def look(self) -> None:
        """Begin what is due."""
        if self._stopped:
            return
        if self._node.flush_wanted:
            self.flush()
        if self._compaction is None and self._node.vacuum.ready:
            self._compaction = self._begin(self._compact(), "compaction")

    def flush(self) -> None:
        """Begin a flush, unless one runs."""
        if self._flush is None and not self._stopped:
            self._flush = self._begin(self._flush_data(), "flush")

    async def stop(self) -> None:
        """Begin nothing more, and wait for what runs: its thread is in the engine, which is closed next. A compaction
        ends with its step."""
        self._stopped = True
        running = [task for task in (self._flush, self._compaction) if task is not None]
        if running:
            await asyncio.wait(running)

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return self._loop.create_task(work, name=name)

    async def _flush_data(self) -> None:
        try:
            flush = self._node.begin_flush()
            self._writes()
            await asyncio.to_thread(self._node.data.flush)
            self._writes()
            self._node.end_flush(flush)
            self._wake()
        except Exception as error:
            self._failed(error)
        finally:
            self._flush = None

    async def _compact(self) -> None:
        vacuum, host = self._node.vacuum, self._node.host
        try:
            spans = vacuum.begin(host.now)
            whole = await asyncio.to_thread(self._node.data.compact, spans, lambda: self._stopped)
            vacuum.end(host.now, whole=whole)
            self._wake()
        except Exception as error:
            self._failed(error)
        finally:
            self._compaction = None

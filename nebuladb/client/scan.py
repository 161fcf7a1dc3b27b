"""A scan's way through its pages and over breaks, and what a caller sees of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

from nebuladb.client.items import Items, SyncItems, Work
from nebuladb.client.types import TO_THE_END, KeyValue, key_value
from nebuladb.pb.nebula.v1 import kv_pb2


class ScanPlan:
    """What is left of a scan. Pure.

    After a break `request` goes on behind the last key that was seen, at each shard's revision of the first page.
    """

    def __init__(self, request: kv_pb2.ScanRequest) -> None:
        self.request = request
        self.done = False
        self._limited = request.limit > 0

    def absorb(self, page: kv_pb2.ScanResponse) -> list[KeyValue]:
        """A page's rows."""
        if page.revisions and not self.request.revisions:
            self.request.revisions.extend(page.revisions)
        if page.kvs:
            self.request.key = page.kvs[-1].key + b"\0"
            if self._limited:
                self.request.limit -= len(page.kvs)
                # 0 would mean "no limit".
                self.done = self.request.limit <= 0
        return [key_value(kv) for kv in page.kvs]

    @property
    def revisions(self) -> dict[int, int]:
        """Shard → the revision that is read in it; empty before the first page."""
        return {pair.group: pair.revision for pair in self.request.revisions}

    def resume(self) -> None:
        """Prepare `request` for another try."""
        end = self.request.range_end
        if end not in (b"", TO_THE_END) and self.request.key >= end:
            self.done = True


class Rows(Items[KeyValue]):
    """The rows of `AsyncClient.scan`."""

    def __init__(self, plan: ScanPlan, rows: AsyncGenerator[list[KeyValue], None]) -> None:
        super().__init__(rows)
        self._plan = plan

    @property
    def revisions(self) -> dict[int, int]:
        """Shard → the revision that is read in it; empty until there was a row, or the end.

        A watch that misses nothing since begins behind them:
        ``start_revisions={shard: revision + 1 for shard, revision in rows.revisions.items()}``.
        """
        return self._plan.revisions


class SyncRows(SyncItems[KeyValue]):
    """The rows of `Client.scan`."""

    def __init__(
        self, rows: Rows, run: Callable[[Coroutine[Any, Any, None]], None], leave: Callable[[Work], None]
    ) -> None:
        super().__init__(rows, run, leave)
        self._rows = rows

    @property
    def revisions(self) -> dict[int, int]:
        """As those of `Rows`."""
        return self._rows.revisions

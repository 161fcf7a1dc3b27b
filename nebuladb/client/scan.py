"""A scan's way through its pages and over breaks. Pure."""

from __future__ import annotations

from nebuladb.client.types import TO_THE_END, KeyValue, key_value
from nebuladb.pb.nebula.v1 import kv_pb2


class ScanPlan:
    """What is left of a scan.

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

    def resume(self) -> None:
        """Prepare `request` for another try."""
        end = self.request.range_end
        if end not in (b"", TO_THE_END) and self.request.key >= end:
            self.done = True

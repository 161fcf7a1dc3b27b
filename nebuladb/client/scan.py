"""A scan's way through its pages and over breaks. Pure."""

from __future__ import annotations

from nebuladb.client.types import TO_THE_END, KeyValue, key_value
from nebuladb.errors import Unavailable
from nebuladb.pb.nebula.v1 import kv_pb2


class ScanPlan:
    """What is left of a scan.

    After a break `request` goes on behind the last key that was seen, at the revision of the first page (S24). A scan
    over several shards reads a revision in each and the wire can name only one, so such a scan can't go on.
    """

    def __init__(self, request: kv_pb2.ScanRequest) -> None:
        self.request = request
        self.done = False
        self._limited = request.limit > 0
        self._shards = 0
        self._started = False

    def absorb(self, page: kv_pb2.ScanResponse) -> list[KeyValue]:
        """A page's rows."""
        if page.revisions and not self._shards:
            self._shards = len(page.revisions)
            if self._shards == 1 and not self.request.revision:
                self.request.revision = page.revisions[0].revision
        if page.kvs:
            self._started = True
            self.request.key = page.kvs[-1].key + b"\0"
            if self._limited:
                self.request.limit -= len(page.kvs)
                # 0 would mean "no limit".
                self.done = self.request.limit <= 0
        return [key_value(kv) for kv in page.kvs]

    def resume(self) -> None:
        """Prepare `request` for another try; raises `Unavailable` if what was seen can't be continued."""
        if self._started and not self.request.revision:
            raise Unavailable("the scan was cut off, and one over several shards can't be continued: start it again")
        if not self._started:
            self._shards = 0
        end = self.request.range_end
        if end not in (b"", TO_THE_END) and self.request.key >= end:
            self.done = True

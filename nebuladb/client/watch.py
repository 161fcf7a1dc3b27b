"""A watch's way over breaks: no event twice, none left out. Pure."""

from __future__ import annotations

from nebuladb.client.errors import Failure
from nebuladb.client.types import Event, event
from nebuladb.errors import Compacted, Unavailable
from nebuladb.pb.nebula.v1 import kv_pb2


class WatchPlan:
    """Where a watch has come.

    `request.start_revision` is the next revision that was not seen, so that the request as it stands continues the
    watch on any node. That is exact because a revision is never spread over responses, and a response without events
    says how far the watch has come.
    """

    def __init__(self, request: kv_pb2.WatchRequest) -> None:
        request.progress = True  # so that an idle watch isn't overtaken by compaction
        self.request = request

    def absorb(self, response: kv_pb2.WatchResponse) -> list[Event] | Failure:
        """A response's events, or why the server ended the watch. Raises `Compacted`: events were lost for good."""
        if response.compact_revision:
            raise Compacted(
                f"the watch's next revision, {self.request.start_revision}, has been compacted away;"
                f" read the keys and watch from there (oldest revision: {response.compact_revision})",
                response.compact_revision,
            )
        if response.canceled:
            reason = response.cancel_reason or "no reason given"
            return Failure(Unavailable(f"the node ended the watch: {reason}"), retryable=True)
        start = self.request.start_revision
        if response.created:
            # From now on means: after what the shard had when the watch began.
            if not start:
                self.request.start_revision = response.header.revision + 1
            return []
        if not response.events:
            self._advance(response.header.revision + 1)
            return []
        self._advance(max(e.kv.mod_revision for e in response.events) + 1)
        return [event(e) for e in response.events if e.kv.mod_revision >= start]

    def _advance(self, revision: int) -> None:
        self.request.start_revision = max(self.request.start_revision, revision)

    @staticmethod
    def ended(address: str) -> Failure:
        """The stream ended without a word."""
        return Failure(Unavailable(f"{address} ended the watch"), retryable=True, lost=True)

"""A watch's way over breaks: no event twice, none left out. Pure."""

from __future__ import annotations

from nebuladb.client.errors import Failure
from nebuladb.client.types import Event, event
from nebuladb.errors import Compacted, Unavailable
from nebuladb.pb.nebula.v1 import kv_pb2


class WatchPlan:
    """Where a watch has come in each shard.

    `request.start_revisions` are the next revisions that were not seen, so that the request continues the watch on any
    node. That is exact because a revision is told whole, and a response without events says how far its shard's part of
    the watch has come.
    """

    def __init__(self, request: kv_pb2.WatchRequest) -> None:
        request.progress = True  # so that an idle watch isn't overtaken by compaction
        self._request = request
        self._next = {pair.group: pair.revision for pair in request.start_revisions}
        self._fragments: dict[int, list[Event]] = {}

    @property
    def request(self) -> kv_pb2.WatchRequest:
        """What continues the watch. Made when it is asked for, not with each response: it lists all shards."""
        del self._request.start_revisions[:]
        for shard, following in sorted(self._next.items()):
            self._request.start_revisions.add(group=shard, revision=following)
        return self._request

    def absorb(self, response: kv_pb2.WatchResponse) -> list[Event] | Failure:
        """A response's events, or why the server ended the watch. Raises `Compacted`: events were lost for good."""
        group, revision = response.header.group, response.header.revision
        start = self._next.get(group, self._request.start_revision)
        if response.compact_revision:
            raise Compacted(
                f"the watch's next revision, {start}, has been compacted away;"
                f" read the keys and watch from there (oldest revision: {response.compact_revision})",
                response.compact_revision,
            )
        if response.canceled:
            reason = response.cancel_reason or "no reason given"
            return Failure(Unavailable(f"the node ended the watch: {reason}"), retryable=True)
        if response.created:
            # From now on means: after what the shard had when the watch began.
            self._fragments.pop(group, None)
            self._advance(group, start or revision + 1)
            return []
        if not response.events:
            self._advance(group, revision + 1)
            return []
        happened = [event(e, group) for e in response.events if e.kv.mod_revision >= start]
        if response.fragment:
            # Told only once it is whole, so that a break in between neither repeats nor loses a part.
            self._fragments.setdefault(group, []).extend(happened)
            return []
        self._advance(group, max(e.kv.mod_revision for e in response.events) + 1)
        return self._fragments.pop(group, []) + happened

    def _advance(self, group: int, revision: int) -> None:
        self._next[group] = max(self._next.get(group, 0), revision)

    @staticmethod
    def ended(address: str) -> Failure:
        """The stream ended without a word."""
        return Failure(Unavailable(f"{address} ended the watch"), retryable=True, lost=True)

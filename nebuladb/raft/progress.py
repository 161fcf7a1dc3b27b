"""What a leader knows of one replica's log, and how fast it may send to it."""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Final


class ProgressState(Enum):
    """PROBE: one append at a time, to find where the logs meet. REPLICATE: pipelined. SNAPSHOT: none until it is in."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


PROBE: Final = ProgressState.PROBE
REPLICATE: Final = ProgressState.REPLICATE
SNAPSHOT: Final = ProgressState.SNAPSHOT
"""Bound once: see `raft.state.LEADER`."""


class Progress:
    """One replica as its leader sees it. Invariant: match < next."""

    __slots__ = (
        "_inflights", "_max_bytes", "_max_count", "_round", "_seen", "active", "caught_up", "inflight_bytes", "match",
        "next", "paused", "pending_snapshot", "sent_commit", "stalled", "state", "was_active",
    )  # fmt: skip

    def __init__(self, following: int, max_count: int, max_bytes: int) -> None:
        """`following`: see `next`. Appends on their way to it are bounded by count and by bytes of entries; the last
        one that is let in may exceed the bytes."""
        self.match = 0
        """Last index that this replica is known to hold durably."""
        self.next = following
        """Index of the next entry to send."""
        self.state: ProgressState = PROBE
        self._inflights: deque[tuple[int, int]] = deque()  # (last index, bytes of entries) of each append on its way
        self._max_count = max_count
        self._max_bytes = max_bytes
        self.inflight_bytes = 0
        """Of entries that are on their way."""
        self.active = False
        """Heard from since the last check of the quorum."""
        self.was_active = False
        """The same, as that check found it."""
        self.caught_up = False
        """It took what the log held within an election timeout, so that its vote wouldn't stop the group (S13)."""
        self.paused = False
        """No entry may be sent to it now. PROBE: an append is out, and the next waits for its answer, or for a
        heartbeat to say that it was lost; REPLICATE: as much is on its way as may be; SNAPSHOT: always."""
        self.pending_snapshot = 0
        self.sent_commit = 0
        """Highest commit index that it was told."""
        self.stalled = False
        """Nothing came of what was sent since the heartbeat before the last."""
        self._seen = -1
        self._round = (-1, 0)  # what it must hold for this round to end, and how many ticks the round has taken

    @property
    def lives(self) -> bool:
        """Whether it was heard from in this period or the one before."""
        return self.active or self.was_active

    def due(self, last: int, commit: int) -> bool:
        """Whether anything is to be sent to it of a log that ends at `last` and is committed up to `commit`: entries;
        a commit index that covers more of what it was sent; or, after a snapshot, the question whether it has that."""
        if self.next <= last and not self.paused:
            return True
        if self.state is REPLICATE:
            return self.sent_commit < commit and self.sent_commit < self.next - 1
        return self.state is PROBE and not self.paused and self.match < self.next - 1

    def sent(self, last: int, size: int) -> None:
        """An append was sent that ends at index `last` and holds `size` bytes of entries, none if 0."""
        if self.state is not REPLICATE:
            self.paused = True
        elif size:
            self.next = last + 1
            self._inflights.append((last, size))
            self.inflight_bytes += size
            self.paused = self._full()

    def acknowledged(self, index: int) -> bool:
        """It holds the log up to `index`. Returns whether that is news. Repeated and late calls change nothing."""
        if index < self.match or (index == self.match and self.state is not PROBE):
            return False
        news = index > self.match
        self.match = index
        self.next = max(self.next, index + 1)
        if self.state is REPLICATE:
            sent = self._inflights
            while sent and sent[0][0] <= index:
                self.inflight_bytes -= sent.popleft()[1]
            self.paused = self._full()
        elif self.state is PROBE or index >= self.pending_snapshot:
            self.become_replicate()
        return news

    def rejected(self, index: int, hint: int) -> bool:
        """It refused an append after `index`; `hint` is the last that could match. Returns False if that is stale.

        A rejection at or below `match` is: messages are repeated and overtake each other. A replica that has really
        lost what it acknowledged sees that itself, by the next heartbeat (`Following.on_heartbeat`, S15).
        """
        if index <= self.match:
            return False
        if self.state is REPLICATE:
            self.become_probe()
            return True
        if self.state is SNAPSHOT or self.next - 1 != index:
            return False
        self.next = max(min(index, hint + 1), self.match + 1)
        self.paused = False
        return True

    def heartbeat(self) -> None:
        """A heartbeat goes out: note whether anything moved since the one before."""
        waiting = self.paused if self.state is PROBE else self.match < self.next - 1
        self.stalled = waiting and self.match == self._seen
        self._seen = self.match if waiting else -1

    def measure(self, last: int, ticks: int, limit: int) -> None:
        """`ticks` more have passed and the log ends at `last`: see to its rounds. In each the replica is to take what
        the log held at the round's start, and it has caught up if that took `limit` ticks at most (thesis §4.2.1)."""
        target, taken = self._round
        taken += ticks
        if target < 0:
            self._round = (last, 0)
        elif self.match >= target:
            self.caught_up = taken <= limit
            self._round = (last, 0)
        else:
            self.caught_up = self.caught_up and taken <= limit
            self._round = (target, taken)

    def become_probe(self) -> None:
        """Find out anew where the logs meet; after a snapshot, right behind it."""
        self.next = max(self.match, self.pending_snapshot) + 1
        self.sent_commit = 0
        self._become(PROBE)

    def become_replicate(self) -> None:
        """The logs met at `match`: stream from there."""
        self.next = self.match + 1
        self._become(REPLICATE)

    def become_snapshot(self, index: int) -> None:
        """A snapshot at `index` is on its way; no entry helps before it is in."""
        self._become(SNAPSHOT)
        self.pending_snapshot = index

    def _full(self) -> bool:
        """Whether as much is on its way as may be."""
        return len(self._inflights) >= self._max_count or self.inflight_bytes >= self._max_bytes

    def _become(self, state: ProgressState) -> None:
        self.state = state
        self.paused = state is SNAPSHOT
        self.stalled = False
        self.pending_snapshot = 0
        self._seen = -1
        self._inflights.clear()
        self.inflight_bytes = 0

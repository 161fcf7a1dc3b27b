"""A group's lease clock and what is due by it (S27, ``docs/architecture.md``).

The clock is the last value that this replica saw in an entry, and what has passed since by a clock that counts
suspension. So it never runs ahead of what the entries say, and no lease expires early, whoever leads. The heap lies
outside the state machine. Every replica builds it from its store once and keeps it up to date by what entries change,
so that a new leader has it at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final

CLOCK_ENTRY_MS: Final = 500
"""While leases exist, an idle group gets an entry at least this often, so that a new leader knows the time."""
EXPIRE_RETRY_MS: Final = 2_000
"""A proposed expiry that was not applied by then is proposed again."""
MAX_DUE: Final = 1_000
"""Expiries proposed in one tick."""
STALE_AT_ONCE: Final = 4_000
"""Heap entries of renewed and gone leases that one tick looks at: 20 ms. A new leader has one for each lease that was
renewed while it followed."""
STALE_ENTRIES: Final = 1_000
"""Heap entries of gone leases, beyond one a lease, that may lie about: of those that were revoked long before their
time."""
GONE_AT_ONCE: Final = 2
"""Such entries that are taken out when one more lease has gone, where they are the first of the heap. Else they would
gather on a follower, which asks for nothing due, and all be looked through at once."""

_Lease = tuple[int, int, int]
"""When it expires; its last renewal; the time of its one entry in the heap, which is no later than it is due. A renewal
leaves that alone: it is put off when it is met."""


class Lessor:
    """`expires` is in ms of the lease clock; `renewal` names the entry that last renewed the lease."""

    def __init__(self, clock: int, now: int, leases: Iterable[tuple[int, int, int]]) -> None:
        self._base = (clock, now)
        self._leases: dict[int, _Lease] = {lease: (expires, renewal, expires) for lease, expires, renewal in leases}
        self._heap: list[tuple[int, int]] = []
        self._schedule()
        self._last_entry = now

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def scheduled(self) -> int:
        """Entries in the heap, stale ones included: at most 2 x leases + `STALE_ENTRIES`."""
        return len(self._heap)

    def clock(self, now: int) -> int:
        """The lease clock at boottime `now`, both in ms."""
        value, at = self._base
        return value + max(0, now - at)

    def observe(self, clock: int, now: int, *, leads: bool) -> None:
        """An entry with `clock` was handed out for applying at boottime `now`; `leads`: to the group's leader.

        A leader's own clock draws the line, and its entries come back to it late. Everybody else follows the line, back
        to it too: a clock that runs faster than the leader's would get further ahead all the time, and on the day when
        its owner leads every lease would be shorter by that much.
        """
        self._last_entry = now
        if not leads:
            self._base = (max(clock, self._base[0]), now)
        elif clock > self.clock(now):
            self._base = (clock, now)

    def changed(self, lease: int, expires: int, renewal: int) -> None:
        """The lease was granted, renewed, or (`expires` = 0) is gone."""
        if expires:
            known = self._leases.get(lease)
            at = expires
            if known is not None and known[2] <= expires:
                at = known[2]
            else:
                heappush(self._heap, (at, lease))
            self._leases[lease] = (expires, renewal, at)
        elif self._leases.pop(lease, None) is not None:
            for _ in range(GONE_AT_ONCE):
                if self._heap and self._stale(*self._heap[0]):
                    heappop(self._heap)
        if len(self._heap) > 2 * len(self._leases) + STALE_ENTRIES:
            self._schedule()

    def _stale(self, at: int, lease: int) -> bool:
        """Whether an entry of the heap is of no lease, or not the one that the lease has now."""
        known = self._leases.get(lease)
        return known is None or known[2] != at

    def leases(self) -> dict[int, _Lease]:
        """All there are, as of what was applied; a copy, of a million in 15 ms."""
        return self._leases.copy()

    def wants_entry(self, now: int) -> bool:
        """Whether the leader should propose an entry just to carry the clock; counts as proposed if so."""
        if not self._leases or now - self._last_entry < CLOCK_ENTRY_MS:
            return False
        self._last_entry = now
        return True

    def due(self, now: int) -> list[tuple[int, int]]:
        """(lease, renewal) of leases that the leader should propose to expire, at most `MAX_DUE`; others come when
        what is stale before them is gone."""
        clock, heap = self.clock(now), self._heap
        due: list[tuple[int, int]] = []
        stale = 0
        while heap and heap[0][0] <= clock and len(due) < MAX_DUE and stale < STALE_AT_ONCE:
            at, lease = heap[0]
            if self._stale(at, lease):
                heappop(heap)
                stale += 1
                continue
            expires, renewal, _ = self._leases[lease]
            if expires > at and expires > clock:
                stale += 1
                at = expires
            else:
                due.append((lease, renewal))
                at = clock + EXPIRE_RETRY_MS
            heapreplace(heap, (at, lease))
            self._leases[lease] = (expires, renewal, at)
        return due

    def _schedule(self) -> None:
        """Build the heap from the leases there are."""
        self._heap = [(at, lease) for lease, (_, _, at) in self._leases.items()]
        heapify(self._heap)

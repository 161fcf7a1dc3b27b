"""Reads by a leader's lease: for a while after a round of heartbeats, no other replica can lead (S9, S10).

A voter that answered a heartbeat refuses its vote to others for the least election timeout after it came, and one that
has just started refuses it as long, for it may have answered and forgotten it. So nobody else can be elected before the
least election timeout has passed since the heartbeats were *sent*. The lease is shorter than that: by a tick, since a
voter's first tick may come at once, and by a fifth, by which the clocks of two nodes may differ in speed.

What the caller owes it: times of a clock that counts suspension, and, when it asks whether the lease holds, one that
was read *after* the read came in. (Read earlier, it could be of before a sleep of the process, in which another led.)
"""

from __future__ import annotations

from typing import Final

from nebuladb.node.output import TICK_MS
from nebuladb.raft.configuration import Configuration

CLOCK_PART: Final = 5
"""Two nodes' clocks differ in speed by less than this part: one of them loses at most 12 minutes in an hour."""
MAX_ASKED: Final = 8
"""Rounds that are remembered until they are confirmed; the reads' own bound is lower."""


def lease_length(election_ticks: int) -> int:
    """For how long a lease holds from the beginning of its round on, in ms; see the module."""
    whole = (election_ticks - 1) * TICK_MS
    return whole - whole // CLOCK_PART


def longest(length: int) -> float:
    """For how long it may hold by another node's clock, in ms."""
    return length * CLOCK_PART / (CLOCK_PART - 1)


class ReadLease:
    """One replica's, of whichever term it leads: all that it holds by is of the round that was confirmed last."""

    def __init__(self, length: int) -> None:
        """`length` in ms; 0: it never holds."""
        self.length = length
        self._asked: dict[int, tuple[int, int, Configuration]] = {}
        self._term = self._until = 0
        self._configuration = Configuration()
        self._given_up = 0

    def asked(self, context: int, boottime: int, term: int, configuration: Configuration) -> None:
        """A round of this leader's begins; `boottime`: no later than its first heartbeat."""
        if self.length:
            self._asked[context] = boottime, term, configuration
            while len(self._asked) > MAX_ASKED:
                del self._asked[next(iter(self._asked))]

    def confirmed(self, context: int) -> None:
        """A majority has answered that round."""
        if context in self._asked:
            boottime, self._term, self._configuration = self._asked.pop(context)
            self._until = boottime + self.length

    def holds(self, boottime: int, term: int, configuration: Configuration) -> bool:
        """Whether nobody else led at `boottime`. Not after a change of members: others may have elected."""
        mine = self._term == term != self._given_up and self._configuration == configuration
        return mine and boottime < self._until

    def give_up(self, term: int) -> None:
        """Leadership is about to be handed over: whoever is told to may be elected at once (S10). Not in this term
        any more."""
        self._given_up = term

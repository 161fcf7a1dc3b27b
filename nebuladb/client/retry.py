"""When to try again, where, and what to say in the end. Pure: it never waits, sends or asks the time."""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from nebuladb.client.endpoints import Endpoints
from nebuladb.client.errors import Failure
from nebuladb.env import Rng
from nebuladb.errors import NebulaError, Outcome, Reason, Unavailable, UnknownOutcome

FIRST_PAUSE: Final = 0.02
LONGEST_PAUSE: Final = 0.5
"""Seconds between two rounds over the endpoints: doubled each time, and half of it random."""

SHARES: Final = 3
READ_SHARES: Final = 6
"""A request that may be repeated gives one node this part of its time, a read the smaller one: a node that hangs must
not use it all up. A try that took all of its time gives the next one a share more, since what takes longer than one
share would never end; where every disk is slow, each try of a write would only make another log entry. So a read has
three tries, of a sixth, a third and half of its time. If two of three nodes hang, or of five, it still reaches one that
answers."""
SILENT: Final = 0.8
"""A try took all of its time if it took this part of it."""

LEAST: Final = 0.3
LEAST_PART: Final = 5
"""No try of a write begins with less than these seconds left, or than this part of the request's time if that is less:
a node that can't do it would have no time to say so, and a write that has failed so far would become *unknown*."""

CONNECT: Final = 1.0
"""Seconds at most to wait for a connection."""

RECORDED: Final = frozenset(
    {
        Reason.INVALID_ARGUMENT,
        Reason.REQUEST_TOO_LARGE,
        Reason.TOO_MANY_OPERATIONS,
        Reason.DUPLICATE_KEY,
        Reason.RESULT_TOO_LARGE,
        Reason.COMPACTED,
        Reason.FUTURE_REVISION,
        Reason.LEASE_NOT_FOUND,
        Reason.LEASE_EXISTS,
        Reason.LEASE_TTL_TOO_LARGE,
        Reason.TOO_MANY_LEASES,
    }
)
"""Refusals by the state machine, which a session keeps: to a repeat they are the first try's answer. Any other one
says nothing about an earlier try. (Try 1 is lost and has committed; try 2 meets a node without a leader.)"""


class Kind(Enum):
    """What a request may do, hence what may be repeated."""

    READ = 1
    """It changes nothing that anybody would miss, if nobody hears that it was done."""
    WRITE = 2
    """A second execution would be another write."""
    ONCE = 3
    """A write with a session: the shard executes it once, however often it comes (S20)."""
    AGAIN = 4
    """A change that a second execution leaves as it is: it is repeated like a READ, and in doubt like a write."""


def may_repeat(kind: Kind, failure: Failure) -> bool:
    """Whether another attempt is safe and makes sense."""
    if kind is Kind.ONCE and failure.error.outcome is Outcome.UNKNOWN:
        return failure.error.reason is not Reason.SESSION_EXPIRED
    if kind is Kind.WRITE and failure.error.outcome is Outcome.UNKNOWN:
        return False
    return failure.retryable or (kind is not Kind.WRITE and failure.error.reason is Reason.UNKNOWN_OUTCOME)


class Try(NamedTuple):
    """Ask this node, and give it so many seconds, of which `connect` for the connection. Send nothing if not more than
    `least` are left then."""

    address: str
    seconds: float
    connect: float
    least: float = 0.0


class Attempts:
    """One request's way through its attempts.

    The driver does what `next` says, then tells `worked` or `failed`; the latter says how long to pause, or raises what
    the caller shall see.
    """

    def __init__(
        self, kind: Kind, endpoints: Endpoints, rng: Rng, *, timeout: float, now: float, pinned: str = ""
    ) -> None:
        """`timeout`: seconds for all attempts together. `pinned`: ask this node only, and give up if it is away."""
        self._kind = kind
        self._endpoints = endpoints
        self._rng = rng
        self._timeout = timeout
        self._deadline = now + timeout
        self._pinned = pinned
        self._tried: set[str] = set()
        self._strange: set[str] = set()
        """Those that don't know the request."""
        self._pause = FIRST_PAUSE
        self._failed = False
        self._silent = 0
        """Tries that took all of their time."""
        self._seconds = 0.0
        """That of the present try."""
        self._patience = 0.0
        """From when on it has taken all of it."""
        self._doubt = False
        """An earlier attempt may have taken effect."""
        self._said: NebulaError | None = None
        """What a node answered last."""

    def next(self, now: float) -> Try:
        """The next attempt."""
        left = max(self._deadline - now, 0.001)
        address = self._pinned or self._endpoints.pick(self._tried, now)
        repeatable = self._kind is not Kind.WRITE and not self._pinned
        shares = READ_SHARES if self._kind is Kind.READ else SHARES
        seconds = min(left, self._timeout / shares * (1 + self._silent)) if repeatable else left
        self._seconds = seconds
        self._patience = now + seconds * SILENT
        return Try(address, seconds, min(seconds, CONNECT), self._least())

    def worked(self, address: str, now: float) -> None:
        """The node answered. Of a stream: it made progress, so that time and pauses start afresh."""
        self._endpoints.worked(address, after_failure=self._failed and not self._pinned)
        self._failed = False
        self._silent = 0
        self.waited(now)
        self._tried.clear()
        self._pause = FIRST_PAUSE
        self._said = None

    def waited(self, now: float) -> None:
        """The time starts afresh: until `now` the stream waited for its reader, and not for the node."""
        self._deadline = now + self._timeout
        self._patience = now + self._seconds * SILENT

    def failed(self, address: str, failure: Failure, now: float) -> float:
        """Seconds to pause before `next`; raises the final `NebulaError` if there shall be none."""
        self._tried.add(address)
        self._failed = True
        self._silent += now >= self._patience
        if failure.lost:
            self._endpoints.lost(address, now)
        else:
            self._said = failure.error
        if failure.strange:
            self._strange.add(address)
            self._said = self._said or failure.error
        if failure.leader_address and failure.leader_address not in self._tried:
            self._endpoints.hint(failure.leader_address)
        pause = self._pause_after(failure)
        gone = bool(self._pinned) and failure.lost
        if gone or self._endpoints.all_tried(self._strange) or not may_repeat(self._kind, failure):
            raise self._final(failure)
        self._doubt |= failure.error.outcome is Outcome.UNKNOWN
        if now + pause + self._least() >= self._deadline:
            if failure.error.reason is Reason.NO_LEADER and not self._pinned:
                # Perhaps it alone is cut off from the majority, and keeps each write for all the time there is.
                self._endpoints.lost(address, now)
            raise self._final(failure)
        return pause

    def _least(self) -> float:
        """What is in doubt already can't become worse by another try."""
        return 0.0 if self._kind is Kind.READ or self._doubt else min(LEAST, self._timeout / LEAST_PART)

    def _pause_after(self, failure: Failure) -> float:
        """None before a node that wasn't asked yet, unless too much is being asked already."""
        overloaded = failure.error.reason is Reason.TOO_MANY_REQUESTS
        if not (overloaded or self._pinned or self._endpoints.all_tried(self._tried)):
            return 0.0
        self._tried.clear()
        micros = int(self._pause * 1_000_000)
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
        pause = self._rng.randrange(micros // 2, micros + 1) / 1_000_000
        return max(pause, min(failure.retry_after, LONGEST_PAUSE))

    def _final(self, failure: Failure) -> NebulaError:
        error = failure.error
        if self._kind is Kind.READ and error.reason is Reason.UNKNOWN_OUTCOME:
            # What it would have changed nobody misses; a session that may be open, say, must not put a write in doubt.
            final: NebulaError = Unavailable(f"the last try failed: {error.message}")
            final.__cause__ = error
            return final
        if self._kind is Kind.READ or not self._doubt:
            # That a node has no leader says more than that the others are away.
            unanswered = failure.lost and error.outcome is Outcome.FAILED and not self._pinned
            return self._said if unanswered and self._said is not None else error
        if error.reason in RECORDED:
            return error
        if error.reason is Reason.SESSION_EXPIRED or (self._kind is Kind.AGAIN and not failure.retryable):
            error.outcome = Outcome.UNKNOWN
            return error
        if error.outcome is Outcome.UNKNOWN:
            return error
        final = UnknownOutcome(f"an earlier try may have taken effect; the last one failed: {error.message}")
        final.__cause__ = error
        return final

"""One group's writes that this node's clients wait for: from the queue to the log, or to the leader, to the answer.

A write is WAITING until it is proposed here or forwarded; then its client can no longer be told *failed* on a mere
suspicion (S19). SENT: forwarded, no reply yet. PLACED: it stands at (index, term) of some leader's log; if another
term's entry is applied at that index it certainly failed, and if it is applied its answer comes from this node's own
store. A lost link or a deadline after WAITING means *unknown*.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Final

from nebuladb.env import probe
from nebuladb.errors import NebulaError, NoLeader, NotLeader, TooManyRequests, Unavailable, UnknownOutcome
from nebuladb.ids import META_GROUP
from nebuladb.kv.answer import Answer
from nebuladb.kv.command import Kind
from nebuladb.node.entry import command_kind
from nebuladb.node.output import Request
from nebuladb.share import Share

MAX_PENDING: Final = 20_000
"""Writes of one group that this node's clients may wait for."""
MAX_NODE_PENDING: Final = 50_000
"""Of all groups together: each is some objects in memory, however small its command is."""
MAX_PENDING_BYTES: Final = 64 << 20
"""Of all groups, where the node gives no share of its memory for them."""
GROUP_PART: Final = 2
"""One group may take this part of the node's bytes: a shard that stands still must not take them from all others."""
MAX_CONTROL: Final = 10_000
"""Control commands of one group, which no other bound holds back."""
CONTROL: Final = frozenset(
    (
        Kind.CLOCK,
        Kind.COMPACT,
        Kind.LEASE_REVOKE,
        Kind.LEASE_KEEP_ALIVE,
        Kind.LEASE_EXPIRE,
        Kind.HASH,
    )
)
"""Kinds that always get through, before all others: they are small, and without them an overload turns into lost
leases, and space that nobody gives back."""

Outcomes = list[tuple[int, Answer | NebulaError]]


class State(IntEnum):
    """Where a write is; see the module."""

    WAITING = 0
    SENT = 1
    PLACED = 2


WAITING: Final = State.WAITING
SENT: Final = State.SENT
PLACED: Final = State.PLACED
"""Bound once: see `raft.state.LEADER`."""


class Pending:
    """One write. `place` is the forward's number while SENT and the log index while PLACED."""

    __slots__ = ("control", "place", "request", "state", "term")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.state: State = WAITING
        self.control = False
        self.place = 0
        self.term = 0


def is_control(group: int, wire: bytes) -> bool:
    """Whether an encoded command gets through whatever waits: it is of such a kind, or for the meta group."""
    return group == META_GROUP or command_kind(wire) in CONTROL


class Proposals:
    """See the module. Invariant: each pending write is in exactly one of the queues, a forward, a log place."""

    def __init__(self, share: Share | None = None, counts: Share | None = None) -> None:
        """`share`: bytes, and `counts`: writes, that all groups may have waiting together."""
        self._pending: dict[int, Pending] = {}
        self.queue: list[Pending] = []
        """Writes that wait, for others to look whether there are any; so in `control_queue`."""
        self.control_queue: list[Pending] = []
        """Control commands; they go before the queue."""
        self._control = 0
        """Control commands that are pending."""
        self._size = 0
        """Bytes of the others."""
        self.refused = 0
        """Writes that were one too many, since the process started."""
        self._forwards: dict[int, tuple[int, list[Pending]]] = {}
        self._placed: dict[int, list[Pending]] = {}
        self._share = share or Share(MAX_PENDING_BYTES)
        self.most = self._share.limit // GROUP_PART
        """How many bytes of them there may be."""
        self._counts = counts or Share(MAX_NODE_PENDING)

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def size(self) -> int:
        """Bytes of the writes that wait here, but for control commands."""
        return self._size

    @property
    def forwards(self) -> int:
        """Forwards without a reply."""
        return len(self._forwards)

    def add(self, request: Request) -> None:
        """Queue a write. Raises `TooManyRequests`, with nothing queued, past the bounds."""
        pending = Pending(request)
        size = len(request.wire)
        if is_control(request.group, request.wire):
            if self._control >= MAX_CONTROL:
                raise self._refused("the shard has too many lease and session requests in flight; back off")
            pending.control = True
            self._control += 1
            self.control_queue.append(pending)
        else:
            self._check(size)
            self.queue.append(pending)
            self._size += size
            self._share.take(size)
            self._counts.take(1)
        self._pending[request.request] = pending

    def _check(self, size: int) -> None:
        if len(self._pending) - self._control >= MAX_PENDING or self._size + size > self.most:
            raise self._refused("this shard has too many writes in flight on this node; back off and try again")
        if not (self._share.fits(size) and self._counts.fits(1)):
            raise self._refused("this node has too many writes in flight; back off and try again")

    def _refused(self, why: str) -> TooManyRequests:
        self.refused += 1
        return TooManyRequests(why)

    def take(self, max_commands: int, max_bytes: int, *, urgent: bool = False) -> list[Pending]:
        """The front of the queue, at least one if there is any. The caller places, sends or gives back each.

        Control commands come first; with `urgent` nothing else does. They are bounded like all others: the meta group's
        may have half a MiB each, and what is too large for a frame reaches no peer.
        """
        size = count = 0
        for pending in self.control_queue:
            size += len(pending.request.wire)
            if count >= max_commands or (size > max_bytes and count):
                break
            count += 1
        taken = self.control_queue[:count]
        del self.control_queue[:count]
        if urgent or self.control_queue:
            return taken
        room, count = max_commands - len(taken), 0
        for pending in self.queue:
            size += len(pending.request.wire)
            if count >= room or (size > max_bytes and (count or taken)):
                break
            count += 1
        taken += self.queue[:count]
        del self.queue[:count]
        return taken

    def give_back(self, taken: Sequence[Pending]) -> None:
        """To the front of the queue again: they certainly went nowhere."""
        for pending in taken:
            pending.state = WAITING
        alive = [pending for pending in taken if pending.request.request in self._pending]
        self.control_queue[:0] = [pending for pending in alive if pending.control]
        self.queue[:0] = [pending for pending in alive if not pending.control]

    def placed(self, taken: Iterable[Pending], index: int, term: int) -> None:
        """They stand in the log at (`index`, `term`)."""
        places = self._placed.setdefault(index, [])
        for pending in taken:
            pending.state, pending.place, pending.term = PLACED, index, term
            places.append(pending)

    def sent(self, taken: list[Pending], number: int, node: int) -> None:
        """They were forwarded to `node` under `number`."""
        for pending in taken:
            pending.state, pending.place = SENT, number
        self._forwards[number] = (node, taken)

    def replied(self, number: int, node: int, index: int, term: int, *, refused: bool, applied: int) -> Outcomes:
        """The leader's reply to a forward; late, repeated or foreign ones are void."""
        if number not in self._forwards or self._forwards[number][0] != node:
            return []
        _, taken = self._forwards.pop(number)
        alive = [pending for pending in taken if pending.request.request in self._pending]
        if refused:
            probe("forward refused")
            self.give_back(alive)  # certainly not appended: it may be proposed again (S19)
            return []
        self.placed(alive, index, term)
        # What was placed at or below the applied index and had no answer from it is not what was applied there.
        return self._overwritten(index) if index <= applied else []

    def lost(self, node: int) -> Outcomes:
        """The link to `node` went down: what was sent there without a reply is unknown."""
        outcomes: Outcomes = []
        for number, (receiver, taken) in list(self._forwards.items()):
            if receiver == node:
                del self._forwards[number]
                for pending in taken:
                    outcomes += self._finish(pending, UnknownOutcome("the link to the leader broke after sending"))
        if outcomes:
            probe("link lost under a forward")
        return outcomes

    def applied(self, index: int, answers: Sequence[tuple[int, Answer]]) -> Outcomes:
        """The store applied up to `index` and gave these answers for this node's requests."""
        outcomes: Outcomes = []
        for request, answer in answers:
            pending = self._pending.get(request)
            if pending is not None:
                outcomes += self._finish(pending, answer)
        # Placed indexes come in rising order but for forwards' replies, so look at all that are low enough.
        for place in [place for place in self._placed if place <= index]:
            outcomes += self._overwritten(place)
        return outcomes

    def expire(self, now: int, *, leaderless: bool = False) -> Outcomes:
        """What is past its deadline at `now` (ms): *failed* if it never left, else *unknown*. `leaderless`: nobody has
        led for so long that what is WAITING fails at once, while its client has time left to ask another node."""
        outcomes: Outcomes = []
        given_up = [
            pending
            for pending in self._pending.values()
            if pending.request.deadline <= now or (leaderless and pending.state is WAITING)
        ]
        for pending in given_up:
            if pending.state is WAITING:
                if pending.request.deadline > now:
                    probe("write failed early, for nobody leads")
                error: NebulaError = NoLeader("no leader took the write in time; nothing was done, try again")
            else:
                error = UnknownOutcome("the deadline passed while the write was on its way; it may take effect")
            outcomes += self._finish(pending, error)
        alive = self._pending
        if outcomes:
            self.queue = [pending for pending in self.queue if pending.request.request in alive]
            self.control_queue = [pending for pending in self.control_queue if pending.request.request in alive]
            # What is placed may be applied here in an hour only, or never, and its bytes aren't counted any more.
            left = {
                place: [one for one in ones if one.request.request in alive] for place, ones in self._placed.items()
            }
            self._placed = {place: ones for place, ones in left.items() if ones}
        # A forward whose frame or reply was lost while the link stands is ended by nothing else: also where nothing is
        # late, for its writes may have been answered from what was applied here.
        for number, (_, taken) in list(self._forwards.items()):
            if not any(pending.request.request in alive for pending in taken):
                del self._forwards[number]
        return outcomes

    def close(self) -> Outcomes:
        """The replica goes away: nothing will answer any more."""
        outcomes: Outcomes = []
        for pending in list(self._pending.values()):
            waiting = pending.state is WAITING
            outcomes += self._finish(pending, Unavailable() if waiting else UnknownOutcome())
        self.queue, self.control_queue, self._forwards, self._placed = [], [], {}, {}
        return outcomes

    def _overwritten(self, index: int) -> Outcomes:
        outcomes: Outcomes = []
        for pending in self._placed.pop(index, ()):
            if pending.request.request in self._pending:
                probe("placed write overwritten")
                outcomes += self._finish(pending, NotLeader("leadership changed; the write was not done, try again"))
        return outcomes

    def _finish(self, pending: Pending, outcome: Answer | NebulaError) -> Outcomes:
        number = pending.request.request
        if self._pending.pop(number, None) is None:
            return []
        if pending.control:
            self._control -= 1
        else:
            size = len(pending.request.wire)
            self._size -= size
            self._share.give(size)
            self._counts.give(1)
        return [(number, outcome)]

"""Linearizable reads by ReadIndex (thesis §6.4; S7, S8): the leader's rounds, and a follower's forwarded reads."""

from __future__ import annotations

from typing import Final

from nebuladb.env import probe
from nebuladb.raft.log import RaftLog
from nebuladb.raft.message import READ_INDEX, READ_INDEX_REPLY, Message
from nebuladb.raft.outbox import Outbox
from nebuladb.raft.quorum import WON, vote_result
from nebuladb.raft.replication import Replication
from nebuladb.raft.state import State

MAX_WAITING_READS: Final = 4096
"""Reads of one group that wait on a leader, or on a follower for its leader; more fail at once."""

MAX_RESENT_READS: Final = 64
"""Forwarded reads, the oldest, that a follower sends again in one heartbeat interval."""

FAILED: Final = -1


class LeaderReads:
    """At most one round of heartbeats is under way; reads that come meanwhile wait for the next (S8).

    (A reply to a heartbeat that was sent before the read came proves leadership only for a time before the read: the
    next leader may have committed a write in between.)
    """

    __slots__ = ("_acks", "_index", "_log", "_outbox", "_replication", "_round", "_state", "running", "waiting")

    def __init__(self, state: State, log: RaftLog, outbox: Outbox, replication: Replication) -> None:
        self._state = state
        self._log = log
        self._outbox = outbox
        self._replication = replication
        self._round = 0  # never repeats in this process's life, as the term can't be led by another process of ours
        self._index = 0
        self._acks: dict[int, bool] = {}
        self.running: dict[tuple[int, int, int], None] = {}
        """Reads of the round under way: (replica that asked, nonce, context)."""
        self.waiting: dict[tuple[int, int, int], None] = {}
        """Those that wait for the next."""

    @property
    def context(self) -> int:
        """The round under way, which heartbeats carry; 0 if there is none."""
        return self._round if self.running else 0

    def add(self, requester: int, nonce: int, context: int) -> None:
        """A replica's read arrived. A repeated one is answered once or twice, rightly each time.

        Who asks takes us for the leader, and said so after its read came: that is the reply to a heartbeat that was
        sent then. Where it makes a majority with us, as in a group of three, nobody else is asked.
        """
        state = self._state
        if requester != state.replica and self._settled and self._confirmed({state.replica: True, requester: True}):
            self._answer(requester, nonce, context, self._log.commit)
        elif len(self.waiting) >= MAX_WAITING_READS:
            probe("too many reads")
            self._answer(requester, nonce, context, FAILED)
        else:
            self.waiting[requester, nonce, context] = None

    def begin(self) -> None:
        """Start a round for the reads that wait, unless one is under way or our term has committed nothing yet."""
        if not self.waiting or self.running or not self._settled:
            return
        self.running, self.waiting = self.waiting, {}
        self._round += 1
        self._index = self._log.commit
        self._acks = {self._state.replica: True}
        if not self._finish():
            self._replication.broadcast_heartbeat(self._round, timed=False)

    def on_heartbeat_reply(self, message: Message) -> None:
        """A peer still takes us for the leader. Replies to earlier rounds are void."""
        if message.context and message.context == self.context:
            self._acks[message.sender] = True
            self._finish()

    def reconfigured(self) -> None:
        """Other replicas decide now: those that have answered may be enough."""
        if self.running:
            self._finish()

    @property
    def _settled(self) -> bool:
        """Whether our term has committed an entry (S7): before that our commit index may lie below what the previous
        leader acknowledged."""
        return self._log.commit >= self._replication.first_own

    def _confirmed(self, acks: dict[int, bool]) -> bool:
        """Whether those who take us for the leader are enough (S8)."""
        return vote_result(self._replication.tracker.configuration, acks) is WON

    def _finish(self) -> bool:
        """Answer the round's reads if a quorum has confirmed it."""
        if not self._confirmed(self._acks):
            return False
        running, self.running = self.running, {}
        for requester, nonce, context in running:
            self._answer(requester, nonce, context, self._index)
        return True

    def _answer(self, requester: int, nonce: int, context: int, index: int) -> None:
        state = self._state
        if requester == state.replica:
            self._outbox.answer_read(nonce, context, index)
            return
        self._outbox.send(
            Message(
                READ_INDEX_REPLY, state.replica, requester, state.term,
                index=max(index, 0), reject=index < 0, nonce=nonce, context=context,
            )
        )  # fmt: skip

    def fail(self) -> None:
        """We don't lead any more. Other replicas' reads fail there, when they hear of the new term or ask again."""
        own = self._state.replica
        for reads in (self.running, self.waiting):
            for requester, nonce, context in reads:
                if requester == own:
                    self._outbox.answer_read(nonce, context, FAILED)
            reads.clear()


class ForwardedReads:
    """Reads that this follower asked its leader for. Messages get lost, so it asks again until it hears an answer."""

    __slots__ = ("_elapsed", "_heartbeat_ticks", "_outbox", "_pending", "_state")

    def __init__(self, state: State, outbox: Outbox, heartbeat_ticks: int) -> None:
        self._state = state
        self._outbox = outbox
        self._heartbeat_ticks = heartbeat_ticks
        self._elapsed = 0
        self._pending: dict[tuple[int, int], None] = {}

    def add(self, nonce: int, context: int) -> None:
        """Ask the leader; without one, or with too much waiting, the read fails."""
        if not self._state.leader or len(self._pending) >= MAX_WAITING_READS:
            self._outbox.answer_read(nonce, context, FAILED)
            return
        self._pending[nonce, context] = None
        self._send(nonce, context)

    def tick(self) -> None:
        """Once a heartbeat interval, ask again."""
        self._elapsed += 1
        if self._elapsed < self._heartbeat_ticks:
            return
        self._elapsed = 0
        for count, (nonce, context) in enumerate(self._pending):
            if count == MAX_RESENT_READS:
                break
            self._send(nonce, context)

    def on_reply(self, message: Message) -> None:
        """The leader's answer; one that nobody waits for is late or repeated, and void (S8)."""
        key = message.nonce, message.context
        if key in self._pending:
            del self._pending[key]
            self._outbox.answer_read(*key, FAILED if message.reject else message.index)

    def refuse(self, message: Message) -> None:
        """Another replica takes us for the leader, which we are not."""
        state = self._state
        self._outbox.send(
            Message(
                READ_INDEX_REPLY, state.replica, message.sender, state.term,
                reject=True, nonce=message.nonce, context=message.context,
            )
        )  # fmt: skip

    def fail(self) -> None:
        """The leader or the term changed."""
        for nonce, context in self._pending:
            self._outbox.answer_read(nonce, context, FAILED)
        self._pending.clear()

    def _send(self, nonce: int, context: int) -> None:
        state = self._state
        message = Message(READ_INDEX, state.replica, state.leader, state.term, nonce=nonce, context=context)
        self._outbox.send(message)

"""Handing leadership to a chosen voter (thesis §3.10)."""

from __future__ import annotations

from nebuladb.env import probe
from nebuladb.errors import InvalidArgument
from nebuladb.raft.log import RaftLog
from nebuladb.raft.message import Message, MessageType
from nebuladb.raft.outbox import Outbox
from nebuladb.raft.replication import Replication
from nebuladb.raft.state import State


class Transfer:
    """A leader's: while there is a transferee, nothing is proposed, so that its log can become as long as ours."""

    __slots__ = ("_elapsed", "_log", "_outbox", "_patience", "_replication", "_state")

    def __init__(self, patience: int, state: State, log: RaftLog, outbox: Outbox, replication: Replication) -> None:
        """`patience`: ticks after which it leads on. They are counted here: a leader that is asked again and again to
        hand over must look at its quorum all the same."""
        self._patience = patience
        self._elapsed = 0
        self._state = state
        self._log = log
        self._outbox = outbox
        self._replication = replication

    def begin(self, to: int) -> None:
        """Make `to` the successor, which gets no more time for being asked for again. Raises `InvalidArgument` if it
        can't lead."""
        if to == self._state.replica or not self._replication.tracker.votes(to):
            raise InvalidArgument(f"replica {to} is not another voter of the group")
        if to != self._state.transferee:
            self._state.transferee, self._elapsed = to, 0
        self.hand_over()

    def tick(self) -> None:
        """A tick of the leader's. If it took too long, lead on."""
        if self._state.transferee:
            self._elapsed += 1
            if self._elapsed >= self._patience:
                probe("leadership transfer given up")
                self._state.transferee = 0

    def reconfigured(self) -> None:
        """Other replicas vote now."""
        if self._state.transferee and not self._replication.tracker.votes(self._state.transferee):
            self._state.transferee = 0

    def hand_over(self) -> None:
        """Tell the successor to campaign at once, if there is one and it has our whole log."""
        state, to = self._state, self._state.transferee
        if to and self._replication.tracker.progress[to].match == self._log.last:
            self._outbox.send(Message(MessageType.TIMEOUT_NOW, state.replica, to, state.term))

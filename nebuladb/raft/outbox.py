"""What waits to be sent, and the rule when it may leave (S3)."""

from __future__ import annotations

from typing import Final

from nebuladb.raft.message import APPEND_REPLY, Message, MessageType
from nebuladb.raft.ready import ReadState
from nebuladb.raft.state import State

AT_ONCE: Final = frozenset(
    {
        MessageType.APPEND,
        MessageType.HEARTBEAT,
        MessageType.HEARTBEAT_REPLY,
        MessageType.PRE_VOTE,
        MessageType.PRE_VOTE_REPLY,
        MessageType.READ_INDEX,
        MessageType.READ_INDEX_REPLY,
    }
)
"""Messages that promise nothing but the term they carry: the leader's own (thesis §10.2.1), the answers that say "you
still lead this term", pre-votes, which change nothing anywhere, and reads."""


class Outbox:
    """Messages and read results since the last Ready."""

    __slots__ = ("_state", "held", "messages", "reads", "snapshots")

    def __init__(self, state: State) -> None:
        self._state = state
        self.messages: list[Message] = []
        self.held: list[Message] = []
        self.reads: list[ReadState] = []
        self.snapshots: list[int] = []

    def send(self, message: Message) -> None:
        """Queue `message`: it leaves at once only if it needs nothing that isn't durable (S3)."""
        state = self._state
        if message.type in AT_ONCE and state.durable_term == state.term:
            self.messages.append(message)
        else:
            self.held.append(message)

    def acknowledge(self, receiver: int, index: int) -> None:
        """Tell the leader that our log matches up to `index`, in one message for all appends of a turn.

        It is held: when it leaves, this Ready's batch and every earlier one are durable, hence the whole log up to
        `index` as it is now.
        """
        term = self._state.term
        if self.held:
            last = self.held[-1]
            same = last.type == APPEND_REPLY and last.receiver == receiver and last.term == term
            if same and not last.reject:
                last.index = max(last.index, index)
                return
        self.held.append(Message(APPEND_REPLY, self._state.replica, receiver, term, index=index))

    def answer_read(self, nonce: int, context: int, index: int) -> None:
        """A read that this replica asked for may be served at `index`, or has failed (`index` < 0)."""
        self.reads.append(ReadState(nonce, context, index))

    def __bool__(self) -> bool:
        return bool(self.messages or self.held or self.reads or self.snapshots)

    def take(self) -> tuple[list[Message], list[Message], list[ReadState], list[int]]:
        """Empty the outbox."""
        taken = self.messages, self.held, self.reads, self.snapshots
        self.messages, self.held, self.reads, self.snapshots = [], [], [], []
        return taken

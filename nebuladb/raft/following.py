"""A follower's side of log replication (paper §5.3, figure 2 "AppendEntries RPC", receiver)."""

from __future__ import annotations

from nebuladb.env import probe
from nebuladb.raft.log import RaftLog
from nebuladb.raft.message import APPEND_REPLY, COMMIT_ONLY, HEARTBEAT_REPLY, REST, Message
from nebuladb.raft.outbox import Outbox
from nebuladb.raft.state import State


class Following:
    """Takes what the leader of our term sends, and acknowledges it."""

    __slots__ = ("_log", "_outbox", "_state")

    def __init__(self, state: State, log: RaftLog, outbox: Outbox) -> None:
        self._state = state
        self._log = log
        self._outbox = outbox

    def on_append(self, message: Message) -> None:
        """Take the entries if they follow on what we have, else say where the logs could meet."""
        log, entries, index = self._log, message.entries, message.index
        if index < log.commit:
            # An old append. What is committed is the leader's log as well, so this says more than it asked for.
            self._outbox.acknowledge(message.sender, log.commit)
        elif not (log.start <= index <= log.last and log.term(index) == message.log_term):
            hint, hint_term = log.find_conflict_by_term(index, message.log_term)
            state = self._state
            self._outbox.send(
                Message(
                    APPEND_REPLY, state.replica, message.sender, state.term,
                    log_term=hint_term, index=index, reject=True, hint=hint,
                )
            )  # fmt: skip
        elif entries and (entries[0].index != index + 1 or entries[-1].index != index + len(entries)):
            probe("append with a gap")
        else:
            if entries:
                log.splice(entries)
                index += len(entries)
            log.commit_to(min(message.commit, index))
            if entries or message.hint != COMMIT_ONLY:
                self._outbox.acknowledge(message.sender, index)

    def on_heartbeat(self, message: Message) -> None:
        """Answer it, unless it is the last one for a while: then the group rests (S11).

        The leader names no more than we acknowledged to it. If our log ends below that, we lost what we promised to
        keep: `commit_to` raises, for such a replica may neither vote nor acknowledge any more (S15).
        """
        state = self._state
        self._log.commit_to(message.commit)
        if message.hint == REST and self._log.last == message.commit:
            state.quiet = True
            return
        self._outbox.send(Message(HEARTBEAT_REPLY, state.replica, message.sender, state.term, context=message.context))

"""A leader's side of log replication (paper §5.3, figure 2 "Leaders"; thesis §10.2.1)."""

from __future__ import annotations

from collections.abc import Sequence

from nebuladb.env import probe
from nebuladb.errors import InvariantViolation, TooManyRequests
from nebuladb.raft.entry import ENTRY_HEADER, NORMAL, Entry, EntryKind, encode_entry
from nebuladb.raft.log import FORGOTTEN, RaftLog
from nebuladb.raft.message import APPEND, COMMIT_ONLY, HEARTBEAT, Message
from nebuladb.raft.outbox import Outbox
from nebuladb.raft.progress import PROBE, REPLICATE, SNAPSHOT, Progress
from nebuladb.raft.quorum import committed
from nebuladb.raft.state import LEADER, Config, State
from nebuladb.raft.tracker import ProgressTracker


class Replication:
    """Sends the log to the peers and learns what is committed.

    Proposals are only appended; `send_appends`, once a Ready, gathers whatever came together into one message a peer.
    """

    __slots__ = ("_config", "_log", "_outbox", "_state", "elapsed", "first_own", "tracker", "uncommitted")

    def __init__(self, config: Config, state: State, log: RaftLog, outbox: Outbox) -> None:
        self._config = config
        self._state = state
        self._log = log
        self._outbox = outbox
        self.tracker = ProgressTracker(config.replica, config.max_inflight_messages, config.max_inflight_bytes)
        self.first_own = 0
        """Index of the no-op that began our term."""
        self.uncommitted = 0
        """Bytes of our own term's entries that aren't committed."""
        self.elapsed = 0
        """Ticks since the last heartbeat."""

    def start(self) -> None:
        """We lead: forget what we knew of others, and append the no-op that lets older entries commit (§5.4.2, §8)."""
        log = self._log
        self.tracker.reset(log.last + 1)
        self.first_own = log.last + 1
        self.uncommitted = 0
        self.elapsed = 0
        self.append(NORMAL, b"")
        self.own_durable()

    def append(self, kind: EntryKind, payload: bytes) -> tuple[int, int]:
        """Append an entry; returns its (index, term). Raises `TooManyRequests` if too much is uncommitted already; a
        change of members gets through even then."""
        size = self.uncommitted + ENTRY_HEADER + len(payload)
        if size > self._config.max_uncommitted_bytes and self.uncommitted and kind == NORMAL:
            raise TooManyRequests("too many bytes of proposals wait for a majority")
        log, term = self._log, self._state.term
        entry = encode_entry(log.last + 1, term, kind, payload)
        log.append(entry)
        self.uncommitted += len(entry.record)
        return entry.index, term

    def own_durable(self) -> None:
        """Our own log became durable further: only now do we count for a majority (S2, thesis §10.2.1)."""
        own = self.tracker.progress.get(self._state.replica)
        if own is not None:
            own.match = self._log.durable
            own.next = max(own.next, own.match + 1)
            self._advance_commit()

    def reconfigured(self) -> None:
        """Other replicas decide now: what they hold may be more than what those before held."""
        self._advance_commit()

    def _advance_commit(self) -> None:
        """Commit what a quorum holds, if it is of our own term (paper §5.4.2, figure 8)."""
        log = self._log
        index = committed(self.tracker.configuration, self.tracker.progress)
        if index > log.commit and index >= self.first_own:
            self.uncommitted -= log.size(max(log.commit + 1, self.first_own), index)
            log.commit_to(index)

    def unsent(self) -> bool:
        """Whether `send_appends` would send anything."""
        last, commit = self._log.last, self._log.commit
        return bool([replica for replica, progress in self.tracker.peers if progress.due(last, commit)])

    def send_appends(self) -> None:
        """Send each peer what it may have and has not been sent, or at least the commit index."""
        log = self._log
        last, commit = log.last, log.commit
        for replica, progress in self.tracker.peers:
            more = progress.due(last, commit)
            while more:
                entries = progress.next <= last and not progress.paused
                hint = COMMIT_ONLY if progress.state is REPLICATE and not entries else 0
                more = self._send(replica, progress, with_entries=entries, hint=hint)

    def _send(self, replica: int, progress: Progress, *, with_entries: bool, hint: int = 0) -> bool:
        """Send one append after `progress.next` - 1. Returns whether more entries may follow at once. If the log
        doesn't reach back that far, ask the caller for a snapshot instead, provided that the peer lives."""
        log, state = self._log, self._state
        previous = progress.next - 1
        if previous < log.start:
            if progress.lives:
                probe("follower behind the log's start")
                progress.become_snapshot(log.start)
                self._outbox.snapshots.append(replica)
            return False
        last, size = previous, 0
        entries: Sequence[Entry] = ()
        if with_entries:
            entries = log.slice(progress.next, log.last, self._config.max_append_bytes)
            last = entries[-1].index
            for entry in entries:
                size += len(entry.record)
        self._outbox.send(
            Message(
                APPEND, state.replica, replica, state.term,
                log_term=log.term(previous), index=previous, commit=log.commit, floor=state.floor, hint=hint,
                entries=entries,
            )
        )  # fmt: skip
        progress.sent(last, size)
        progress.sent_commit = max(progress.sent_commit, min(log.commit, last))
        return progress.next <= log.last and not progress.paused

    def snapshot_finished(self, replica: int, index: int) -> None:
        """A snapshot at `index` is in at `replica`, or (0) it won't come: look anew where the logs meet.

        After a failure that waits for an answer to a heartbeat, so that failures don't follow each other without end.
        """
        progress = self.tracker.progress.get(replica)
        if progress is None or progress.state is not SNAPSHOT:
            return
        progress.pending_snapshot = index
        progress.become_probe()
        progress.paused = not index

    def settled(self) -> bool:
        """Whether all is committed, and every replica has it and knows that."""
        last = self._log.last
        return self._log.commit == last and all(
            progress.match == last == progress.sent_commit and progress.state is REPLICATE
            for _, progress in self.tracker.peers
        )

    def broadcast_heartbeat(self, context: int, *, timed: bool, hint: int = 0) -> None:
        """Send a heartbeat to every peer. `timed`: the interval has passed, so look for what was lost, too."""
        log, state = self._log, self._state
        if timed:
            ticks = self._config.heartbeat_ticks
            state.floor = max(state.floor, min(self.tracker.lowest_match(), log.commit))
        for replica, progress in self.tracker.peers:
            if timed:
                progress.heartbeat()
                progress.measure(log.last, ticks, self._config.election_ticks)
            # No more than its match: what lies beyond may not be our log yet.
            commit = min(progress.match, log.commit)
            self._outbox.send(
                Message(
                    HEARTBEAT, state.replica, replica, state.term,
                    commit=commit, floor=state.floor, hint=hint, context=context,
                )
            )  # fmt: skip

    def on_heartbeat_reply(self, message: Message) -> None:
        """A peer lives. If nothing came of what it was sent, ask whether that was lost."""
        progress = self.tracker.progress.get(message.sender)
        if progress is None:
            return
        progress.active = True
        if not progress.stalled:
            return
        progress.stalled = False
        if progress.state is PROBE:
            progress.paused = False
        elif progress.state is REPLICATE:
            # An empty append at the end of what was sent: acknowledged if all arrived, rejected if not. The window may
            # be full of lost messages, so it must not wait for room in it.
            probe("append lost?")
            self._send(message.sender, progress, with_entries=False)

    def on_append_reply(self, message: Message) -> None:
        """A peer took an append, or refused it. What holds no more than is committed changes nothing about that."""
        progress = self.tracker.progress.get(message.sender)
        if progress is None or self._state.role is not LEADER:
            return
        progress.active = True
        log = self._log
        if message.reject:
            hint = message.hint
            if message.log_term and hint >= log.start:
                # Its entries above the last one of a term <= log_term in our log can't match: skip them all at once.
                hint, _ = log.find_conflict_by_term(hint, message.log_term)
            if progress.rejected(message.index, hint):
                probe("append rejected")
            return
        if message.index > log.last:
            raise InvariantViolation(
                f"replica {message.sender} has acknowledged index {message.index}, and the log of its leader here ends "
                f"at {log.last}: this node's log, or that of a node that voted for it, is older than what it "
                f"acknowledged. {FORGOTTEN}: stop it, and run `nebula-cli member replace` with its name; if the others "
                "have no leader then, `nebulad recover` the one of the highest indexes"
            )
        if progress.acknowledged(message.index) and message.index > log.commit:
            self._advance_commit()

"""Election timer, campaigns and votes (paper §5.2, §5.4.1; thesis §4.2.3, §9.6)."""

from __future__ import annotations

from nebuladb.env import Rng, probe
from nebuladb.raft.log import RaftLog
from nebuladb.raft.message import TRANSFER, Message, MessageType
from nebuladb.raft.outbox import Outbox
from nebuladb.raft.quorum import VoteResult, vote_result
from nebuladb.raft.state import Config, State
from nebuladb.raft.tracker import ProgressTracker


class Election:
    """One replica's part in elections: as a voter, and as a candidate of either kind."""

    __slots__ = ("_bound", "_config", "_log", "_outbox", "_rng", "_state", "_tracker", "_votes", "elapsed", "timeout")

    def __init__(
        self, config: Config, state: State, log: RaftLog, outbox: Outbox, tracker: ProgressTracker, rng: Rng
    ) -> None:
        self._config = config
        self._state = state
        self._log = log
        self._outbox = outbox
        self._tracker = tracker
        self._rng = rng
        self._votes: dict[int, bool] = {}
        self._bound = config.election_ticks if config.guards_leases else 0
        """Ticks for which we neither vote nor stand: we may have answered a leader, and forgotten it in a restart, or
        have it no more since we heard of a later term. It may still read by its lease (S9)."""
        self.elapsed = 0
        """Ticks since we heard from a leader or voted; on a leader, since it last made sure of its quorum."""
        self.timeout = 0
        """What `elapsed` may reach before we campaign."""
        self.restart()

    def restart(self) -> None:
        """Begin a new, random timeout: they keep split votes rare (paper §5.2)."""
        ticks = self._config.election_ticks
        self.elapsed = 0
        self.timeout = self._rng.randrange(ticks, 2 * ticks)

    def tick(self) -> bool:
        """Returns whether the timeout has passed."""
        self.elapsed += 1
        if self._bound:
            self._bound -= 1
        return self.elapsed >= self.timeout

    def loyal(self) -> bool:
        """Whether a leader spoke within the least election timeout: then we ignore candidates (thesis §4.2.3)."""
        return self._config.check_quorum and self._state.leader != 0 and self.elapsed < self._config.election_ticks

    @property
    def bound(self) -> bool:
        """Whether a leader may still read by what we answered it (S9)."""
        return self._bound > 0

    def bind(self) -> None:
        """We are about to have another leader than the one we heard from last, or none. (A candidate of a later term
        that we refused, or that never reached us, answers what we once asked it. Were we free then, its request, late,
        or its next one would elect it while our leader reads by its lease.)"""
        if self._config.guards_leases:
            self._bound = max(self._bound, self._config.election_ticks - self.elapsed)

    def campaign(self, kind: MessageType, term: int, hint: int) -> None:
        """Ask every other voter for its (pre-)vote for `term`. Our own counts when `count` says so.

        A replica that misses a leader and may not stand for election asks for a pre-vote in its own term. That changes
        nothing anywhere, and nobody counts the answers; but it wakes the voters, one of whom leads the group, if it
        only rests, or can be elected (S11).
        """
        self._votes = {}
        self.restart()
        log, own = self._log, self._state.replica
        for replica, _ in self._tracker.peers:
            if self._tracker.votes(replica):
                self._outbox.send(Message(kind, own, replica, term, log_term=log.last_term, index=log.last, hint=hint))

    def count(self, replica: int, granted: bool) -> VoteResult:
        """Count a vote; the first of each replica counts. Returns the result so far."""
        self._votes.setdefault(replica, granted)
        return vote_result(self._tracker.configuration, self._votes)

    def on_request(self, message: Message) -> None:
        """Answer a vote or pre-vote request of our term, or a pre-vote request of a later one."""
        state, pre = self._state, message.type == MessageType.PRE_VOTE
        if self._bound and message.hint != TRANSFER:  # a leader that hands over has given up its lease (S10)
            probe("no vote while a leader may read by its lease")
            self.refuse(message)
            return
        free = state.vote == message.sender or (state.vote == 0 and state.leader == 0)
        if (free or (pre and message.term > state.term)) and self._log.covers(message.index, message.log_term):
            # A pre-vote is granted for the term asked for, which isn't ours yet and which we don't enter (§9.6).
            self._reply(message, message.term, reject=False)
            if not pre:
                state.vote = message.sender
                self.elapsed = 0
        else:
            self.refuse(message)

    def refuse(self, message: Message) -> None:
        """Refuse the request, and tell our term."""
        self._reply(message, self._state.term, reject=True)

    def _reply(self, message: Message, term: int, *, reject: bool) -> None:
        kind = MessageType.PRE_VOTE_REPLY if message.type == MessageType.PRE_VOTE else MessageType.VOTE_REPLY
        self._outbox.send(Message(kind, self._state.replica, message.sender, term, reject=reject))

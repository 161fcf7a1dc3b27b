"""`Raft`: one replica of one group. It holds the parts together and owns the transitions between roles."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from nebuladb.env import Rng, probe
from nebuladb.errors import NotLeader, invariant
from nebuladb.raft.confchange import Change
from nebuladb.raft.configuration import Configuration
from nebuladb.raft.election import Election
from nebuladb.raft.entry import CONFIGURATION, NORMAL, Entry
from nebuladb.raft.following import Following
from nebuladb.raft.log import RaftLog
from nebuladb.raft.membership import Membership
from nebuladb.raft.message import APPEND_REPLY, HEARTBEAT_REPLY, LEADERS_OWN, REST, TRANSFER, Message, MessageType
from nebuladb.raft.outbox import Outbox
from nebuladb.raft.quorum import VoteResult
from nebuladb.raft.reads import ForwardedReads, LeaderReads
from nebuladb.raft.ready import DurableMark, HardState, LogReader, Ready
from nebuladb.raft.replication import Replication
from nebuladb.raft.state import CANDIDATE, FOLLOWER, LEADER, PRE_CANDIDATE, Config, State, StateRole
from nebuladb.raft.transfer import Transfer


class Raft(State):
    """See the package's docstring for what the caller owes it.

    Invariants, checked where they could break and by `check`: one leader a term; a leader only appends; what is
    committed is never truncated; term and commit never go back; applied <= commit <= last; durable <= last.
    """

    __slots__ = (
        "_config", "_election", "_forwarded", "_handlers", "_idle", "_outbox", "_reads", "_replication", "_saved",
        "_tracker", "_transfer", "log", "membership",
    )  # fmt: skip

    def __init__(
        self,
        config: Config,
        log: LogReader,
        hard_state: HardState,
        configuration: Configuration,
        applied: int,
        rng: Rng,
    ) -> None:
        """Start as a follower from what is durable: `applied` is the state machine's applied index.

        Raises `InvariantViolation` if these contradict each other: something durable was lost (S15).
        """
        super().__init__(config.replica, hard_state.term, hard_state.vote, durable_term=hard_state.term)
        self._config = config
        self._saved = (hard_state.term, hard_state.vote)
        self.log = RaftLog(log, hard_state.commit, applied)
        """Its log: what of it is durable, committed and applied. To be looked at only."""
        self._outbox = Outbox(self)
        self._replication = Replication(config, self, self.log, self._outbox)
        self._tracker = self._replication.tracker
        self._tracker.configure(configuration, self.log.last + 1)
        self.membership = Membership(self, self.log, self._replication)
        """What a leader knows of its members and their changes."""
        following = Following(self, self.log, self._outbox)
        self._election = Election(config, self, self.log, self._outbox, self._tracker, rng)
        self._reads = LeaderReads(self, self.log, self._outbox, self._replication)
        self._forwarded = ForwardedReads(self, self._outbox, config.heartbeat_ticks)
        self._transfer = Transfer(config.election_ticks, self, self.log, self._outbox, self._replication)
        self._idle = 0  # a leader's ticks without anything to do
        self._handlers: dict[int, Callable[[Message], None]] = {
            MessageType.PRE_VOTE: self._election.on_request,
            MessageType.PRE_VOTE_REPLY: self._on_vote_reply,
            MessageType.VOTE: self._election.on_request,
            MessageType.VOTE_REPLY: self._on_vote_reply,
            MessageType.APPEND: following.on_append,
            MessageType.APPEND_REPLY: self._replication.on_append_reply,
            MessageType.HEARTBEAT: following.on_heartbeat,
            MessageType.HEARTBEAT_REPLY: self._on_heartbeat_reply,
            MessageType.READ_INDEX: self._on_read_index,
            MessageType.READ_INDEX_REPLY: self._forwarded.on_reply,
            MessageType.TIMEOUT_NOW: self._on_timeout_now,
        }
        self.check()

    # What it knows.

    @property
    def commit(self) -> int:
        """Last index known to be committed; possibly not durable here."""
        return self.log.commit

    @property
    def applied(self) -> int:
        """Last index that the caller reported as applied."""
        return self.log.applied

    @property
    def last_index(self) -> int:
        """Index of the log's last entry."""
        return self.log.last

    @property
    def last_term(self) -> int:
        """Term of the log's last entry."""
        return self.log.last_term

    @property
    def durable_index(self) -> int:
        """The log is durable here up to this index."""
        return self.log.durable

    @property
    def configuration(self) -> Configuration:
        """The configuration in force."""
        return self._tracker.configuration

    @property
    def has_ready(self) -> bool:
        """Whether `ready` may have something."""
        if self.log.taken != self.log.last or self._saved != (self.term, self.vote) or self._outbox:
            return True
        return self.role is LEADER and bool(self._reads.waiting or self._reads.running or self._replication.unsent())

    @property
    def uncommitted_bytes(self) -> int:
        """Bytes of this leader's proposals that wait for a majority."""
        return self._replication.uncommitted

    def release(self, index: int) -> None:
        """On a leader: the log up to `index`, if committed, is kept for nobody. Who lacks it then gets a snapshot."""
        self.floor = max(self.floor, min(index, self.log.commit))

    def active_voters(self) -> list[int]:
        """On a leader, the voters heard from in the running check-quorum period (or before it rests), ascending."""
        tracker = self._tracker
        peers = tracker.peers if self.role is LEADER else ()
        return [replica for replica, peer in peers if (peer.active or self.quiet) and tracker.votes(replica)]

    def check(self) -> None:
        """Raise `InvariantViolation` unless the invariants hold."""
        self.log.check()
        invariant(self.term >= self._saved[0], f"the term went back from {self._saved[0]} to {self.term}")
        invariant(self.durable_term <= self.term, "a later term than ours is durable")
        invariant((self.role is LEADER) == (self.leader == self.replica), "leader in name only")
        if self.role is LEADER:
            invariant(self.vote == self.replica, "a leader that didn't vote for itself")
            self._tracker.check(self.log.last)

    # What the caller asks for.

    def propose(self, payload: bytes) -> tuple[int, int]:
        """Append an entry; returns its (index, term). It is committed if and when that index commits with that term.

        Raises `NotLeader` (with the leader's replica id, 0 also while leadership is handed over) or `TooManyRequests`;
        then the entry certainly was not appended.
        """
        self._check_leads(proposing=True)
        return self._replication.append(NORMAL, payload)

    def propose_change(self, changes: Iterable[Change]) -> tuple[int, int]:
        """Likewise, the entry that changes the group's members: with more than one voter changed by way of a joint
        configuration, which the leader leaves by itself. Raises `ChangeRefused` or `InvalidArgument`, too."""
        self._check_leads(proposing=True)
        return self.membership.propose(changes)

    def snapshot_finished(self, replica: int, index: int) -> None:
        """The snapshot that `Ready.snapshots` asked for is in at `index`, durably; 0: it failed. Else it is void."""
        self._replication.snapshot_finished(replica, index)

    def read_index(self, nonce: int, context: int) -> None:
        """Ask for a linearizable read; exactly one `ReadState` with (nonce, context) follows in a Ready, maybe a failed
        one. `nonce` is random for a process, `context` never repeats in it."""
        if self.role is LEADER:
            self.wake()
            self._reads.add(self.replica, nonce, context)
        else:
            self._forwarded.add(nonce, context)

    def transfer_leadership(self, to: int) -> None:
        """Hand leadership to voter `to` once its log is as long as ours, or give up after an election timeout.
        Raises `NotLeader`, or `InvalidArgument` if `to` can't lead."""
        self._check_leads()
        self._transfer.begin(to)

    def step_down(self) -> None:
        """Lead no more, in this term; followers will elect another."""
        if self.role is LEADER:
            self._become_follower(self.term, 0)

    def campaign(self, *, transfer: bool = False) -> None:
        """Stand for election now. `transfer`: because the leader asked for it, hence without a pre-vote."""
        if self.role is LEADER or not self._promotable() or self.log.change_unapplied():
            return  # a committed configuration may count by another majority than ours (S4)
        if self._election.bound and not transfer and self.configuration.votes_beside(self.replica):
            return  # the leader that we answered may read by its lease (S9)
        if self._config.pre_vote and not transfer:
            self._become_pre_candidate()
        else:
            self._become_candidate(TRANSFER if transfer else 0)

    def rest(self) -> bool:
        """On a leader: fall quiet, if nothing has happened for `rest_ticks` and every replica has the whole log. One
        heartbeat tells the others; who misses it will ask for votes, which wakes us. Returns `quiet`. A quiet group
        must be woken when the leader's node goes silent, or on the leader any other's (S11)."""
        busy = self.role is not LEADER or self.transferee or self._reads.waiting or self._reads.running
        if not (busy or self.quiet or self._idle < self._config.rest_ticks) and self._replication.settled():
            self.quiet = True
            self._replication.broadcast_heartbeat(0, timed=True, hint=REST)
        return self.quiet

    def wake(self) -> None:
        """Time passes again: a leader sends heartbeats, a follower waits for them."""
        self._idle = 0
        if self.quiet:
            self.quiet = False
            self._election.restart()
            self._replication.elapsed = self._config.heartbeat_ticks

    def tick(self) -> None:
        """One tick of time has passed."""
        if self.role is LEADER:
            if not self.quiet:
                self._tick_leader()
            return
        self._forwarded.tick()
        if not self.quiet and self._election.tick():
            if self._promotable():
                self.campaign()
            else:
                self._become_follower(self.term, 0)
                self._election.campaign(MessageType.PRE_VOTE, self.term, 0)

    def step(self, message: Message) -> None:
        """Take a message. Lost, repeated, late or reordered ones do no harm."""
        kind, term = message.type, message.term
        handler = self._handlers.get(kind)
        if handler is None or message.receiver != self.replica:
            probe("message not for this replica")
            return
        if kind != HEARTBEAT_REPLY and (self.quiet or self._idle):
            self.wake()  # also for a vote that we won't give: its sender misses a leader
        if term > self.term:
            if kind in (MessageType.VOTE, MessageType.PRE_VOTE) and message.hint != TRANSFER and self._election.loyal():
                return
            # A pre-vote asks, or was granted, for a term that nobody has entered yet.
            granted = kind == MessageType.PRE_VOTE_REPLY and not message.reject
            if kind != MessageType.PRE_VOTE and not granted:
                self._become_follower(term, 0)
        elif term < self.term:
            self._on_stale(message)
            return
        if kind in LEADERS_OWN:
            if self.leader != message.sender or self.role is not FOLLOWER:
                self._follow(message.sender)
            self._election.elapsed = 0
            self.floor = max(self.floor, message.floor)
        handler(message)
        if kind == APPEND_REPLY and self.transferee == message.sender:
            self._transfer.hand_over()

    def ready(self) -> Ready | None:
        """What is to be made durable, sent and answered since the last call; None if there is nothing."""
        log, outbox = self.log, self._outbox
        if self.role is LEADER:
            if self._reads.waiting:
                self._reads.begin()
            self._replication.send_appends()
        entries: list[Entry] = []
        hard_state = mark = None
        if log.taken != log.last or self._saved != (self.term, self.vote):
            entries = log.take()
            hard_state = HardState(self.term, self.vote, log.commit)
            mark = DurableMark(self.term, self.vote, log.last, log.last_term)
            self._saved = (self.term, self.vote)
        elif not outbox:
            return None
        messages, held, reads, snapshots = outbox.take()
        return Ready(hard_state, entries, mark, messages, held, reads, snapshots)

    def durable(self, mark: DurableMark) -> None:
        """The batch with `mark` is durable, and so are all before it.

        A mark of an earlier term is void: its entries may have been overwritten and come back since, with the last of
        these writes still under way (S2). The Ready that brought the new term has a mark for the same entries.
        """
        if mark.term != self.term:
            invariant(mark.term < self.term, f"durable in term {mark.term}, which is later than ours, {self.term}")
            probe("durable mark of an earlier term")
            return
        self.durable_term = mark.term
        if self.log.made_durable(mark.index, mark.log_term) and self.role is LEADER:
            self._replication.own_durable()
        if self.role is CANDIDATE and mark.vote == self.replica:
            self._tally(self._election.count(self.replica, True))

    def committed_entries(self, after: int, max_bytes: int) -> list[Entry]:
        """Entries behind `after` that are committed and durable here (S1), at least one if there is any, in order.
        A configuration is the last of them, for it takes effect before the next entry (S4)."""
        high = min(self.log.commit, self.log.durable)
        entries = self.log.slice(after + 1, high, max_bytes) if high > after else []
        for position, entry in enumerate(entries, 1):
            if entry.kind == CONFIGURATION:
                return entries[:position]
        return entries

    def applied_to(self, index: int, configuration: Configuration | None = None) -> None:
        """Everything up to `index` was applied; that entry brought `configuration`, if one is given: it is in force."""
        self.log.applied_to(index)
        if configuration is not None:
            self._reconfigure(configuration)
        if self._tracker.configuration.auto_leave and self.role is LEADER and not self.transferee:
            self.membership.leave()

    def cut(self, index: int) -> None:
        """The log up to `index` was cut, or is about to be: the core won't ask for it again. S6 is the caller's."""
        self.log.cut(index)

    # Transitions.

    def _check_leads(self, *, proposing: bool = False) -> None:
        """Raise `NotLeader` unless we lead, or, if `proposing`, while we hand leadership over. Wakes the group."""
        if self.role is not LEADER:
            raise NotLeader(f"replica {self.replica} does not lead its group", leader=self.leader)
        if self.quiet or self._idle:
            self.wake()
        if proposing and self.transferee:
            raise NotLeader(f"replica {self.replica} is handing leadership over")

    def _reconfigure(self, configuration: Configuration) -> None:
        """Take what was applied. Who votes no more leads no more (thesis §4.2.2)."""
        tracker = self._tracker
        tracker.configure(configuration, self.log.last)  # a newcomer is probed with the last entry, at once
        if self.role is not FOLLOWER and not tracker.votes(self.replica):
            probe("leader or candidate votes no more")
            self._become_follower(self.term, 0)
        elif self.role is LEADER:
            for part in (self._transfer, self.membership, self._replication, self._reads):
                part.reconfigured()

    def _promotable(self) -> bool:
        return self._config.campaigns and self._tracker.votes(self.replica)

    def _leave(self, role: StateRole, leader: int) -> None:
        """Enter `role`: reads that asked the former leader fail, and a transfer ends."""
        if self.role is LEADER:
            self._reads.fail()
        elif self.leader:
            self._election.bind()
        self._forwarded.fail()
        self.transferee = self._idle = 0
        self.quiet = False
        self.role, self.leader = role, leader

    def _become_follower(self, term: int, leader: int) -> None:
        invariant(term >= self.term, f"the term went back from {self.term} to {term}")
        self._leave(FOLLOWER, leader)
        if term > self.term:
            self.term, self.vote = term, 0
        self._election.restart()

    def _become_pre_candidate(self) -> None:
        """Ask whether an election could be won, before a new term disturbs anybody (thesis §9.6)."""
        self._leave(PRE_CANDIDATE, 0)
        self._election.campaign(MessageType.PRE_VOTE, self.term + 1, 0)
        self._tally(self._election.count(self.replica, True))

    def _become_candidate(self, hint: int) -> None:
        """Enter a new term and vote for ourselves; that vote counts once it is durable (S3)."""
        self._leave(CANDIDATE, 0)
        self.term, self.vote = self.term + 1, self.replica
        self._election.campaign(MessageType.VOTE, self.term, hint)

    def _become_leader(self) -> None:
        self._leave(LEADER, self.replica)
        self._election.restart()
        self._replication.start()
        self.membership.start()

    def _tally(self, result: VoteResult) -> None:
        """Go on as the vote says."""
        if result is VoteResult.WON:
            if self.role is PRE_CANDIDATE:
                self._become_candidate(0)
            else:
                self._become_leader()
        elif result is VoteResult.LOST:
            self._become_follower(self.term, 0)

    def _tick_leader(self) -> None:
        election, config = self._election, self._config
        self._idle += 1
        self._transfer.tick()
        election.elapsed += 1
        if election.elapsed >= config.election_ticks:
            election.elapsed = 0
            if not self.transferee:
                self.membership.leave()  # a joint configuration that came into force amid a transfer
            if not self._tracker.quorum_active() and config.check_quorum:
                probe("leader without quorum steps down")
                self._become_follower(self.term, 0)
                return
        self._replication.elapsed += 1
        if self._replication.elapsed >= config.heartbeat_ticks:
            self._replication.elapsed = 0
            self._replication.broadcast_heartbeat(self._reads.context, timed=True)
            self._transfer.hand_over()

    # Messages. The sender's term is ours, but for pre-votes.

    def _on_stale(self, message: Message) -> None:
        """A message of an earlier term: whoever leads or stands in it must learn of ours (paper §5.1)."""
        kind = message.type
        if kind in (MessageType.VOTE, MessageType.PRE_VOTE):
            self._election.refuse(message)
        elif kind in LEADERS_OWN:
            # Without this answer a replica that was in an election by itself could neither follow nor be heard.
            self._outbox.send(Message(APPEND_REPLY, self.replica, message.sender, self.term, reject=True))

    def _follow(self, leader: int) -> None:
        """Somebody leads our term whom we have not followed in it yet."""
        invariant(self.role is not LEADER, f"replica {leader} leads term {self.term} beside us")
        invariant(self.leader in (0, leader), f"replicas {self.leader} and {leader} both lead term {self.term}")
        self._become_follower(self.term, leader)

    def _on_heartbeat_reply(self, message: Message) -> None:
        if self.role is LEADER:
            self._replication.on_heartbeat_reply(message)
            self._reads.on_heartbeat_reply(message)

    def _on_vote_reply(self, message: Message) -> None:
        granted = not message.reject
        pre = message.type == MessageType.PRE_VOTE_REPLY
        stands = PRE_CANDIDATE if pre else CANDIDATE
        if self.role is stands and message.term == self.term + (pre and granted):
            self._tally(self._election.count(message.sender, granted))

    def _on_read_index(self, message: Message) -> None:
        if self.role is LEADER:
            self._reads.add(message.sender, message.nonce, message.context)
        else:
            self._forwarded.refuse(message)

    def _on_timeout_now(self, message: Message) -> None:
        """The leader wants us to succeed it (thesis §3.10)."""
        if self.role is FOLLOWER:
            probe("campaign by transfer")
            self.campaign(transfer=True)

"""`Raft`: one replica of one group. It holds the parts together and owns the transitions between roles."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from nebuladb.env import Rng, probe
from nebuladb.errors import NotLeader, invariant
from nebuladb.raft.confchange import Change
from nebuladb.raft.configuration import Configuration
from nebuladb.raft.election import TRANSFER, Election
from nebuladb.raft.entry import CONFIGURATION, Entry
from nebuladb.raft.following import Following
from nebuladb.raft.log import RaftLog
from nebuladb.raft.membership import Membership
from nebuladb.raft.message import APPEND, APPEND_REPLY, HEARTBEAT, HEARTBEAT_REPLY, Message, MessageType
from nebuladb.raft.outbox import Outbox
from nebuladb.raft.quorum import VoteResult
from nebuladb.raft.reads import ForwardedReads, LeaderReads
from nebuladb.raft.ready import DurableMark, HardState, LogReader, Ready
from nebuladb.raft.replication import REST, Replication
from nebuladb.raft.state import CANDIDATE, FOLLOWER, LEADER, PRE_CANDIDATE, Config, State, StateRole
from nebuladb.raft.transfer import Transfer


class Raft:
    """See the package's docstring for what the caller owes it.

    Invariants, checked where they could break and by `check`: one leader a term; a leader only appends; what is
    committed is never truncated; term and commit never go back; applied <= commit <= last; durable <= last.
    """

    __slots__ = (
        "_config", "_election", "_following", "_forwarded", "_handlers", "_idle", "_log", "_outbox", "_quiet", "_reads",
        "_replication", "_saved", "_state", "_transfer", "membership",
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
        self._config = config
        self._state = State(config.replica, hard_state.term, hard_state.vote, hard_state.term)
        self._saved = (hard_state.term, hard_state.vote)
        self._log = RaftLog(log, hard_state.commit, applied)
        self._outbox = Outbox(self._state)
        self._replication = Replication(config, self._state, self._log, self._outbox)
        self._replication.tracker.configure(configuration, self._log.last + 1)
        self.membership = Membership(self._state, self._log, self._replication)
        """What a leader knows of its members and their changes."""
        self._following = Following(self._state, self._log, self._outbox)
        self._election = Election(config, self._state, self._log, self._outbox, self._replication.tracker, rng)
        self._reads = LeaderReads(self._state, self._log, self._outbox, self._replication)
        self._forwarded = ForwardedReads(self._state, self._outbox, config.heartbeat_ticks)
        self._transfer = Transfer(self._state, self._log, self._outbox, self._replication)
        self._quiet = False
        self._idle = 0  # a leader's ticks without anything to do
        self._handlers: dict[int, Callable[[Message], None]] = {
            MessageType.PRE_VOTE: self._election.on_request,
            MessageType.PRE_VOTE_REPLY: self._on_vote_reply,
            MessageType.VOTE: self._election.on_request,
            MessageType.VOTE_REPLY: self._on_vote_reply,
            MessageType.APPEND: self._on_append,
            MessageType.APPEND_REPLY: self._on_append_reply,
            MessageType.HEARTBEAT: self._on_heartbeat,
            MessageType.HEARTBEAT_REPLY: self._on_heartbeat_reply,
            MessageType.READ_INDEX: self._on_read_index,
            MessageType.READ_INDEX_REPLY: self._forwarded.on_reply,
            MessageType.TIMEOUT_NOW: self._on_timeout_now,
        }
        self.check()

    # What it knows.

    @property
    def replica(self) -> int:
        """Our own replica id."""
        return self._state.replica

    @property
    def role(self) -> StateRole:
        """Our role in `term`."""
        return self._state.role

    @property
    def leader(self) -> int:
        """Replica id of the leader of `term` as far as we know, else 0."""
        return self._state.leader

    @property
    def term(self) -> int:
        """The current term."""
        return self._state.term

    @property
    def vote(self) -> int:
        """Replica id that has our vote in `term`, else 0."""
        return self._state.vote

    @property
    def commit(self) -> int:
        """Last index known to be committed; possibly not durable here."""
        return self._log.commit

    @property
    def applied(self) -> int:
        """Last index that the caller reported as applied."""
        return self._log.applied

    @property
    def last_index(self) -> int:
        """Index of the log's last entry."""
        return self._log.last

    @property
    def last_term(self) -> int:
        """Term of the log's last entry."""
        return self._log.last_term

    @property
    def durable_index(self) -> int:
        """The log is durable here up to this index."""
        return self._log.durable

    @property
    def floor(self) -> int:
        """No replica of the group will be sent entries up to here, as far as we know; for the cut (S6)."""
        return self._state.floor

    @property
    def configuration(self) -> Configuration:
        """The configuration in force."""
        return self._replication.tracker.configuration

    @property
    def stirs(self) -> bool:
        """Whether `ready` may have something."""
        state = self._state
        leads = state.role is LEADER and (self._reads.any or self._replication.unsent())
        return leads or bool(self._outbox) or self._log.untaken or self._saved != (state.term, state.vote)

    @property
    def quiet(self) -> bool:
        """Whether no time passes here until `wake` (S11)."""
        return self._quiet

    @property
    def transferee(self) -> int:
        """Replica that leadership is being handed to, else 0."""
        return self._transfer.to

    @property
    def uncommitted_bytes(self) -> int:
        """Bytes of this leader's proposals that wait for a majority."""
        return self._replication.uncommitted

    def release(self, index: int) -> None:
        """On a leader: the log up to `index`, if committed, is kept for nobody. Who lacks it then gets a snapshot."""
        self._state.floor = max(self._state.floor, min(index, self._log.commit))

    def active_voters(self) -> list[int]:
        """On a leader, the voters heard from in the running check-quorum period (or before it rests), ascending."""
        tracker = self._replication.tracker
        peers = tracker.peers if self.role is LEADER else ()
        return [replica for replica, peer in peers if (peer.active or self._quiet) and tracker.votes(replica)]

    def check(self) -> None:
        """Raise `InvariantViolation` unless the invariants hold."""
        state = self._state
        self._log.check()
        invariant(state.term >= self._saved[0], f"the term went back from {self._saved[0]} to {state.term}")
        invariant(state.durable_term <= state.term, "a later term than ours is durable")
        invariant((state.role is LEADER) == (state.leader == state.replica), "leader in name only")
        if state.role is LEADER:
            invariant(state.vote == state.replica, "a leader that didn't vote for itself")
            self._replication.tracker.check(self._log.last)

    # What the caller asks for.

    def propose(self, payload: bytes) -> tuple[int, int]:
        """Append an entry; returns its (index, term). It is committed if and when that index commits with that term.

        Raises `NotLeader` (with the leader's replica id, 0 also while leadership is handed over) or `TooManyRequests`;
        then the entry certainly was not appended.
        """
        self._leads_on()
        return self._replication.propose(payload)

    def propose_change(self, changes: Iterable[Change]) -> tuple[int, int]:
        """Likewise, the entry that changes the group's members: with more than one voter changed by way of a joint
        configuration, which the leader leaves by itself. Raises `ChangeRefused` or `InvalidArgument`, too."""
        self._leads_on()
        return self.membership.propose(changes)

    def snapshot_finished(self, replica: int, index: int) -> None:
        """The snapshot that `Ready.snapshots` asked for is in at `index`, durably; 0: it failed. Else it is void."""
        self._replication.snapshot_finished(replica, index)

    def read_index(self, nonce: int, context: int) -> None:
        """Ask for a linearizable read; exactly one `ReadState` with (nonce, context) follows in a Ready, maybe a failed
        one. `nonce` is random for a process, `context` never repeats in it."""
        if self._state.role is LEADER:
            self.wake()
            self._reads.add(self._state.replica, nonce, context)
        else:
            self._forwarded.add(nonce, context)

    def transfer_leadership(self, to: int) -> None:
        """Hand leadership to voter `to` once its log is as long as ours, or give up after an election timeout.
        Raises `NotLeader`, or `InvalidArgument` if `to` can't lead."""
        self._leads()
        self._transfer.begin(to)
        self._election.elapsed = 0

    def step_down(self) -> None:
        """Lead no more, in this term; followers will elect another."""
        if self._state.role is LEADER:
            self._become_follower(self._state.term, 0)

    def campaign(self, *, transfer: bool = False) -> None:
        """Stand for election now. `transfer`: because the leader asked for it, hence without a pre-vote."""
        if self._state.role is LEADER or not self._promotable() or self._log.change_unapplied():
            return  # a committed configuration may count by another majority than ours (S4)
        if self._config.pre_vote and not transfer:
            self._become_pre_candidate()
        else:
            self._become_candidate(TRANSFER if transfer else 0)

    def rest(self) -> bool:
        """On a leader: fall quiet, if nothing has happened for `rest_ticks` and every replica has the whole log. One
        heartbeat tells the others; who misses it will ask for votes, which wakes us. Returns `quiet`. A quiet group
        must be woken when the leader's node goes silent, or on the leader any other's (S11)."""
        busy = self._state.role is not LEADER or self._transfer.to or self._reads.any
        if not (busy or self._quiet or self._idle < self._config.rest_ticks) and self._replication.settled():
            self._quiet = True
            self._replication.broadcast_heartbeat(0, timed=True, hint=REST)
        return self._quiet

    def wake(self) -> None:
        """Time passes again: a leader sends heartbeats, a follower waits for them."""
        self._idle = 0
        if self._quiet:
            self._quiet = False
            self._election.restart()
            self._replication.elapsed = self._config.heartbeat_ticks

    def tick(self) -> None:
        """One tick of time has passed."""
        if self._state.role is LEADER:
            if not self._quiet:
                self._tick_leader()
            return
        self._forwarded.tick()
        if not self._quiet and self._election.tick():
            if self._promotable():
                self.campaign()
            else:
                self._become_follower(self._state.term, 0)
                self._election.campaign(MessageType.PRE_VOTE, self._state.term, 0)

    def step(self, message: Message) -> None:
        """Take a message. Lost, repeated, late or reordered ones do no harm."""
        state, kind, term = self._state, message.type, message.term
        handler = self._handlers.get(kind)
        if handler is None or message.receiver != state.replica:
            probe("message not for this replica")
            return
        if kind != HEARTBEAT_REPLY:
            self.wake()  # also for a vote that we won't give: its sender misses a leader
        if term > state.term:
            if kind in (MessageType.VOTE, MessageType.PRE_VOTE) and message.hint != TRANSFER and self._election.loyal():
                return
            # A pre-vote asks, or was granted, for a term that nobody has entered yet.
            granted = kind == MessageType.PRE_VOTE_REPLY and not message.reject
            if kind != MessageType.PRE_VOTE and not granted:
                self._become_follower(term, 0)
        elif term < state.term:
            self._on_stale(message)
            return
        handler(message)

    def ready(self) -> Ready | None:
        """What is to be made durable, sent and answered since the last call; None if there is nothing."""
        state, log, outbox = self._state, self._log, self._outbox
        if state.role is LEADER:
            self._reads.begin()
            self._replication.send_appends()
        entries, hard_state, mark = log.take(), None, None
        if entries or self._saved != (state.term, state.vote):
            hard_state = HardState(state.term, state.vote, log.commit)
            mark = DurableMark(state.term, state.vote, log.last, log.last_term)
            self._saved = (state.term, state.vote)
        elif not outbox:
            return None
        return Ready(hard_state, entries, mark, *outbox.take())

    def durable(self, mark: DurableMark) -> None:
        """The batch with `mark` is durable, and so are all before it.

        A mark of an earlier term is void: its entries may have been overwritten and come back since, with the last of
        these writes still under way (S2). The Ready that brought the new term has a mark for the same entries.
        """
        state = self._state
        if mark.term != state.term:
            invariant(mark.term < state.term, f"durable in term {mark.term}, which is later than ours, {state.term}")
            probe("durable mark of an earlier term")
            return
        state.durable_term = mark.term
        if self._log.made_durable(mark.index, mark.log_term) and state.role is LEADER:
            self._replication.own_durable()
        if state.role is CANDIDATE and mark.vote == state.replica:
            self._tally(self._election.count(state.replica, True))

    def committed_entries(self, after: int, max_bytes: int) -> list[Entry]:
        """Entries behind `after` that are committed and durable here (S1), at least one if there is any, in order.
        A configuration is the last of them, for it takes effect before the next entry (S4)."""
        high = min(self._log.commit, self._log.durable)
        entries = self._log.slice(after + 1, high, max_bytes) if high > after else []
        for position, entry in enumerate(entries, 1):
            if entry.kind == CONFIGURATION:
                return entries[:position]
        return entries

    def applied_to(self, index: int, configuration: Configuration | None = None) -> None:
        """Everything up to `index` was applied; that entry brought `configuration`, if one is given: it is in force."""
        self._log.applied_to(index)
        if configuration is not None:
            self._reconfigure(configuration)
        if self._state.role is LEADER and not self._transfer.to:
            self.membership.leave()

    def cut(self, index: int) -> None:
        """The log up to `index` was cut, or is about to be: the core won't ask for it again. S6 is the caller's."""
        self._log.cut(index)

    # Transitions.

    def _leads_on(self) -> None:
        """Raise `NotLeader` unless we lead and mean to go on."""
        self._leads()
        if self._transfer.to:
            raise NotLeader(f"replica {self._state.replica} is handing leadership over")

    def _leads(self) -> None:
        """Raise `NotLeader` unless we lead; what is asked of a leader wakes the group."""
        state = self._state
        if state.role is not LEADER:
            raise NotLeader(f"replica {state.replica} does not lead its group", leader=state.leader)
        self.wake()

    def _reconfigure(self, configuration: Configuration) -> None:
        """Take what was applied. Who votes no more leads no more (thesis §4.2.2)."""
        state, tracker = self._state, self._replication.tracker
        tracker.configure(configuration, self._log.last)  # a newcomer is probed with the last entry, at once
        if state.role is not FOLLOWER and not tracker.votes(state.replica):
            probe("leader or candidate votes no more")
            self._become_follower(state.term, 0)
        elif state.role is LEADER:
            for part in (self._transfer, self.membership, self._replication, self._reads):
                part.reconfigured()

    def _promotable(self) -> bool:
        return self._config.campaigns and self._replication.tracker.votes(self._state.replica)

    def _leave(self, role: StateRole, leader: int) -> None:
        """Enter `role`: reads that asked the former leader fail, and a transfer ends."""
        state = self._state
        if state.role is LEADER:
            self._reads.fail()
        self._forwarded.fail()
        self._transfer.to = self._idle = 0
        self._quiet = False
        state.role, state.leader = role, leader

    def _become_follower(self, term: int, leader: int) -> None:
        state = self._state
        invariant(term >= state.term, f"the term went back from {state.term} to {term}")
        self._leave(FOLLOWER, leader)
        if term > state.term:
            state.term, state.vote = term, 0
        self._election.restart()

    def _become_pre_candidate(self) -> None:
        """Ask whether an election could be won, before a new term disturbs anybody (thesis §9.6)."""
        state = self._state
        self._leave(PRE_CANDIDATE, 0)
        self._election.campaign(MessageType.PRE_VOTE, state.term + 1, 0)
        self._tally(self._election.count(state.replica, True))

    def _become_candidate(self, hint: int) -> None:
        """Enter a new term and vote for ourselves; that vote counts once it is durable (S3)."""
        state = self._state
        self._leave(CANDIDATE, 0)
        state.term, state.vote = state.term + 1, state.replica
        self._election.campaign(MessageType.VOTE, state.term, hint)

    def _become_leader(self) -> None:
        self._leave(LEADER, self._state.replica)
        self._election.restart()
        self._replication.start()
        self.membership.start()

    def _tally(self, result: VoteResult) -> None:
        """Go on as the vote says."""
        if result is VoteResult.WON:
            if self._state.role is PRE_CANDIDATE:
                self._become_candidate(0)
            else:
                self._become_leader()
        elif result is VoteResult.LOST:
            self._become_follower(self._state.term, 0)

    def _tick_leader(self) -> None:
        election, config = self._election, self._config
        self._idle += 1
        election.elapsed += 1
        if election.elapsed >= config.election_ticks:
            election.elapsed = 0
            self._transfer.give_up()
            self.membership.leave()  # a joint configuration that came into force meanwhile
            if not self._replication.tracker.quorum_active() and config.check_quorum:
                probe("leader without quorum steps down")
                self._become_follower(self._state.term, 0)
                return
        self._replication.elapsed += 1
        if self._replication.elapsed >= config.heartbeat_ticks:
            self._replication.elapsed = 0
            self._replication.broadcast_heartbeat(self._reads.context, timed=True)
            self._transfer.hand_over()

    # Messages. The sender's term is ours, but for pre-votes.

    def _on_stale(self, message: Message) -> None:
        """A message of an earlier term: whoever leads or stands in it must learn of ours (paper §5.1)."""
        kind, state = message.type, self._state
        if kind in (MessageType.VOTE, MessageType.PRE_VOTE):
            self._election.refuse(message)
        elif kind in (APPEND, HEARTBEAT):
            # Without this answer a replica that was in an election by itself could neither follow nor be heard.
            self._outbox.send(Message(APPEND_REPLY, state.replica, message.sender, state.term, reject=True))

    def _follow(self, message: Message) -> None:
        """An append or heartbeat: its sender leads our term."""
        state, leader = self._state, message.sender
        if state.leader != leader or state.role is not FOLLOWER:
            invariant(state.role is not LEADER, f"replica {leader} leads term {state.term} beside us")
            invariant(state.leader in (0, leader), f"replicas {state.leader} and {leader} both lead term {state.term}")
            self._become_follower(state.term, leader)
        self._election.elapsed = 0
        state.floor = max(state.floor, message.floor)

    def _on_append(self, message: Message) -> None:
        self._follow(message)
        self._following.on_append(message)

    def _on_heartbeat(self, message: Message) -> None:
        self._follow(message)
        if self._following.on_heartbeat(message):
            self._quiet = True

    def _on_append_reply(self, message: Message) -> None:
        if self._state.role is LEADER:
            self._replication.on_append_reply(message)
            if self._transfer.to == message.sender:
                self._transfer.hand_over()

    def _on_heartbeat_reply(self, message: Message) -> None:
        if self._state.role is LEADER:
            self._replication.on_heartbeat_reply(message)
            self._reads.on_heartbeat_reply(message)

    def _on_vote_reply(self, message: Message) -> None:
        state, granted = self._state, not message.reject
        pre = message.type == MessageType.PRE_VOTE_REPLY
        stands = PRE_CANDIDATE if pre else CANDIDATE
        if state.role is stands and message.term == state.term + (pre and granted):
            self._tally(self._election.count(message.sender, granted))

    def _on_read_index(self, message: Message) -> None:
        if self._state.role is LEADER:
            self._reads.add(message.sender, message.nonce, message.context)
        else:
            self._forwarded.refuse(message)

    def _on_timeout_now(self, message: Message) -> None:
        """The leader wants us to succeed it (thesis §3.10)."""
        if self._state.role is FOLLOWER:
            probe("campaign by transfer")
            self.campaign(transfer=True)

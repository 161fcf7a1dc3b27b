"""A group's copy on this node: its Raft core, what its clients wait for, and how far its store is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from nebuladb.env import Rng, probe
from nebuladb.errors import NotLeader, TooManyRequests, invariant
from nebuladb.ids import LEASE_GROUP_SHIFT
from nebuladb.kv.command import Command, Kind, Work
from nebuladb.node.entry import command_kind, decode_payload, encode_command, encode_payload, with_chosen
from nebuladb.node.forwards import Forwards
from nebuladb.node.frame import FORWARD, FORWARD_REPLY, Envelope
from nebuladb.node.lessor import Lessor
from nebuladb.node.output import Output, Slice
from nebuladb.node.proposals import MAX_PENDING_BYTES, Outcomes, Proposals
from nebuladb.node.read_lease import ReadLease, lease_length
from nebuladb.node.reads import ReadOutcomes, Reads
from nebuladb.node.tail import LogTail, TailLimits
from nebuladb.raft import LEADER, Config, Configuration, HardState, Message, Raft
from nebuladb.raft.entry import CONFIGURATION, ENTRY_HEADER, NORMAL, Entry
from nebuladb.raft.log import FORGOTTEN
from nebuladb.raft.ready import LogReader
from nebuladb.share import Share

MAX_ENTRY_BYTES: Final = 1 << 20
"""Commands of one turn share an entry up to this size; a larger command has one of its own."""
MAX_ENTRY_COMMANDS: Final = 4_096
MAX_ENTRIES_IN_FLIGHT: Final = 2
"""Entries of this leader not yet committed; later commands gather for the next (speed: fewer, larger entries)."""
MAX_SLICE_BYTES: Final = 1 << 20
"""Entries decoded for the store at once. What it has no room for stays decoded for its next slice."""
LEFT_OPEN: Final = frozenset((Kind.SESSION_OPEN, Kind.LEASE_GRANT))
"""Kinds of commands with a value that the leader chooses."""
NEVER: Final = 1 << 63
"""An index that no log reaches."""
LEADERLESS_TICKS: Final = 40
"""2 s without a leader: longer than elections take where there is a majority. Then another node is worth a try."""


@dataclass(slots=True)
class Start:
    """What a replica starts from: the durable log's state and the store's."""

    group: int
    replica: int
    generation: int
    nodes: Mapping[int, int]
    """Replica id → node id."""
    configuration: Configuration
    configuration_index: int
    """Log index of `configuration`; perhaps above `applied`, then older ones on the way there are history (S30)."""
    hard_state: HardState
    log: LogReader
    applied: int
    durably_applied: int
    """Applied index that the data store holds on disk: the log may be cut up to it (S6)."""
    clock: int
    """The store's lease clock, ms."""
    leases: Iterable[tuple[int, int, int]]
    """(lease, expires, renewal) of the store."""
    lease_reads: bool = False
    """Reads by the leader's lease, on all nodes (``node.read_lease``)."""
    partial: bool = False
    """The store has half applied the entry behind `applied`."""
    lost: bool = False
    """There is no data behind the log: the replica votes and keeps its log, and neither campaigns nor serves nor
    applies until a snapshot is in (S5, S15)."""


def _applied(start: Start) -> int:
    """The index of the last entry that was applied, wholly or in part. It was committed, though the durable commit
    index, which isn't written with the data, may be lower. (By the lower one a new leader could finish the entry only
    after a majority had answered, and until then would have no whole state to send to a replica that needs a snapshot.)
    Raises `InvariantViolation` if the log ends before it.
    """
    index, last = start.applied + start.partial, start.log.last()[0]
    invariant(
        index <= last,
        f"group {start.group}: the data is at index {index}, its log ends at {last}. "
        f"{FORGOTTEN}: if raft/ can't be put back as it was, run `nebula-cli member replace` with this node's name",
    )
    return index


class Replica:
    """See the module. `Host` owns it and is the only one to call it; nothing here waits."""

    __slots__ = (
        "_configured", "_context", "_internal", "_leader", "_leaderless", "_observed", "_proposed", "_refused", "_rng",
        "_slice_out", "_strangers", "_works", "applied", "cut_due", "durably_applied", "forwards", "generation",
        "group", "id", "leader_changes", "lease", "lessor", "log", "log_start", "lost", "node", "nodes", "nonce",
        "proposals", "proposed_entries", "raft", "reads", "saved", "serves_from", "start_term", "tail",
    )  # fmt: skip

    def __init__(
        self,
        start: Start,
        node: int,
        nonce: int,
        rng: Rng,
        boottime: int,
        context: int = 0,
        config: Config | None = None,
        writes: Share | None = None,
        counts: Share | None = None,
    ) -> None:
        """`context`: rounds of reads are numbered from here on; a late reply to another replica of this life and group
        must not be taken for ours (S8). `writes`: bytes that the commands waiting in all of the node's replicas may
        take together; `counts`: how many of its own clients' there may be."""
        hard_state = start.hard_state._replace(commit=max(start.hard_state.commit, _applied(start)))
        self.group = start.group
        self.generation = start.generation
        self.id = start.replica
        self.nodes = dict(start.nodes)
        """Replica id → node id, as the registry has them (S17)."""
        self._strangers: dict[int, int] = {}
        """Likewise, of replicas that it doesn't list, and that were heard from."""
        self._configured = start.configuration_index
        self.node = node
        self.nonce = nonce
        config = config or Config(start.replica, campaigns=not start.lost, guards_leases=start.lease_reads)
        self.lease = ReadLease(lease_length(config.election_ticks) if start.lease_reads else 0)
        self.raft = Raft(config, start.log, hard_state, start.configuration, start.applied, rng)
        self.start_term = hard_state.term
        self.serves_from = NEVER if start.lost else hard_state.commit
        """No serializable read, watch or readiness before this index is applied: it may have been served before the
        restart. So may a little beyond it: a commit index that came alone, with nothing else to write, isn't saved."""
        writes = writes or Share(MAX_PENDING_BYTES)
        self.proposals = Proposals(writes, counts)
        self.forwards = Forwards(start.group, self.raft, writes)
        self.reads = Reads()
        self.lessor = Lessor(start.clock, boottime, start.leases)
        self.applied = start.applied
        self.durably_applied = start.durably_applied
        self.log = start.log
        self.log_start = start.log.start()[0]
        self.saved = (hard_state.term, hard_state.vote, self.raft.last_index)
        """Term, vote and last index of the last hard state that went into a log batch."""
        self._rng = rng
        self._internal: list[bytes] = []
        self._refused = False
        self._works: list[Work] = []
        """Decoded, committed and durable, and not applied yet."""
        self._slice_out = False
        self.lost = start.lost
        self.tail = LogTail(start.log.last()[0])
        self.cut_due = True
        """Whether to see to what of the log may go."""
        self._observed = 0
        """Term of the last entry that was handed out. Before one of its own term a leader doesn't know the lease clock
        of those before it, which its own may be ahead of: it proposes nothing (S27)."""
        self._proposed: list[int] = []
        self._context = context
        self._leader = (0, 0)
        self._leaderless = 0  # ticks for which nobody has led, as far as this replica knows
        self.leader_changes = self.proposed_entries = 0
        """Counts since the process started."""

    # --- what comes in -------------------------------------------------------------------------------------------

    def slice_applied(self, index: int, configuration: bytes = b"") -> None:
        """The store finished the slice that was out, up to `index`: not all of it if an entry is half applied. The last
        entry brought `configuration`, if that isn't empty, which is in force now (S4)."""
        self._slice_out = False
        if self._works:
            del self._works[: index + 1 - self._works[0].index]
        self.applied = index
        brought = None
        if configuration and index > self._configured:
            brought = Configuration.decode(configuration)
            self._configured = index
        self.raft.applied_to(index, brought)

    # --- what goes out -------------------------------------------------------------------------------------------

    def propose(
        self, boottime: int, reaches: Callable[[int], bool], number: int, *, crowd: bool = False
    ) -> list[tuple[int, Envelope]]:
        """Turn what waits into log entries, if this replica leads, else into forwards from `number` on, two at most.

        `crowd`: many groups write. Then one entry at a time is in flight here, the others keep disks and links busy
        meanwhile, and what gathers for the next one shares its cost: 0.3 ms of CPU on three nodes, as much as seven
        puts.
        """
        if self.raft.role is LEADER:
            return self._propose_here(boottime, 1 if crowd else MAX_ENTRIES_IN_FLIGHT)
        replies = self.forwards.let_go()
        self._internal.clear()
        leader = self.raft.leader
        node = self.home(leader)
        proposals = self.proposals
        waits = proposals.queue or proposals.control_queue
        if not waits or self._refused or not leader or not reaches(node):
            return replies
        # Control commands go apart: a leader under pressure takes them and refuses the others.
        for context, urgent in ((number, bool(proposals.control_queue)), (number + 1, False)):
            taken = proposals.take(MAX_ENTRY_COMMANDS, MAX_ENTRY_BYTES, urgent=urgent)
            if taken:
                proposals.sent(taken, context, node)
                message = Message(FORWARD, self.id, leader, self.raft.term, context=context)
                replies.append((node, Envelope(self.group, message, [pending.request.wire for pending in taken])))
            if not urgent:
                break
        return replies

    def start_read_round(self, boottime: int) -> ReadOutcomes:
        """Ask Raft to confirm the reads that wait, if there is someone to ask; those that a lease confirms are ready.
        `boottime` was read after they came."""
        raft = self.raft
        if not self.reads.wants_round or not raft.leader:
            return []
        self._context += 1
        leads = raft.role is LEADER and not raft.quiet
        if leads and self.lease.holds(boottime, raft.term, raft.configuration):
            probe("read by lease")
            self.reads.start(self._context)
            return self.reads.confirmed(self._context, raft.commit, self.applied)
        try:
            raft.read_index(self.nonce, self._context)
        except (NotLeader, TooManyRequests):
            return []
        if raft.role is LEADER:
            self.lease.asked(self._context, boottime, raft.term, raft.configuration)
        self.reads.start(self._context)
        return []

    def read_confirmed(self, context: int, index: int) -> ReadOutcomes:
        """Raft's answer to a round; a negative index: it failed."""
        if index >= 0:
            self.lease.confirmed(context)
        return self.reads.confirmed(context, index, self.applied)

    def transfer_leadership(self, to: int) -> None:
        """See `Raft.transfer_leadership`; the lease goes first (S10)."""
        self.lease.give_up(self.raft.term)
        self.raft.transfer_leadership(to)

    def tick(self, boottime: int) -> None:
        """A tick of Raft's, and what lease time demands of a leader: expiries, or an entry that carries the clock."""
        raft = self.raft
        raft.tick()
        self._leaderless = 0 if raft.leader else self._leaderless + 1
        if raft.leader and (raft.term, raft.leader) != self._leader:
            self._leader = (raft.term, raft.leader)
            self.leader_changes += 1
        self._refused = False
        if raft.role is not LEADER or self._internal:
            return
        if not len(self.lessor) and not self.unanswered:
            raft.rest()
        if self._observed != raft.term:
            return
        for lease, renewal in self.lessor.due(boottime):
            body = lease.to_bytes(8, "big", signed=True) + renewal.to_bytes(8, "big")
            self._internal.append(encode_command(Command(Kind.LEASE_EXPIRE, body)))
        if not self._internal and self.lessor.wants_entry(boottime):
            self._internal.append(encode_command(Command(Kind.CLOCK, b"")))

    def expire(self, now: int) -> Outcomes:
        """Writes that are given up at `now` (ms). A node that is cut off from the majority tells its clients so as long
        as they have time to ask another."""
        return self.proposals.expire(now, leaderless=self._leaderless > LEADERLESS_TICKS)

    @property
    def unanswered(self) -> bool:
        """Whether somebody waits for something here."""
        return bool(len(self.proposals) or len(self.reads) or self.forwards.queue or self._internal)

    @property
    def proposes(self) -> bool:
        """Whether something waits to be proposed or forwarded."""
        proposals = self.proposals
        return bool(proposals.queue or proposals.control_queue or self.forwards.queue or self._internal)

    @property
    def waits(self) -> bool:
        """Whether something waits to be proposed, forwarded or asked."""
        return self.proposes or self.reads.wants_round

    @property
    def has_work(self) -> bool:
        """Whether Raft may have something to hand out, or the store something to apply."""
        return self.raft.log.commit > self.applied or self.raft.has_ready

    @property
    def urgent(self) -> bool:
        """Whether a term or vote waits for the next log batch, and no entries with it (S31)."""
        raft = self.raft
        return self.saved != (raft.term, raft.vote, raft.last_index) and self.saved[2] == raft.last_index

    @property
    def resting(self) -> bool:
        """Whether a tick would do nothing (S11)."""
        return self.raft.quiet and not self.unanswered and self.applied == self.raft.commit

    def replied(self, node: int, message: Message) -> Outcomes:
        """The leader's reply to a forward."""
        # Its sender may not know yet that it leads no more, or we that it does not: look again at the next tick.
        self._refused = message.reject
        return self.proposals.replied(
            message.context, node, message.index, message.term, refused=message.reject, applied=self.applied
        )

    def next_slice(self, boottime: int) -> Slice | None:
        """Committed and durable entries for the store, if none are out (S1)."""
        if self._slice_out or self.lost:
            return None
        if not self._works:
            if self.raft.log.commit <= self.applied:
                return None
            committed = self.raft.committed_entries(self.applied, MAX_SLICE_BYTES)
            self._works = [self._decode(entry, boottime) for entry in committed]
            if not self._works:
                return None
        self._slice_out = True
        return Slice(self.group, self.generation, list(self._works))

    def _decode(self, entry: Entry, boottime: int) -> Work:
        self._observed = entry.term
        if entry.kind == CONFIGURATION:
            return Work(entry.index, entry.term, 0, (), bytes(entry.record[ENTRY_HEADER:]))
        invariant(entry.kind == NORMAL, f"group {self.group}: entry {entry.index} has kind {entry.kind}")
        clock, commands = decode_payload(entry.record, ENTRY_HEADER)
        if clock:
            leads = self.raft.role is LEADER and entry.term == self.raft.term
            self.lessor.observe(clock, boottime, leads=leads)
        return Work(entry.index, entry.term, clock, commands)

    def cut_index(self, limits: TailLimits, held: Mapping[int, int]) -> int:
        """Up to where the log may be cut now; 0: not enough is to be gained. A leader decides first what is kept for
        whom; `held`: see `LogTail.needed`."""
        raft, tail = self.raft, self.tail
        if raft.role is LEADER:
            raft.release(tail.needed(limits, raft.membership.peers(), held))
        index, start = min(self.durably_applied, raft.floor), self.log_start
        gain = tail.size_up_to(index) - tail.size_up_to(start)
        return index if index > start and (index - start >= limits.cut_entries or gain >= limits.cut_size) else 0

    def wants_flush(self, limits: TailLimits) -> bool:
        """Whether the log is longer than anyone needs, and only the data's flush lets it be cut."""
        loose, start = min(self.raft.floor, self.applied), self.durably_applied
        if loose <= start:
            return False
        gain = self.tail.size_up_to(loose) - self.tail.size_up_to(start)
        return loose - start >= limits.entries or gain >= limits.size

    def cut(self, index: int) -> None:
        """The log up to `index` goes with the next batch."""
        self.raft.cut(index)
        self.tail.cut(index)
        self.log_start = index

    def close(self, output: Output) -> None:
        """The replica leaves this node: nobody waits for it any more."""
        self.forwards.drop()
        output.answers += self.proposals.close()
        output.reads += self.reads.close()

    def home(self, replica: int) -> int:
        """The node that a replica is on, as far as we know; else 0."""
        return self.nodes.get(replica) or self._strangers.get(replica, 0)

    def hears(self, message: Message, node: int, gone: Callable[[int, int], bool]) -> bool:
        """Whether a message that came from `node` is for us, by a replica of our group (S16).

        Its sender needn't be listed: who missed a change of members must follow a leader that came by it, and vote for
        it (thesis §4.1). But one that our picture of meta says to be `gone` isn't heard, nor one that is listed
        elsewhere, for none ever moves.
        """
        sender = message.sender
        if message.receiver != self.id:
            return False
        if self.nodes.get(sender) == node:
            return True
        if not sender or sender in self.nodes or gone(self.group, sender):
            return False
        if self._strangers.get(sender) != node:
            probe("a replica that isn't listed here speaks")
            # Of each node the last one: a peer can't make this grow.
            self._strangers = {other: home for other, home in self._strangers.items() if home != node}
            self._strangers[sender] = node
        return True

    def moved(self, nodes: Iterable[tuple[int, int]]) -> None:
        """The registry has the group's replicas anew: (replica id, node id)."""
        self.nodes = dict(nodes)
        self._strangers.clear()

    def on(self, node: int) -> int:
        """Id of the group's replica on `node`; 0 if it has none."""
        return next((replica for replica, home in self.nodes.items() if home == node), 0)

    def successor(self, receivers: Collection[int] = ()) -> int:
        """A node to hand leadership to: a voter that was heard from lately, none of `receivers` (see `Host`); 0 if
        there is none."""
        able = (voter for voter in self.raft.active_voters() if voter in self.nodes and voter not in receivers)
        return next((self.nodes[voter] for voter in able), 0)

    # --- proposing -----------------------------------------------------------------------------------------------

    def _propose_here(self, boottime: int, most: int) -> list[tuple[int, Envelope]]:
        replies: list[tuple[int, Envelope]] = []
        if self._observed != self.raft.term:
            return replies
        committed = self.raft.log.commit
        self._proposed = [index for index in self._proposed if index > committed]
        proposals = self.proposals
        while len(self._proposed) < most and self.proposes:
            wires = self._internal.copy()
            forwards = self.forwards.take(MAX_ENTRY_COMMANDS, MAX_ENTRY_BYTES) if self.forwards.queue else []
            for forward in forwards:
                wires += forward.commands
            own = []
            if proposals.queue or proposals.control_queue:
                own = proposals.take(MAX_ENTRY_COMMANDS, MAX_ENTRY_BYTES)
                wires += [pending.request.wire for pending in own]
            wires = [self._choose(wire) if command_kind(wire) in LEFT_OPEN else wire for wire in wires]
            payload = encode_payload(self.lessor.clock(boottime), wires)
            try:
                index, term = self.raft.propose(payload)
            except (NotLeader, TooManyRequests) as error:
                probe(f"proposal refused: {type(error).__name__}")
                proposals.give_back(own)
                return [*replies, *(self.forwards.refuse(forward) for forward in forwards)]
            self._internal.clear()  # not before: what lease time demands waits for the end of a hand-over
            self._proposed.append(index)
            self.proposed_entries += 1
            if own:
                proposals.placed(own, index, term)
            for forward in forwards:
                number = forward.number
                message = Message(FORWARD_REPLY, self.id, forward.replica, term, index=index, context=number)
                replies.append((forward.node, Envelope(self.group, message)))
        return replies

    def _choose(self, wire: bytes) -> bytes:
        """A value that a command leaves open is chosen here, once, by the leader (S21)."""
        if command_kind(wire) == Kind.SESSION_OPEN:
            return with_chosen(wire, self._rng.randrange(1, 1 << 63))
        return with_chosen(wire, self.group << LEASE_GROUP_SHIFT | self._rng.randrange(1, 1 << LEASE_GROUP_SHIFT))

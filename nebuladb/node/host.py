"""`Host`: one node's replicas of all groups, stepped together. Pure; ``node.output`` is its boundary."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final

from nebuladb.env import Rng, probe
from nebuladb.errors import Corruption, Unavailable, invariant
from nebuladb.ids import BatchId, GroupId
from nebuladb.kv.change import Applied
from nebuladb.node.batches import MAX_UNSYNCED_BYTES, Batches
from nebuladb.node.disk import STALLED_BIT, DiskState
from nebuladb.node.forwards import Forward
from nebuladb.node.frame import (
    ADDRESS,
    FORWARD,
    FORWARD_REPLY,
    GONE,
    HASH,
    SNAPSHOT_CHUNK,
    Address,
    Envelope,
    decode_frame,
)
from nebuladb.node.mail import Mail
from nebuladb.node.memory import MemoryPlan
from nebuladb.node.output import TICK_MS, Output, Request
from nebuladb.node.peer import Peer
from nebuladb.node.proposals import MAX_NODE_PENDING, MAX_PENDING_BYTES, Outcomes
from nebuladb.node.reads import ReadOutcomes
from nebuladb.node.replica import Replica, Start
from nebuladb.node.tail import TailLimits
from nebuladb.raft import FOLLOWER, LEADER, REPLIES, HardState, Message
from nebuladb.raft.confchange import Change
from nebuladb.share import Share
from nebuladb.storage.log_batch import GroupWrite

CUT_TICKS: Final = 20
"""How often a log is looked at for what may be cut, beside after each flush."""
EXPIRE_TICKS: Final = 4
"""Deadlines are looked at every so many ticks."""
LIVENESS_TICKS: Final = 2
"""Ticks between two frames to a connected peer at most; one without messages says only that we live."""
CROWD: Final = 8
"""Groups that a turn steps, from which on each of them has one entry of its own in flight at a time."""
SILENT_MS: Final = 500
"""Without a frame for the least election timeout, a peer's groups wait for heartbeats again."""


class Host:
    """See ``node.output`` for what goes in and out.

    Invariants: batches become durable in the order of their ids; a held frame leaves only when the batch that was
    newest when it was made, and so every older one, is durable; at most one slice per group is out.
    """

    def __init__(
        self, cluster: int, node: int, incarnation: int, first_batch: int, rng: Rng, memory: MemoryPlan | None = None
    ) -> None:
        self.cluster = cluster
        self.node = node
        self.incarnation = incarnation
        """Drawn when the process started: nonce of its reads, and how peers tell this life from an earlier one."""
        self.replicas: dict[int, Replica] = {}
        self.peers: dict[int, Peer] = {}
        self.now = 0
        self.boottime = 0
        self.disk = DiskState()
        self._rng = rng
        self.batches = Batches(first_batch, memory.unsynced if memory else MAX_UNSYNCED_BYTES)
        self._held: dict[int, None] = {}
        """Groups whose writes wait for a batch to become durable."""
        self.writes = Share(memory.writes if memory else MAX_PENDING_BYTES)
        """Commands that wait, of all groups together."""
        self.pending = Share(MAX_NODE_PENDING)
        """How many of them are our clients'."""
        # No other life of this node uses the same ones: a peer may answer now what an earlier life forwarded (S19).
        self._forward_number = (incarnation & 0x7FFF_FFFF) << 32
        self.gone: Callable[[int, int], bool] = lambda group, replica: False
        """Whether a replica was removed from its group for ever, as this node's picture of meta has it."""
        self.receivers: Callable[[int], Collection[int]] = lambda group: ()
        """A group's replicas to which a snapshot is on its way, or is to be: they may have no data, and can't lead."""
        self.removed: dict[int, int] = {}
        """Group → our replica of it, of which a peer says that it was; whoever acts on it takes it away."""
        self._ticks = self._started = 0
        self.tail_limits = TailLimits()
        self.held_logs: dict[int, dict[int, int]] = {}
        """Group → replica → index of the snapshot that is on its way there: the log behind it is kept."""
        self.flush_due = False
        """A log is long, and only the data store's flush lets it be cut; whoever flushes takes it away."""
        self._dirty: dict[int, None] = {}
        self._awake: dict[int, None] = {}
        """Groups that need ticks: all but those that rest."""
        self.stepped: dict[int, None] = {}
        """Groups that the last `poll` looked at, or that applied something since: the others are as they were."""
        self.mail = Mail(self.peers)
        self._output = Output()

    # --- in ------------------------------------------------------------------------------------------------------

    def tick(self, now: int, boottime: int) -> None:
        """One tick (50 ms) has passed; both clocks in ms. After a gap call it once only, and after all input (S12)."""
        self.now, self.boottime = now, boottime
        self._ticks += 1
        expire, cut = self._ticks % EXPIRE_TICKS == 0, self._ticks % CUT_TICKS == 0
        self.disk.strained = any(peer.status for peer in self.peers.values())
        self.disk.sync_age = self.batches.age(self._ticks) * TICK_MS
        for peer in [node for node, peer in self.peers.items() if peer.connected]:
            self._watch(peer)
        for group in list(self._awake):
            replica = self.replicas.get(group)
            if replica is None or (replica.raft.quiet and self._rests(replica)):
                del self._awake[group]
                continue
            replica.tick(boottime)
            replica.cut_due |= cut
            if replica.cut_due or replica.waits or replica.has_work:
                self._dirty[group] = None
            if expire:
                self._output.answers += replica.expire(now)
                self._output.reads += [*replica.reads.expire(now), *self.disk.starved(replica)]

    def _watch(self, node: int) -> None:
        """What quiet groups rely on: every node hears from every other at least once a heartbeat (S11)."""
        if self._ticks % LIVENESS_TICKS == 0:
            self.mail.live(node)
        peer = self.peers[node]
        if not peer.silent and self.now - peer.heard > SILENT_MS:
            probe("peer gone silent")
            peer.silent = True
            self._wake(node)

    def _rests(self, replica: Replica) -> bool:
        """Whether a group needs no ticks. Each comes here once after it fell quiet: if its leader has been lost by then
        (the word to rest was the last that came from it), nothing else would wake the group."""
        if not replica.resting:
            return False
        leader = replica.home(replica.raft.leader)
        peer = self.peers.get(leader)
        if leader == self.node or (peer is not None and peer.near):
            return True
        replica.raft.wake()
        return False

    def _wake(self, node: int) -> None:
        """`node` is gone, back or silent: the quiet groups that it leads, and all that are led here, look for
        themselves. One that was awake may have heard from it a moment ago, and must miss it before it may rest."""
        for group, replica in self.replicas.items():
            raft = replica.raft
            if raft.role is LEADER or (raft.quiet and replica.home(raft.leader) == node):
                raft.wake()
                self._dirty[group] = None

    def peer_up(self, node: int, incarnation: int) -> None:
        """A link to `node`, which is in its life `incarnation`, stands."""
        known = self.peers.get(node)
        if known is not None and known.incarnation == incarnation:
            known.connected, known.since = True, self.now
        else:
            self.peer_down(node)
            to_it = Address(self.cluster, self.node, self.incarnation, node, incarnation)
            to_us = Address(self.cluster, node, incarnation, self.node, self.incarnation)
            self.peers[node] = Peer(incarnation, to_it.encode(), to_us.encode(), since=self.now)
        self.peers[node].heard, self.peers[node].silent = self.now, False
        self._wake(node)
        self._dirty.update(dict.fromkeys(self.replicas))

    def peer_down(self, node: int) -> None:
        """The link is gone: what was forwarded there without a reply is unknown (S19).

        The peer's window of forwards stays until another incarnation comes: a repeat may arrive over the next link.
        """
        if node in self.peers:
            self.peers[node].connected, self.peers[node].since = False, self.now
        for replica in self.replicas.values():
            self._output.answers += replica.proposals.lost(node)
        self._wake(node)

    def forget(self, node: int) -> None:
        """`node` was removed for ever, and no link to it is made any more. Once the last one is down, what is known of
        it goes, the numbers of its forwards included: nobody hears a forward of a replica that is gone (S16)."""
        if node in self.peers and not self.peers[node].connected:
            del self.peers[node]
            self.mail.waiting.pop(node, None)

    def receive(self, node: int, frame: bytes) -> None:
        """A frame came over the link to `node`. A damaged or misdirected one is dropped, as if lost (S16)."""
        peer = self.peers.get(node)
        if peer is None or frame[ADDRESS] != peer.to_us:
            probe("misaddressed frame dropped")
            return
        try:
            status, envelopes = decode_frame(frame)
        except Corruption:
            probe("damaged frame dropped")
            return
        if status & STALLED_BIT & ~peer.status:
            self._wake(node)  # it leads nothing any more, and can't say so to the groups that rest
        peer.heard, peer.silent, peer.status = self.now, False, status
        replicas = self.replicas
        for envelope in envelopes:
            group, message = envelope.group, envelope.message
            replica = replicas.get(group)
            if message.type == GONE:
                if replica is not None and message.receiver == replica.id:
                    self.removed[group] = replica.id
            elif replica is None or not replica.hears(message, node, self.gone):
                # Also for a group that was removed here: a forward without an answer is *unknown*, which is true.
                probe("message for another replica dropped")
                if self.gone(group, message.sender):
                    probe("removed replica told so")
                    told = Message(GONE, 0, message.sender, message.term)
                    self.mail.add([(node, Envelope(group, told))])
            else:
                self._step_in(replica, peer, node, envelope)

    def _step_in(self, replica: Replica, peer: Peer, node: int, envelope: Envelope) -> None:
        message = envelope.message
        if message.type < FORWARD:
            if not message.entries or not self.disk.refuses(replica, message, self.peers, self.batches.flooded):
                replica.raft.step(message)
            if message.type not in REPLIES or replica.has_work:  # of a majority's, the last ask for nothing
                self._dirty[envelope.group] = None
            return
        self._dirty[envelope.group] = None
        if message.type == FORWARD:
            self._forwarded(replica, peer, node, envelope)
        elif message.type == FORWARD_REPLY:
            self._output.answers += replica.replied(node, message)
        elif message.type == HASH:
            self._output.hashes += ((envelope.group, message),)
        elif message.type >= SNAPSHOT_CHUNK:
            self._output.transfers.append((node, envelope))

    def request(self, request: Request) -> None:
        """A write. Raises `Unavailable`, `TooManyRequests` or `NoSpace` if it was not taken; else an answer comes."""
        replica = self._replica(request.group)
        if self.disk.status or self.disk.strained:
            self.disk.admit(request, replica, self.peers)
        replica.proposals.add(request)
        self._dirty[request.group] = None

    def read(self, request: int, group: int, deadline: int) -> None:
        """A linearizable read; `Output.reads` says when. Raises like `request`."""
        self._replica(group).reads.add(request, deadline)
        self._dirty[group] = None

    def durable(self, batch: int) -> None:
        """A sync that began after `batch` was written is done."""
        for done in self.batches.finished(batch):
            for group, mark in done.marks:
                replica = self.replicas.get(group)
                if replica is not None:
                    replica.raft.durable(mark)
                    if replica.has_work or replica.waits:
                        self._dirty[group] = None
            self.mail.add(done.held)
            if self._held:
                self._dirty.update(self._held)
                self._held.clear()

    def applied(self, group: int, generation: int, applied: Applied) -> None:
        """The store applied (a part of) the slice that was out."""
        replica = self.replicas.get(group)
        if replica is None or replica.generation != generation:
            probe("completion of an old generation dropped")
            return
        for change in applied.leases:
            replica.lessor.changed(change.lease, change.expires, change.renewal)
        replica.slice_applied(applied.index, applied.configuration)
        self._output.answers += replica.proposals.applied(applied.index, applied.answers)
        if replica.reads.awaited:
            self._output.reads += replica.reads.applied(applied.index)
        self.stepped[group] = None
        if replica.waits or replica.raft.log.commit > applied.index or applied.configuration:
            self._dirty[group] = None

    @property
    def unsynced_bytes(self) -> int:
        """Log bytes on their way to the disk."""
        return self.batches.unsynced

    def flushed(self, applied: dict[int, int]) -> None:
        """The data store has on disk what each group had applied at the given index (S6)."""
        for group, index in applied.items():
            replica = self.replicas.get(group)
            # Else the flush began before the replica lost its data, and is about what is there no more (S6).
            if replica is not None and index <= replica.applied:
                replica.durably_applied = max(replica.durably_applied, index)
                replica.cut_due = True
                self._dirty[group] = None

    def add_group(self, start: Start) -> Replica:
        """Start a replica from durable state."""
        invariant(start.group not in self.replicas, f"group {start.group} is here already")
        replica = Replica(
            start, self.node, self.incarnation, self._rng, self.boottime, self._started << 32,
            writes=self.writes, counts=self.pending,
        )  # fmt: skip
        self._started += 1
        self.replicas[start.group] = replica
        self._dirty[start.group] = None
        return replica

    def create_group(self, group: int, initial: tuple[int, int], registry_row: bytes) -> BatchId:
        """Put a new group's log start and registry row into the next batch, whose id is returned. `add_group`, and data
        of the group, once that is durable, no earlier (S15, S17): a crash could take the row and leave the data."""
        self.batches.current(self._ticks).create(GroupId(group), *initial)
        return self.register_group(group, registry_row)

    def register_group(self, group: int, registry_row: bytes) -> BatchId:
        """Put a group's new registry row into the next batch, whose id is returned."""
        batch = self.batches.current(self._ticks)
        batch.register(GroupId(group), registry_row)
        return batch.id

    def remove_group(self, group: int, tombstone: bytes) -> BatchId:
        """Forget a group: whoever waits for it is told so, and the next batch, whose id is returned, drops its log and
        makes `tombstone` its registry row. Its data may go once that batch is durable, no earlier: a crash could bring
        the row back, and a replica without data (S17)."""
        replica = self.replicas.pop(group, None)
        if replica is not None:
            replica.close(self._output)
        self.batches.current(self._ticks).drop(GroupId(group))
        return self.register_group(group, tombstone)

    def install(self, group: int, head: tuple[int, int], commit: int, registry_row: bytes) -> BatchId:
        """A snapshot at `head`, (index, term), takes the place of the group's state: the log up to there goes, or all
        of it if it isn't the same there; term and vote stay, and the durable `commit` (S5, S30). The replica is gone
        until `add_group`, which the caller owes it once the batch, whose id is returned, is durable."""
        replica = self.replicas[group]
        self.suspend(group, registry_row)
        batch = self.batches.current(self._ticks)
        state = HardState(replica.raft.term, replica.raft.vote, max(head[0], commit))
        batch.write(GroupWrite(GroupId(group), state))
        batch.cut(GroupId(group), *head)
        return batch.id

    def suspend(self, group: int, registry_row: bytes) -> BatchId:
        """The replica is gone until `add_group`, likewise; its log stays as it is."""
        self.replicas.pop(group).close(self._output)
        return self.register_group(group, registry_row)

    def post(self, node: int, envelope: Envelope) -> None:
        """A message of the node's own, for the next frame."""
        self.mail.add([(node, envelope)])

    def campaign(self, group: int) -> None:
        """Stand for election now, if nobody leads `group` and we are in no election: its home needn't wait its turn."""
        replica = self.replicas.get(group)
        if replica is not None and not replica.raft.leader and replica.raft.role is FOLLOWER:
            replica.raft.campaign()
            self._dirty[group] = None

    def propose_change(self, group: int, changes: Sequence[Change]) -> None:
        """Change a group's members. Raises `NotLeader`, `ChangeRefused`, `InvalidArgument` or `Unavailable`."""
        self._replica(group).raft.propose_change(changes)
        self._dirty[group] = None

    def step_down(self, group: int) -> None:
        """Lead `group` no more: this node's disk hangs, so it neither appends nor votes; the others elect one."""
        self._replica(group).raft.step_down()
        self._dirty[group] = None

    def transfer_leadership(self, group: int, node: int) -> None:
        """Hand `group` to the replica on `node`. Raises `NotLeader` or `Unavailable`."""
        replica = self._replica(group)
        target = replica.on(node)
        if not target:
            raise Unavailable(f"group {group} has no replica on that node")
        replica.transfer_leadership(target)
        self._dirty[group] = None

    # --- out -----------------------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether `poll` would look at a group or hand anything out, or something came that somebody acts on."""
        output = self._output
        return bool(
            self._dirty or self.mail.waiting or self.batches.gathering is not None or self.removed
            or output.answers or output.reads or output.hashes or output.transfers
        )  # fmt: skip

    def results(self) -> tuple[Outcomes, ReadOutcomes]:
        """Answers and reads that `applied` brought since the last poll: they needn't wait for the next one."""
        output = self._output
        answers, reads = output.answers, output.reads
        output.answers, output.reads = [], []
        return answers, reads

    def poll(self) -> Output:
        """One turn: step every group with work, and hand out one batch for the log and one frame per peer.

        Call again until it is empty (a turn's completions make more work).
        """
        dirty, self._dirty = self._dirty, {}
        self._awake.update(dirty)
        self.stepped = dirty
        replicas, batches = self.replicas, self.batches
        for group in dirty:
            if (replica := replicas.get(group)) is None:
                continue
            if batches.full and not replica.urgent:
                probe("log batch full")
                self._dirty[group] = None
                self._output.more = True
                continue
            self._step(replica)
        output, self._output = self._output, Output()
        output.batch = batches.take()
        output.frames = self.frames()
        return output

    def frames(self) -> list[tuple[int, bytes]]:
        """One frame for each node to which there is anything to say by now; `poll` hands out the rest. What was held
        needn't wait for a turn once `durable` was called."""
        return self.mail.frames(self.disk.status) if self.mail.waiting else []

    def _step(self, replica: Replica) -> None:
        if replica.proposes:
            if self.batches.crowded(self._ticks):
                self._held[replica.group] = None
                self.mail.add(replica.forwards.let_go())
            else:
                self._forward_number += 2
                crowd = len(self.stepped) >= CROWD
                self.mail.add(replica.propose(self.boottime, self.mail.reaches, self._forward_number, crowd=crowd))
        if replica.reads.queue:
            self._output.reads += replica.start_read_round(self.boottime)
        raft = replica.raft
        # Once: a second Ready could have nothing, for what is done with the first asks nothing of Raft.
        if (ready := raft.ready()) is not None:
            if ready.messages:
                self.mail.add(self._address(replica, ready.messages))
            if ready.hard_state is not None and ready.mark is not None:
                replica.saved = (ready.mark.term, ready.mark.vote, ready.mark.index)
                batch = self.batches.current(self._ticks)
                batch.write(GroupWrite(GroupId(replica.group), ready.hard_state, ready.entries))
                if ready.entries:
                    replica.tail.appended(ready.entries)
                self.batches.mark(replica.group, ready.mark)
            if ready.held and not self.batches.hold(held := self._address(replica, ready.held)):
                self.mail.add(held)
            if ready.snapshots:
                self._output.snapshots += [(replica.group, receiver) for receiver in ready.snapshots]
            for read in ready.reads:
                if read.nonce == self.incarnation:
                    self._output.reads += replica.read_confirmed(read.context, read.index)
                    self._output.reads += self.disk.starved(replica)
                    self._dirty[replica.group] = None
        if replica.cut_due:
            self._cut(replica)
        work = replica.next_slice(self.boottime)
        if work is not None:
            self._output.slices.append(work)

    def _cut(self, replica: Replica) -> None:
        """Cut the log to what is durably applied here and nobody waits for (S6)."""
        replica.cut_due = False
        index = replica.cut_index(self.tail_limits, self.held_logs.get(replica.group, {}))
        self.flush_due |= replica.wants_flush(self.tail_limits)
        if index:
            probe("log cut")
            self.batches.current(self._ticks).cut(GroupId(replica.group), index, replica.log.term(index))
            replica.cut(index)

    # --- messages ------------------------------------------------------------------------------------------------

    def _forwarded(self, replica: Replica, peer: Peer, node: int, envelope: Envelope) -> None:
        """Another node's commands. Each forward is taken once, by the leader of the term that it names (S19)."""
        message = envelope.message
        if not peer.first_time(message.context):
            probe("repeated forward dropped")
            return
        commands = envelope.commands
        size = sum(map(len, commands))
        forward = Forward(node, message.sender, message.context, message.term, list(commands), size)
        if not replica.forwards.add(forward):
            self.mail.add([replica.forwards.refuse(forward)])

    def _address(self, replica: Replica, messages: list[Message]) -> list[tuple[int, Envelope]]:
        """A replica that a configuration names may be one that this node hasn't heard of, or that is gone: what is sent
        to it is lost."""
        group, home = replica.group, replica.home
        return [(node, Envelope(group, message)) for message in messages if (node := home(message.receiver))]

    def _replica(self, group: int) -> Replica:
        replica = self.replicas.get(group)
        if replica is None:
            raise Unavailable(f"this node has no replica of shard {group}; try another node")
        return replica

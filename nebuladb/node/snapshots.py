"""Snapshots between nodes: which are sent and taken now, and how one that is in becomes a replica's state.

Every message may be lost, repeated or reordered (house rule 11). The leader sends chunks in a window and sends again
what isn't acknowledged; the receiver takes them in order, so it says what it has and nothing is taken twice. Rows are
written under a generation that nobody refers to. When the last chunk has come true, the data store is flushed; then one
synced batch in raft/ makes that generation the replica's (S30), cuts its log there and leaves its vote (S5); then the
replica is built anew from exactly that, in place. A crash leaves the old state or the new one, and what nobody refers
to is removed at the next start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from nebuladb.env import probe
from nebuladb.errors import Corruption, Unavailable, WriteStalled
from nebuladb.ids import META_GROUP, Generation, GroupId
from nebuladb.kv.chunk import CHUNK_BYTES, content_size
from nebuladb.kv.export import Exporter
from nebuladb.kv.importer import Importer
from nebuladb.node.alarms import AlarmKind
from nebuladb.node.disk import CRITICAL_BIT, Space
from nebuladb.node.frame import Envelope, HostMessageType
from nebuladb.node.incoming import Incoming, Stage
from nebuladb.node.outgoing import Outgoing, TransferOutcome
from nebuladb.node.output import TICK_MS
from nebuladb.node.pauses import Pauses
from nebuladb.node.registry import GroupState, RegistryRow
from nebuladb.node.unfit import Unfit
from nebuladb.raft import Configuration, Message, StateRole

if TYPE_CHECKING:
    from nebuladb.node.node import Node
    from nebuladb.node.replica import Replica
    from nebuladb.node.turn import Turn

RATE: Final = 32 << 20
"""Bytes of rows that a node sends a second, all its snapshots together: about a quarter of a core here and one at the
receiver, and less than half of what one disk writes beside its log."""
MIN_RATE: Final = 128 << 10
"""An operator may set no less: each of `MAX_OUTGOING` gets on by a chunk in 4 s then, and one that doesn't for
`outgoing.IDLE_TICKS`, 10 s, is given up. With 10 KiB a second none ever came to its end."""
MAX_OUTGOING: Final = 4
"""Each keeps old tables on the disk, and perhaps one memtable and four chunks in memory."""
MAX_INCOMING: Final = 4
CHUNKS_A_TURN: Final = 2
"""That are written in one turn: 2 to 4 ms."""
TICKS_A_SECOND: Final = 1_000 // TICK_MS
WANT_TICKS: Final = 20
"""Between two requests of a replica that has no data for a snapshot."""
HAS_SOME: Final = 1
"""`Message.hint` of SNAPSHOT_WANTED: some of it is there, and is of use if the sender is still at it."""
GENERATION_STEP: Final = 256
"""Generations of snapshots are so far apart, and those of a group that comes back after its removal are one."""


class SnapshotLimits(NamedTuple):
    """What an operator may set."""

    rate: int = RATE
    outgoing: int = MAX_OUTGOING
    incoming: int = MAX_INCOMING


class Snapshots:
    """All transfers of snapshots that one node takes part in, either way.

    Invariant: a group has one incoming snapshot at most, and a replica is sent one at most.
    """

    def __init__(self, node: Node, limits: SnapshotLimits, rows: dict[int, RegistryRow]) -> None:
        """`rows`: the registry as it is, or is about to be."""
        self._node = node
        self._rows = rows
        self._host = node.host
        self._limits = limits
        self._wanted: dict[tuple[int, int], int] = {}
        """(group, replica) → the least index that helps it; in the order they were asked for."""
        self.outgoing: dict[tuple[int, int], Outgoing] = {}
        """(group, replica) → what is on its way."""
        node.host.receivers = self.receivers
        self.incoming: dict[int, Incoming] = {}
        self.lost: dict[int, None] = {}
        """Groups whose replica here has no data."""
        self._generations: dict[int, int] = {}
        """Group → the last generation that a snapshot was built under in this process."""
        self._doomed: list[tuple[int, int]] = []
        """Generations that nobody refers to any more."""
        self._suspended: dict[int, int] = {}
        """Group whose data is damaged → the batch that says so."""
        self._pauses = Pauses()
        self._unfit = Unfit(node.identity.name, node.alarms_now)
        self._number = 0
        self._posted = False
        """Messages wait for the next frames."""
        self._budget = self._ticks = 0
        self.counts: Counter[str] = Counter()
        """For metrics: sent, received and failed snapshots, bytes of chunks, milliseconds."""

    # --- in ------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """A tick passed."""
        self._ticks += 1
        slot = self._limits.rate // TICKS_A_SECOND
        self._budget = min(self._budget + slot, max(slot, CHUNK_BYTES))
        for outgoing in list(self.outgoing.values()):
            peer = self._host.peers.get(outgoing.node)
            if peer is None or peer.incarnation != outgoing.incarnation or not self._leads(outgoing):
                probe("snapshot's receiver or our leadership gone")
                outgoing.outcome = TransferOutcome.FAILED
            elif peer.status & CRITICAL_BIT:
                probe("snapshot's receiver is short of space")
                outgoing.outcome = outgoing.outcome or TransferOutcome.FAILED
            else:
                outgoing.tick(connected=peer.connected)
        for group, incoming in list(self.incoming.items()):
            replica = self._host.replicas.get(group)
            if not incoming.tick(replica.raft.term if replica is not None else 0):
                probe("snapshot that doesn't come given up")
                self._drop(group)
            elif incoming.stage is Stage.RECEIVING and self._full:
                probe("snapshot dropped for want of space")
                self._unfit.dropped(group, replica, incoming.importer.written)
                self._drop(group)
        self._unfit.look(self._host.replicas)
        if self.lost and self._ticks % WANT_TICKS == 0:
            self._ask()

    def admit(self, group: int) -> None:
        """Raise `Unavailable` for a write while a snapshot is awaited: what it does would come with that, its answer
        never, so that it ended *unknown* (S19). Meta's are taken: they are the node's own, which nobody waits for."""
        if (group in self.incoming or group in self.lost) and group != META_GROUP:
            probe("write refused before a snapshot")
            raise Unavailable(f"this node waits for a snapshot of shard {group}: nothing was done; ask another node")

    @property
    def busy(self) -> bool:
        """Whether a transfer is wanted or under way, or one's end waits for a batch to become durable."""
        return bool(self._wanted or self.outgoing or self.incoming or self._suspended or self._doomed)

    def turn(self, wanted: Iterable[tuple[int, int]], messages: Sequence[tuple[int, Envelope]], turn: Turn) -> None:
        """Take what Host handed out, and do what can be done now. For turns in which it handed out any, or `busy`."""
        for key in wanted:
            self._wanted.setdefault(key, 0)
        told: dict[int, None] = {}
        for node, envelope in messages:
            self._message(node, envelope, told)
        for group in [group for group, batch in self._suspended.items() if batch <= self._host.batches.durable]:
            del self._suspended[group]
            self._node.restart_group(group)
        if self._wanted:
            self._begin()
        if self.incoming:
            self._take(turn, told)
        for group in told:
            if group in self.incoming:
                self._reply(group, self.incoming[group])
        if self.outgoing:
            self._send(turn)
        if self._doomed:
            self._bury(turn)
        turn.more |= self._posted
        self._posted = False

    def chunk_read(self, outgoing: Outgoing, chunk: bytes | None) -> None:
        """One of `Turn.exports` was read; None: it can't be."""
        outgoing.chunk_read(chunk)
        if chunk is not None:
            self._budget -= content_size(chunk)
            self.counts["sent_bytes"] += len(chunk)

    def forget(self, group: int) -> None:
        """The group leaves this node."""
        self.lost.pop(group, None)
        self._node.alarms_now.cleared(AlarmKind.DATA_LOST, group)
        self._unfit.over(group)
        self._suspended.pop(group, None)
        self._drop(group)

    def orphans(self, held: Iterable[tuple[int, int]]) -> None:
        """Generations that a crash has left, which nobody refers to. They go in the next turn that the data store takes
        it in: a start waits for no compaction."""
        for group, generation in held:
            probe("orphan generation removed")
            self._doomed.append((group, generation))
            self._generations[group] = max(generation, self._generations.get(group, 0))

    @property
    def flush_wanted(self) -> bool:
        """Whether a snapshot waits for a flush of the data store."""
        return bool(self.incoming) and any(incoming.stage is Stage.FLUSHING for incoming in self.incoming.values())

    def to_flush(self) -> list[Incoming]:
        """What a flush that begins now makes durable; for `flushed`."""
        return [incoming for incoming in self.incoming.values() if incoming.stage is Stage.FLUSHING]

    def flushed(self, installs: list[Incoming]) -> None:
        """That flush is done: they become current with the next log batch."""
        for group, incoming in list(self.incoming.items()):
            if incoming in installs:
                self._flip(group, incoming)

    def damaged(self, group: int, error: Corruption) -> None:
        """The group's data is damaged: the replica goes on without it, under its own id, since its log is whole, and
        gets a snapshot (S5, S15). Raises `error` if there is nobody to send one."""
        replica = self._host.replicas.get(group)
        if replica is None or replica.lost:
            return
        if not replica.raft.configuration.votes_beside(replica.id):
            raise error  # learners may have it, but without a leader nobody sends it
        probe("data damaged in use")
        self._drop(group)
        row = self._rows[group]
        self._doomed.append((group, row.generation))
        row = self._rows[group] = row._replace(state=GroupState.INSTALLING)
        self._suspended[group] = self._host.suspend(group, row.encode())

    def close(self) -> None:
        """Let go of the engine."""
        for outgoing in self.outgoing.values():
            outgoing.exporter.close()
        self.outgoing.clear()

    @property
    def _full(self) -> bool:
        """Whether this node has no room for one."""
        return self._host.disk.space is Space.CRITICAL

    # --- the sender's side -----------------------------------------------------------------------------------------

    def receivers(self, group: int) -> set[int]:
        """See `Host`. Also one that is left alone for a while, since it had no room."""
        return {receiver for of, receiver in (*self._wanted, *self.outgoing) if of == group}

    def _leads(self, outgoing: Outgoing) -> bool:
        replica = self._host.replicas.get(outgoing.group)
        return (
            replica is not None
            and replica.raft.role is StateRole.LEADER
            and replica.raft.term == outgoing.term
            and replica.home(outgoing.receiver) == outgoing.node
        )

    def _begin(self) -> None:
        """Begin what is wanted, as much at a time as is allowed."""
        for (group, receiver), index in list(self._wanted.items()):
            replica = self._host.replicas.get(group)
            node = replica.home(receiver) if replica is not None else 0
            peer = self._host.peers.get(node)
            if (group, receiver) in self.outgoing:
                del self._wanted[group, receiver]
            elif replica is None or replica.raft.role is not StateRole.LEADER or peer is None or not peer.connected:
                del self._wanted[group, receiver]
                self._pauses.forget((group, receiver))
                self._finished(group, receiver, 0)
            elif peer.status & CRITICAL_BIT or self._pauses.last((group, receiver), self._host.now):
                continue  # it has no room for one
            elif len(self.outgoing) < self._limits.outgoing and replica.applied >= index:
                try:
                    exporter = Exporter(self._node.data, GroupId(group), Generation(replica.generation))
                except Unavailable:
                    continue  # half an entry is applied
                except Corruption as error:
                    self.damaged(group, error)
                    continue
                probe("snapshot begun")
                del self._wanted[group, receiver]
                self._number += 1
                self.outgoing[group, receiver] = Outgoing(
                    group, replica.id, receiver, node, peer.incarnation, replica.raft.term, self._number, exporter
                )
                self._host.held_logs.setdefault(group, {})[receiver] = exporter.head.index

    def _send(self, turn: Turn) -> None:
        """Chunks that were read leave, those that may be read are read, and what is over ends."""
        for key, outgoing in list(self.outgoing.items()):
            if outgoing.outcome is not None:
                self._end(key, outgoing)
                continue
            for envelope in outgoing.messages():
                self._posted = True
                self._host.post(outgoing.node, envelope)
            if outgoing.wants_chunk and self._budget > 0:
                outgoing.reading = True
                turn.exports.append(outgoing)

    def _end(self, key: tuple[int, int], outgoing: Outgoing) -> None:
        group, receiver = key
        outgoing.exporter.close()
        del self.outgoing[key]
        held = self._host.held_logs[group]
        del held[receiver]
        if not held:
            del self._host.held_logs[group]
        done = outgoing.outcome is TransferOutcome.INSTALLED
        probe("snapshot sent" if done else "snapshot not sent")
        self.counts["sent" if done else "failed"] += 1
        peer = self._host.peers.get(outgoing.node)
        if done:
            self._pauses.forget(key)
        elif peer is not None and peer.status & CRITICAL_BIT:
            probe("snapshot didn't fit")
            self._pauses.failed(key, self._host.now)
        self._finished(group, receiver, outgoing.index if done else 0)

    def _finished(self, group: int, receiver: int, index: int) -> None:
        """Raft goes on with the receiver (also if it never asked)."""
        replica = self._host.replicas.get(group)
        if replica is not None:
            replica.raft.snapshot_finished(receiver, index)

    # --- messages --------------------------------------------------------------------------------------------------

    def _message(self, node: int, envelope: Envelope, told: dict[int, None]) -> None:
        group, message = envelope.group, envelope.message
        replica = self._host.replicas.get(group)
        if replica is None:
            return  # it is about to become another
        if message.type == HostMessageType.SNAPSHOT_CHUNK and len(envelope.commands) == 1:
            self._chunk(node, replica, message, envelope.commands[0], told)
        elif message.type == HostMessageType.SNAPSHOT_REPLY:
            outgoing = self.outgoing.get((group, message.sender))
            if outgoing is not None:
                outgoing.replied(message)
        elif message.type == HostMessageType.SNAPSHOT_WANTED:
            outgoing = self.outgoing.get((group, message.sender))
            if outgoing is None:
                self._wanted[group, message.sender] = message.index
            elif outgoing.acknowledged and not message.hint:
                probe("receiver has dropped what it had")
                outgoing.outcome = outgoing.outcome or TransferOutcome.FAILED

    def _chunk(self, node: int, replica: Replica, message: Message, chunk: bytes, told: dict[int, None]) -> None:
        group, name = replica.group, (message.term, message.context)
        incoming = self.incoming.get(group)
        if incoming is not None and name != incoming.name and incoming.stage is not Stage.RECEIVING:
            return  # one is nearly in; then it will be seen whether another is needed
        if _has(replica, message.index, message.log_term):
            probe("snapshot is no news")
            self._unfit.over(group)
            self._drop(group)
            self._tell(node, replica, message.sender, message.context, index=message.index)
            return
        fresh = incoming is None or name > incoming.name
        refused = message.term < replica.raft.term or (not fresh and incoming is not None and name < incoming.name)
        if fresh and message.hint:
            return  # its beginning is still to come, or was taken in an earlier life: the sender will see
        refused |= fresh and incoming is None and len(self.incoming) >= self._limits.incoming
        refused |= self._full
        if refused or message.index < replica.log_start:
            self._tell(node, replica, message.sender, message.context, reject=True)
            return
        if fresh or incoming is None:
            self._drop(group)
            generation = self._generation(group, replica.generation)
            importer = Importer(self._node.data, GroupId(group), Generation(generation))
            incoming = self.incoming[group] = Incoming(name, message.sender, node, importer, generation)
            incoming.since = self._host.now
            probe("snapshot comes in")
        incoming.receive(message.hint, chunk)
        told[group] = None

    def _reply(self, group: int, incoming: Incoming) -> None:
        replica = self._host.replicas.get(group)
        if replica is not None:
            self._tell(incoming.node, replica, incoming.sender, incoming.name[1], hint=incoming.importer.next)

    def _tell(
        self, node: int, replica: Replica, receiver: int, context: int, *, hint: int = 0, index: int = 0,
        reject: bool = False,
    ) -> None:  # fmt: skip
        self._posted = True
        message = Message(
            HostMessageType.SNAPSHOT_REPLY, replica.id, receiver, replica.raft.term, index=index, reject=reject,
            hint=hint, context=context,
        )  # fmt: skip
        self._host.post(node, Envelope(replica.group, message))

    def _ask(self) -> None:
        """Replicas without data ask their leaders for snapshots, but for those to whom chunks are coming."""
        for group in self.lost:
            replica, incoming = self._host.replicas.get(group), self.incoming.get(group)
            if replica is not None and replica.raft.leader and (incoming is None or incoming.quiet):
                message = Message(
                    HostMessageType.SNAPSHOT_WANTED, replica.id, replica.raft.leader, replica.raft.term,
                    index=replica.log_start, hint=HAS_SOME if incoming else 0,
                )  # fmt: skip
                self._host.post(replica.home(replica.raft.leader), Envelope(group, message))

    # --- the receiver's side ---------------------------------------------------------------------------------------

    def _generation(self, group: int, current: int) -> int:
        """One that is not in use, nor being removed."""
        last = max(current, self._generations.get(group, 0))
        self._generations[group] = (last // GENERATION_STEP + 1) * GENERATION_STEP
        return self._generations[group]

    def _take(self, turn: Turn, told: dict[int, None]) -> None:
        """Write chunks that have come, and build what has become current anew."""
        left = CHUNKS_A_TURN
        for group, incoming in list(self.incoming.items()):
            if incoming.stage is Stage.FLIPPING and incoming.batch <= self._host.batches.durable:
                self._installed(group, incoming)
                continue
            while incoming.waiting and left and not incoming.damaged:
                left -= 1
                try:
                    self._node.wrote(incoming.write())
                except WriteStalled:
                    turn.stalled = True
                    return
                told[group] = None
            turn.more |= incoming.waiting
            if incoming.damaged:
                self._refuse(group, incoming)

    def _refuse(self, group: int, incoming: Incoming) -> None:
        self.counts["refused"] += 1
        replica = self._host.replicas.get(group)
        if replica is not None:
            self._tell(incoming.node, replica, incoming.sender, incoming.name[1], reject=True)
        self._drop(group)

    def _flip(self, group: int, incoming: Incoming) -> None:
        """All rows are durable: make them the replica's state, with the next batch."""
        replica, head = self._host.replicas.get(group), incoming.head
        if replica is None:
            self._drop(group)
            return
        if head.group != group or head.index < replica.log_start:
            self._refuse(group, incoming)
            return
        if _has(replica, head.index, head.term):
            probe("log overtook the snapshot")
            self._unfit.over(group)
            self._tell(incoming.node, replica, incoming.sender, incoming.name[1], index=head.index)
            self._drop(group)
            return
        probe("snapshot becomes current")
        rows = self._rows
        row = rows[group]._replace(state=GroupState.NORMAL, generation=incoming.generation)
        if head.index >= row.configuration_index:
            configuration = Configuration.decode(head.configuration)
            row = row._replace(configuration_index=head.index, configuration=configuration)
        commit = self._node.log.hard_state(GroupId(group)).commit
        incoming.batch = self._host.install(group, (head.index, head.term), commit, row.encode())
        incoming.stage = Stage.FLIPPING
        self._doomed.append((group, rows[group].generation))
        rows[group] = row

    def _installed(self, group: int, incoming: Incoming) -> None:
        """The batch that makes it current is durable: go on from there."""
        probe("snapshot installed")
        del self.incoming[group]
        self.lost.pop(group, None)
        self._node.alarms_now.cleared(AlarmKind.DATA_LOST, group)
        self._unfit.over(group)
        self._node.restart_group(group)
        self.counts["received"] += 1
        self.counts["received_bytes"] += incoming.received
        self.counts["received_ms"] += self._host.now - incoming.since
        replica = self._host.replicas[group]
        self._tell(incoming.node, replica, incoming.sender, incoming.name[1], index=incoming.head.index)

    def _drop(self, group: int) -> None:
        """Give up what is coming in for `group`, if anything is."""
        incoming = self.incoming.pop(group, None)
        if incoming is not None:
            self._doomed.append((group, incoming.generation))

    def _bury(self, turn: Turn) -> None:
        """Remove generations that nobody refers to, and nobody will after a crash."""
        flipping = {group for group, incoming in self.incoming.items() if incoming.stage is Stage.FLIPPING}
        flipping |= self._suspended.keys()
        try:
            for doomed in [doomed for doomed in self._doomed if doomed[0] not in flipping]:
                self._node.vacuum.destroy(GroupId(doomed[0]), Generation(doomed[1]))
                self._doomed.remove(doomed)
                probe("generation without use removed")
        except WriteStalled:
            turn.stalled = True


def _has(replica: Replica, index: int, term: int) -> bool:
    """Whether a replica needs no snapshot at (`index`, `term`): it is committed there, or its log is the same."""
    if replica.lost:
        return False
    log = replica.log
    if replica.raft.commit >= index:
        return True
    return log.start()[0] <= index <= log.last()[0] and log.term(index) == term

"""Snapshots between nodes: which are taken now, and how one that is in becomes a replica's state.

Every message may be lost, repeated or reordered (house rule 11). The leader sends chunks in a window and sends again
what isn't acknowledged (``node.snapshot_sender``); the receiver takes them in order, so it says what it has and nothing
is taken twice. Rows are written under a generation that nobody refers to. When the last chunk is in and all of it is
right, the data store is flushed; then one synced batch in raft/ makes that generation the replica's (S30), cuts its log
there and leaves its vote (S5); then the replica is built anew from exactly that, in place. A crash leaves the old state
or the new one, and what nobody refers to is removed at the next start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from nebuladb.env import probe
from nebuladb.errors import Corruption, Unavailable, WriteStalled
from nebuladb.ids import META_GROUP, Generation, GroupId
from nebuladb.kv.importer import Importer
from nebuladb.node.alarms import AlarmKind
from nebuladb.node.disk import Space
from nebuladb.node.frame import Envelope, HostMessageType
from nebuladb.node.incoming import Incoming, Stage
from nebuladb.node.options import SnapshotLimits
from nebuladb.node.registry import GroupState, RegistryRow
from nebuladb.node.replica import Replica
from nebuladb.node.snapshot_sender import SnapshotSender
from nebuladb.node.turn import Turn
from nebuladb.node.unfit import Unfit
from nebuladb.raft import Configuration, Message

if TYPE_CHECKING:
    from nebuladb.node.node import Node

CHUNKS_A_TURN: Final = 2
"""That are written in one turn: 2 to 4 ms."""
WANT_TICKS: Final = 20
"""Between two requests of a replica that has no data for a snapshot."""
HAS_SOME: Final = 1
"""`Message.hint` of SNAPSHOT_WANTED: some of it is there, and is of use if the sender is still at it."""
GENERATION_STEP: Final = 256
"""Generations of snapshots are so far apart, and those of a group that comes back after its removal are one."""


class Snapshots:
    """All transfers of snapshots that one node takes part in, either way.

    Invariant: a group has one incoming snapshot at most.
    """

    def __init__(self, node: Node, limits: SnapshotLimits, rows: dict[int, RegistryRow]) -> None:
        """`rows`: the registry as it is, or is about to be."""
        self._node = node
        self._rows = rows
        self._host = node.host
        self._limits = limits
        self.counts: Counter[str] = Counter()
        """For metrics: sent, received and failed snapshots, bytes of chunks, milliseconds."""
        self.sender = SnapshotSender(node.host, node.data, limits, self.counts, self.damaged)
        self.incoming: dict[int, Incoming] = {}
        self.lost: dict[int, None] = {}
        """Groups whose replica here has no data."""
        self._generations: dict[int, int] = {}
        """Group → the last generation that a snapshot was built under in this process."""
        self._doomed: list[tuple[int, int]] = []
        """Generations that nobody refers to any more."""
        self._suspended: dict[int, int] = {}
        """Group whose data is damaged → the batch that says so."""
        self._unfit = Unfit(node.identity.name, node.alarms_now)
        self._posted = False
        """Messages wait for the next frames."""
        self._ticks = 0

    # --- in ------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """A tick passed."""
        self._ticks += 1
        self.sender.tick()
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
        sender = self.sender  # looked into rather than asked: this is, in every turn
        return bool(sender.wanted or sender.outgoing or self.incoming or self._suspended or self._doomed)

    def turn(self, wanted: Iterable[tuple[int, int]], messages: Sequence[tuple[int, Envelope]], turn: Turn) -> None:
        """Take what Host handed out, and do what can be done now. For turns in which it handed out any, or `busy`."""
        for group, receiver in wanted:
            self.sender.want(group, receiver)
        told: dict[int, None] = {}
        for node, envelope in messages:
            self._message(node, envelope, told)
        for group in [group for group, batch in self._suspended.items() if batch <= self._host.batches.durable]:
            del self._suspended[group]
            self._node.restart_group(group)
        self.sender.begin()
        if self.incoming:
            self._take(turn, told)
        for group in told:
            if group in self.incoming:
                self._reply(group, self.incoming[group])
        self.sender.send(turn)
        if self._doomed:
            self._bury(turn)
        turn.more |= self._posted
        self._posted = False

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

    @property
    def _full(self) -> bool:
        """Whether this node has no room for one."""
        return self._host.disk.space is Space.CRITICAL

    # --- messages --------------------------------------------------------------------------------------------------

    def _message(self, node: int, envelope: Envelope, told: dict[int, None]) -> None:
        group, message = envelope.group, envelope.message
        replica = self._host.replicas.get(group)
        if replica is None:
            return  # it is about to become another
        if message.type == HostMessageType.SNAPSHOT_CHUNK and len(envelope.commands) == 1:
            self._chunk(node, replica, message, envelope.commands[0], told)
        elif message.type == HostMessageType.SNAPSHOT_REPLY:
            self.sender.replied(group, message)
        elif message.type == HostMessageType.SNAPSHOT_WANTED:
            self.sender.asked(group, message)

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

    # --- from chunks to a state ------------------------------------------------------------------------------------

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

"""`Node`: one node without its event loop: `Host`, the log it writes, the stores it applies to, its picture of meta.

The daemon's pump and the simulator drive this same object, with real disks or with failing ones in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from nebuladb.env import Clock, Rng, probe
from nebuladb.errors import Corruption, DataDamaged, IdentityError, NebulaError, NodeRemoved, WriteStalled, invariant
from nebuladb.ids import META_GROUP
from nebuladb.kv.cache import RecordShare
from nebuladb.kv.change import Applied
from nebuladb.kv.command import Command
from nebuladb.kv.store import Store
from nebuladb.kv.watch import WatchHub
from nebuladb.node.alarms import Alarm, AlarmKind, Alarms
from nebuladb.node.applier import BURIED_KEYS, Applier, Fetch, GroupData
from nebuladb.node.consistency import hash_of
from nebuladb.node.disk import Space
from nebuladb.node.entry import encode_command
from nebuladb.node.frame import CLUSTER_VERSION
from nebuladb.node.host import Host
from nebuladb.node.housekeeping import Housekeeper
from nebuladb.node.identity import Founding, Identity
from nebuladb.node.members import removed_text
from nebuladb.node.memory import MemoryPlan, plan
from nebuladb.node.meta import FIRST_GROUP, Meta, Removal, meta_shard, read_meta
from nebuladb.node.options import NodeOptions
from nebuladb.node.output import Request, Slice
from nebuladb.node.reads import ReadOutcomes
from nebuladb.node.reconciler import Reconciler
from nebuladb.node.registry import GroupState, RegistryRow
from nebuladb.node.snapshots import Snapshots
from nebuladb.node.starting import check_home, cure_of, open_replica
from nebuladb.node.surgeon import Surgeon
from nebuladb.node.turn import Flush, Turn
from nebuladb.node.upkeep import Upkeep
from nebuladb.node.vacuum import Vacuum
from nebuladb.raft import Configuration
from nebuladb.shard import Descriptor, preferred
from nebuladb.share import Share
from nebuladb.storage.engine import Engine
from nebuladb.storage.log import LogStore
from nebuladb.storage.log_batch import LogBatch

EAGER_MS: Final = 100
"""After which a new group's home stands for election: the others will have created theirs."""
MAX_STARTS: Final = 32
"""Groups started in one turn: each reads its log's start and writes its first row."""
REQUEST_MS: Final = 5_000
"""Deadline of the node's own requests."""


class Node:
    """Invariant: batches are written in the order of their ids, slices applied in the order they were handed out."""

    def __init__(
        self,
        identity: Identity,
        founding: Founding,
        incarnation: int,
        log: LogStore,
        data: Engine,
        rng: Rng,
        clock: Clock,
        client_address: str = "",
        peer_address: str = "",
        memory: MemoryPlan | None = None,
        options: NodeOptions | None = None,
        joined: Descriptor | None = None,
    ) -> None:
        """`joined`: the meta group as it was told to a node that isn't one of the founders; for its first start."""
        self.identity = identity
        self.founding = founding
        self.log = log
        self.data = data
        self.groups: dict[int, GroupData] = {}
        self.meta = Meta()
        self.memory = memory or plan()
        self.records = RecordShare(self.memory.records)
        self.outboxes = Share(self.memory.outboxes)
        self.alarms_now = Alarms()
        self.host = Host(founding.cluster, identity.node, incarnation, log.last_batch + 1, rng, self.memory)
        # Before any group starts: a lease clock counts from this reading, not from the machine's boot (S27).
        self.host.now, self.host.boottime = clock.monotonic(), clock.boottime()
        self._clock = clock
        self.on_meta: Callable[[], None] | None = None
        """Called when this node's picture of meta changed."""
        self._requests = (incarnation & 0xFFFF_FFFF) << 32
        self._unwritten: deque[LogBatch] = deque()
        self.vacuum = Vacuum(data)
        self._applier = Applier(self.groups, self._slice_applied, self.vacuum.deleted)
        self._applied = 0
        registry = {int(group): RegistryRow.decode(row) for group, row in log.registry().items()}
        self.reconciler = Reconciler(identity.node, self.host, self.vacuum.destroy, registry)
        options = options or NodeOptions()
        self.host.tail_limits = options.tail
        self._lease_reads = options.lease_reads
        self.snapshots = Snapshots(self, options.snapshots, self.reconciler.rows)
        self._housekeeper = Housekeeper(self, rng, peer_address, client_address)
        self._surgeon = Surgeon(self)
        self._asked: dict[int, Callable[[NebulaError | None], None]] = {}
        """Request → who waits for this read of the node's own."""
        self.host.gone = lambda group, replica: self.meta.gone(group, replica)
        self._upkeep = Upkeep(self, options, self._applier)
        self._eager: dict[int, int] = {}
        """New groups whose home is here → when to stand for election, ms."""
        self.on_first_start: Callable[[], None] = lambda: None
        """Called when the registry has its first row, durably, and before any replica runs."""
        self.unflushed = 0
        """Bytes that were written to the data store since its last flush began; a key that went counts as more."""
        self.flush_bytes = self.memory.flush_bytes
        self._start_groups(joined)

    # --- start -----------------------------------------------------------------------------------------------------

    def _start_groups(self, joined: Descriptor | None) -> None:
        """Start what the registry lists; a directory without it is a founding node's first start."""
        registry = sorted(self.reconciler.rows.items())
        check_home(self.reconciler.rows.values(), self.identity.node)
        wanted: set[tuple[int, int]] = {
            (group, row.generation) for group, row in registry if row.state == GroupState.NORMAL
        }
        try:
            generations = Store.generations(self.data)
        except Corruption as error:
            raise DataDamaged(error.message) from error
        if generations and not registry:
            # The registry is older than any data: without it the log is gone too, with every vote (S15).
            raise Corruption(
                "the log's database is empty while there is data: this node forgot its votes and must not come back "
                "as it is; replace this member: empty the data directory and run `nebula-cli member replace`"
            )
        self.snapshots.orphans(held for held in generations if held not in wanted)
        for group, row in registry:
            if row.state in (GroupState.NORMAL, GroupState.INSTALLING):
                try:
                    self._start(group, row)
                except WriteStalled:
                    self.reconciler.later(group)
        if META_GROUP in self.groups:
            try:
                self._read_meta()
            except Corruption as error:
                self.damaged(META_GROUP, error)
        elif META_GROUP not in self.reconciler.rows:
            self.reconciler.create(joined or meta_shard(self.founding))

    def _start(self, group: int, row: RegistryRow) -> None:
        """Start a replica, or start it anew from what is durable."""
        start, store = open_replica(group, row, self.log, self.data, self.identity.node, self.records)
        start.lease_reads = self._lease_reads
        self.host.add_group(start)
        data = self.groups.get(group)
        if data is not None and start.lost:
            data.hub.close()  # there is no history to feed its watches from
            data.store.close()
            self._applier.forget(group)
            data = None
        if data is None:
            hub = WatchHub(store, self.outboxes, partial(self._applier.look_at, group))
            data = self.groups[group] = GroupData(store, hub)
        else:
            data.store.close()
            self._applier.forget(group)
            data.hub.rebase(store)
            data.store = store
        if start.lost:
            self.snapshots.lost[group] = None
            text = f"the data of shard {group} is gone or damaged; {cure_of(row)}"
            self.alarms_now.raised(Alarm(AlarmKind.DATA_LOST, text, group))
        if store.busy or data.hub.lagging:
            self._applier.look_at(group)  # physical deletion goes on where the last process left it

    def restart_group(self, group: int) -> None:
        """Its state was replaced, and so is its replica, in place; its watches live on (S26). Of a meta group without
        data the picture of before is better than none."""
        self._start(group, self.reconciler.rows[group])
        if group == META_GROUP and not self.host.replicas[group].lost:
            self._read_meta()

    def damaged(self, group: int, error: Corruption, store: Store | None = None) -> None:
        """Rows of the group's data are damaged, or were those of `store`, which another may have replaced since. Raises
        `error` if the node can't go on without them."""
        if store is None or (group in self.groups and self.groups[group].store is store):
            self.snapshots.damaged(group, error)

    def _see_to_damage(self) -> None:
        damaged, self._applier.damaged = self._applier.damaged, []
        for group, error in damaged:
            self.damaged(group, error)

    def wrote(self, size: int) -> None:
        """Bytes were written to the data store beside what was applied."""
        self.unflushed += size

    # --- in --------------------------------------------------------------------------------------------------------

    def tick(self, now: int, boottime: int) -> None:
        """One tick; see `Host.tick`."""
        self.host.tick(now, boottime)
        self.snapshots.tick()
        for group in [group for group, due in self._eager.items() if due <= now]:
            del self._eager[group]
            self.host.campaign(group)
        if self._housekeeper.step():
            self._upkeep.step()
        self._surgeon.step()

    def submit(self, group: int, command: Command, deadline: int) -> int:
        """Ask for a write; the answer comes in a `Turn` under the returned id. Raises what
        `Host.request` and `Snapshots.admit` do."""
        self.snapshots.admit(group)
        request = self.next_request()
        wire = encode_command(command, self.identity.node, request)
        self.host.request(Request(request, group, wire, deadline))
        return request

    def read(self, group: int, deadline: int) -> int:
        """Ask for a linearizable read; likewise, in `Turn.reads`."""
        request = self.next_request()
        self.host.read(request, group, deadline)
        return request

    def ask(self, group: int, milliseconds: int, then: Callable[[NebulaError | None], None]) -> None:
        """A linearizable read of the node's own: `then` is called in the turn in which it may be served, or with why it
        failed. Raises what `read` does."""
        self._asked[self.read(group, self.host.now + milliseconds)] = then

    def request(self, command: Command) -> None:
        """A write to the meta group of the node's own; nobody waits for the answer. Raises what `submit` does."""
        self.submit(META_GROUP, command, self.host.now + REQUEST_MS)

    def next_request(self) -> int:
        """A request id that no other life of this node has used."""
        self._requests += 1
        return self._requests

    # --- out -------------------------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether a turn would find anything to do; if not, what came in asks for none."""
        return self.host.has_work or bool(self._unwritten) or self.reconciler.busy or self.snapshots.busy

    def turn(
        self,
        send: Callable[[Sequence[tuple[int, bytes]]], None] | None = None,
        sync: Callable[[int], None] | None = None,
    ) -> Turn:
        """Poll Host, write its batch, apply its slices. Raises what stops the node: store errors, broken invariants.

        `send` is given the turn's frames before anything is written or applied, neither of which they wait for: what
        must be durable first is held back by Host (S3). `sync` is given the newest batch that was written before
        anything is applied, so that the disk works meanwhile.
        """
        # Entries made and seen in this turn are timed now, not by the last tick: after a sleep of the process, a lease
        # renewed by a clock from before it would be granted time that has passed already (S27).
        self.host.boottime = self._clock.boottime()
        output = self.host.poll()
        turn = Turn(output.frames, output.answers, [], output.more)
        if send is not None and output.frames:
            send(output.frames)
        if output.reads:
            self._take_reads(turn, output.reads)
        if output.batch is not None:
            self._unwritten.append(output.batch)
        if self._unwritten:
            self._write(turn)
            if sync is not None and turn.written:
                sync(turn.written)
        if restructures := self.reconciler.busy:
            self._start_new(turn)
            self.reconciler.moved()
        if self.host.removed:
            self._removed_here()
        if output.snapshots or output.transfers or self.snapshots.busy:
            self.snapshots.turn(output.snapshots, output.transfers, turn)
        applier = self._applier
        applier.slices += output.slices
        if applier.slices or applier.fetches or applier.damaged:
            self._apply(turn)
        if restructures:
            self._destroy(turn)
        for group, message in output.hashes:
            self._upkeep.reported(group, message.sender, message.index, hash_of(message))
        return turn

    def _take_reads(self, turn: Turn, reads: ReadOutcomes) -> None:
        """Hand out the reads that clients wait for; those of the node's own are called back."""
        for read in reads:
            then = self._asked.pop(read[0], None) if self._asked else None
            if then is None:
                turn.reads.append(read)
            else:
                then(read[1])
                turn.more = True  # for what it has asked for

    def _write(self, turn: Turn) -> None:
        """Write what Host gave; a stalled engine is asked again in the next turn, in the same order (S32)."""
        while self._unwritten:
            batch = self._unwritten[0]
            try:
                self.log.write(batch, self.host.batches.durable)
            except WriteStalled:
                probe("log write stalled")
                turn.stalled = True
                return
            self._unwritten.popleft()
            turn.written = batch.id
            turn.written_bytes += batch.size

    def _start_new(self, turn: Turn) -> None:
        """Start groups whose creation is durable, some a turn."""
        startable = self.reconciler.startable()
        if not startable:
            return
        if not self.host.replicas:
            self.on_first_start()
        for group, row in startable[:MAX_STARTS]:
            try:
                self._start(group, row)
            except WriteStalled:
                probe("a group's first write stalled")
                turn.stalled = True
                return
            self.reconciler.started(group)
            if group == META_GROUP:
                self._read_meta()
            if group >= FIRST_GROUP and preferred(group, sorted(dict(row.nodes).values()), [self.identity.node], ()):
                self._eager[group] = self.host.now + EAGER_MS
        turn.more |= len(startable) > MAX_STARTS

    def _destroy(self, turn: Turn) -> None:
        """Go on with what was removed; tell meta when it is gone."""
        try:
            if self.reconciler.destroy():
                self._housekeeper.acknowledge()
                turn.more = True
        except WriteStalled:
            probe("a removal stalled")
            turn.stalled = True

    def _apply(self, turn: Turn) -> None:
        """Run the slices that are out, or as many as a turn may."""
        done, stalled = self._applier.run()
        if self._applier.damaged:
            self._see_to_damage()
        turn.stalled |= stalled
        if self._applier.fetches:
            turn.fetches, self._applier.fetches = self._applier.fetches, []
        if done:
            turn.applied, self._applied = self._applied, 0
            # Who waits for what was applied needn't wait for another turn, which is needed only if there is more to do.
            answers, reads = self.host.results()
            turn.answers += answers
            if reads:
                self._take_reads(turn, reads)
            turn.more |= self.host.has_work or (bool(self._applier.slices) and self._applier.waits)

    def _slice_applied(self, work: Slice, data: GroupData, applied: Applied) -> None:
        self._applied += len(work.works)
        self.unflushed += applied.size
        self.host.applied(work.group, work.generation, applied)
        if applied.configuration:
            configuration = Configuration.decode(applied.configuration)
            self.reconciler.configured(work.group, applied.index, configuration)
        data.hub.publish(applied)
        if work.group == META_GROUP and applied.missing:
            self._read_meta()
        elif work.group == META_GROUP and applied.events:
            self._look_at(self.meta.after(applied.events))

    @property
    def midway(self) -> bool:
        """Whether the next turn goes on with a command that is half applied; it waits while the node is paused."""
        return bool(self._applier.midway) and not self._applier.paused

    def pause(self, *, paused: bool) -> None:
        """Let turns pass over commands that are half applied, or go on with them."""
        self._applier.paused = paused

    def fetched(self, fetch: Fetch, values: Sequence[bytes | None]) -> None:
        """The rows of one of `Turn.fetches` were read, after it was handed out."""
        self._applier.fetched(fetch, values)

    # --- the data store's flush --------------------------------------------------------------------------------------

    @property
    def flush_wanted(self) -> bool:
        """Whether enough was applied that the data store should be flushed."""
        full = self.unflushed >= self.flush_bytes
        vacuum = self.vacuum.wants_flush(self.host.disk.space, self.host.now)
        return full or self.host.flush_due or self.snapshots.flush_wanted or vacuum

    def begin_flush(self) -> Flush:
        """What `Engine.flush` makes durable. One at a time: when it has succeeded comes `end_flush`, then a turn."""
        probe("data flush begun")
        self.unflushed = 0
        self.host.flush_due = False
        applied = {group: data.store.index for group, data in self.groups.items()}
        deleted = self.vacuum.take(self.host.disk.space, self.host.now)
        return Flush(applied, self.snapshots.to_flush(), deleted)

    def end_flush(self, flush: Flush) -> None:
        """The flush that `begin_flush` preceded is done."""
        probe("data flush done")
        self.host.flushed(flush.applied)
        self.snapshots.flushed(flush.installs)
        self.vacuum.flushed(flush.deleted)

    def background(self) -> bool:
        """See `Applier.background`."""
        more = self._applier.background()
        self._see_to_damage()
        self.unflushed += self._applier.deleted_bytes + self._applier.buried * self.flush_bytes // BURIED_KEYS
        self._applier.deleted_bytes = self._applier.buried = 0
        hashed, self._applier.hashed = self._applier.hashed, []
        for one in hashed:
            self._upkeep.hashed(*one)
        return more

    @property
    def background_waits(self) -> bool:
        """Whether any group has background work, though it may have to wait for a consumer, or for the disk."""
        return bool(self._applier.busy)

    @property
    def fetches_wait(self) -> bool:
        """Whether background work has left fetches for a turn to hand out."""
        return bool(self._applier.fetches)

    # --- meta ------------------------------------------------------------------------------------------------------

    def _read_meta(self) -> None:
        self._look_at(read_meta(self.groups[META_GROUP].store))

    def _look_at(self, meta: Meta) -> None:
        """Meta has changed: make this node's groups what it says."""
        if meta.version > CLUSTER_VERSION:
            raise IdentityError(
                f"the cluster is at version {meta.version}, this build knows {CLUSTER_VERSION}: install a newer nebulad"
            )
        self.meta = meta
        if self.identity.node in meta.removed:
            raise NodeRemoved(removed_text(self.identity.name))
        for shard in meta.told:
            self.reconciler.create(shard)
        for removal in meta.orders(self.identity.node):
            self._remove(removal)
        if self.on_meta is not None:
            self.on_meta()

    def _removed_here(self) -> None:
        """Peers say that replicas of this node were removed, which they have from meta: if this node's picture of it is
        too old to say so, it never will."""
        removed, self.host.removed = self.host.removed, {}
        if META_GROUP in removed:
            raise NodeRemoved(removed_text(self.identity.name))
        for group, replica in removed.items():
            probe("replica gone without an order")
            self._remove(Removal(group, replica, self.identity.node))

    def _remove(self, removal: Removal) -> None:
        if self.reconciler.remove(removal):
            self._eager.pop(removal.group, None)
            self._upkeep.forget(removal.group)
            data = self.groups.pop(removal.group, None)
            if data is not None:
                data.hub.close()
                data.store.close()
                self._applier.forget(removal.group)
                self.snapshots.forget(removal.group)

    def alarms(self) -> list[str]:
        """What an operator must know: of this node, and what was declared for the whole cluster."""
        declared = [alarm.text(self.meta.name(alarm.node)) for alarm in self.meta.declared]
        return self.alarms_now.texts() + declared

    def alarm(self, text: str) -> None:
        """Raise an alarm; it stays until the process ends."""
        self.alarms_now.raised(Alarm(AlarmKind.OTHER, text))

    def space(self, space: Space, text: str) -> None:
        """So much room is on the disk; see ``node.disk``."""
        self._upkeep.space(space, text)

    def check(self) -> None:
        """Raise `InvariantViolation` unless the invariants hold: Raft's, and that the stores are where Host thinks."""
        for group, replica in self.host.replicas.items():
            replica.raft.check()
            store = self.groups[group].store
            invariant(store.index >= replica.applied, f"group {group}: the store is behind what Host was told")

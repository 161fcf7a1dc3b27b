"""What becomes of a machine: it stands still, loses its disk, is given to a new node, or taken from a removed one;
and what it tells a fresh one."""

from __future__ import annotations

from nebuladb.errors import NodeRemoved, Unavailable
from nebuladb.ids import META_GROUP
from nebuladb.kv.command import Command
from nebuladb.node.declared import forbidden
from nebuladb.node.departure import departs
from nebuladb.node.disk import Space
from nebuladb.node.founding import Hello
from nebuladb.node.identity import Founding, Identity
from nebuladb.node.joined import Joined
from nebuladb.shard import Descriptor
from nebuladb.sim.beginning import answer
from nebuladb.sim.life import Life, Written
from nebuladb.sim.machine import Machine
from nebuladb.sim.room import Room
from nebuladb.sim.violation import require
from nebuladb.storage.memory import Fault


class Place(Machine):
    """Without a node it is idle: starting it does nothing."""

    _space = Space.PLENTY
    """How much room its disk has."""
    _short: Room | None = None
    """What its node is to give back, if it is short."""
    _bereft = False
    """Of its last life."""

    @property
    def idle(self) -> bool:
        """Whether no node lives here, dead or alive."""
        return not self.founds and not self.founded

    @property
    def bereft(self) -> bool:
        """Whether replicas here have lost their data, and wait for snapshots, or will when the node starts again."""
        return self._bereft if self._life is None else bool(self._life.node.snapshots.lost)

    @property
    def receives(self) -> bool:
        """Whether a snapshot is coming in."""
        return self._life is not None and bool(self._life.node.snapshots.incoming)

    def hello(self, asker: str) -> Hello | None:
        """Its answer to a fresh node; None: there is none."""
        if (self._life is None and self._beginning is None) or self.paused:
            return None
        return answer(self._identity, self._founding, self._members, asker)

    def document(self) -> Founding | None:
        """Its founding document, for a fresh node."""
        return None if self._life is None or self.paused else self._founding

    def submit(self, group: int, command: Command, timeout: int, written: Written) -> None:
        """As ``api.backend``: what alarms of the cluster forbid, by this node's picture of meta, is refused here, and
        so is all by a node that is about to leave the shard."""
        node = None if self.paused else self.node
        if node is not None and group != META_GROUP:
            if error := forbidden(node.meta.alarmed, command):
                raise error
            shard, replica = node.meta.shards.get(group), node.host.replicas.get(group)
            if shard and shard.roles and departs(shard, self.node_id, replica.raft.configuration if replica else None):
                self._core.hit("write to a node that leaves refused")
                raise Unavailable("this node is leaving the shard")
        super().submit(group, command, timeout, written)

    def pause(self, milliseconds: int, *, suspended: bool) -> None:
        """The process stands still (SIGSTOP), or the whole machine with its monotonic clock (`suspended`)."""
        life = self._life
        if life is not None and not life.paused:
            self._core.note("pause", self.name, milliseconds)
            life.paused = True
            self._core.scheduler.after(milliseconds, self._resume, life, milliseconds if suspended else 0)

    def _resume(self, life: Life, slept: int) -> None:
        """What came meanwhile first, then one tick (S12)."""
        life.paused = False
        if life is not self._life:
            return
        self._core.note("resume", self.name)
        self._short = None
        self.room(self._space)
        life.clock.leap(-int(slept * life.clock.rate))
        late, life.late = life.late, []
        for action, args in late:
            action(*args)
        if life.late_tick:
            life.late_tick = False
            # As the pump, which goes once round its loop between the late input and the tick.
            self._core.scheduler.after(0, self._tick, life)

    def leap(self, milliseconds: int) -> None:
        """Its monotonic clock jumps ahead."""
        if self._life is not None:
            self._life.clock.leap(milliseconds)

    def room(self, space: Space) -> None:
        """There is so much room on its disk now, as the daemon's own look at it says."""
        if space is not self._space:
            self._core.note("space", self.name, space.name)
        self._space, life = space, self._life
        if space is Space.PLENTY:
            self.disk.cramped = False
        if life is not None and life.node.host.disk.space is not space:
            life.node.space(space, f"there is {space.name} of space")
            self._wake(life)
        if space is Space.PLENTY or life is None:
            self._short = None
        elif self._short is None or self._short.life is not life:
            self._short = None
            self._gives_back(None)

    def _gives_back(self, room: Room | None) -> None:
        """A node that is short of space gives back, and goes on giving back, what was deleted."""
        life = self._life
        if room is not self._short or life is None or life.paused or (room is not None and room.life is not life):
            return
        if room is not None:
            room.check(self.name)
        self._short = room = Room(life, self.disk, self._core)
        self._core.scheduler.after(room.soon, self._gives_back, room)

    def cramp(self) -> None:
        """The next compaction finds no room."""
        self.disk.cramped = True
        self.disk.data.fail(Fault.CRAMPED)

    def _opened(self, life: Life) -> None:
        self.room(self._space)

    def close(self) -> None:
        """The world is over."""
        if self._life is not None:
            self._life.process.end()

    def wipe(self) -> None:
        """Its data directory is emptied: it comes back as a fresh node of the same name, and must not get far."""
        self.spoiled = True
        self.crash(power=True)
        self.disk.wipe()
        self._founding = None
        self._identity = Identity(self._rng.getrandbits(63) | 1, self.name)

    def lose_log(self) -> bool:
        """Its log is gone, and all votes with it; the rest of its directory is there, else False: nothing is done."""
        if next(self.disk.data.scan(b"", b"\xff"), None) is None:
            return False
        self.spoiled = True
        self.disk.data.make_durable(self.disk.data.position)
        self.crash(power=True)
        self.disk.wipe(data=False)
        return True

    def lose_data(self) -> None:
        """Its data is gone; its log, and so its vote, is whole."""
        self.crash(power=True)
        self.disk.lose_data()
        self._bereft = True

    def crash(self, *, power: bool) -> None:
        self._bereft = self.bereft
        super().crash(power=power)

    def lose(self) -> None:
        """It is gone for good."""
        self.lost = True
        self.crash(power=False)

    def join(self, node: int, name: str, founding: Founding, own: Descriptor) -> None:
        """`nebulad start --join`, on an empty disk: it was told who it is, has written that down, and reads it."""
        self._core.hit("node joins")
        self.lost = False
        peers = tuple(sorted((other.node, other.peer_address) for other in founding.nodes))
        document = Joined(founding, node, own, peers)
        read = Joined.decode(document.encode())
        require(read == document, f"{self.name} reads {read}, and wrote {document}")
        self._identity = Identity(read.node, name, read.founding.cluster)
        self._founding, self.joined = read.founding, read.meta
        self.start()

    def _removed(self, error: NodeRemoved) -> None:
        """The product says that it is no member any more, and stops: right if somebody removed it, and only then."""
        require(self.node_id in self._replicas.removable, f"{self.name} stops though nobody removed it: {error}")
        self._core.hit("removed node stops")
        self._retire()

    def told_removed(self, node: int) -> None:
        """The daemon of a node that hears from no leader asks the others whether it is a member still."""
        if self.node_id == node and not self.idle:
            self._core.hit("removed node asks")
            self._retire()

    def _retire(self) -> None:
        """Somebody empties the disk."""
        self.crash(power=False)
        self.disk.renew()
        self._bereft = False
        self._logs.retired(self.place, self.node_id)
        self._founding = self.joined = None
        self.founds = self.lost = False

"""Who does harm, when and to whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

from nebuladb.node.disk import Space
from nebuladb.raft import StateRole
from nebuladb.shard import membership
from nebuladb.sim.core import Core
from nebuladb.sim.links import Links
from nebuladb.sim.machine import Machine
from nebuladb.sim.network import Network
from nebuladb.sim.partitions import SHAPES, Pairs
from nebuladb.sim.place import Place
from nebuladb.storage.memory import ALWAYS, Fault, MemoryEngine

PARTITION_MS = 2_500
FLAPS = 8
"""The most times that a flapping partition comes and goes."""
FLAP_MS = 300
HANG_MS = 2_000
SLOW_MS = 2_000
PAUSE_MS = 2_500
JUMP_MS = 5_000
SHORT_MS = 3_000
CRAMPED = 0.15
"""Share of disks short of space on which a compaction finds no room, once."""
UNFIT = 0.5
"""Share of disks short of space that are those of nodes which get a snapshot,"""
UNFIT_MS = 3_000
"""if one comes within this time;"""
UNFITTING_MS = 400
"""for so long."""
POLL_MS = 10
STALLED_WRITES = 20
LAST_KEY = b"\xff" * 32
MASSACRE = 6
"""One crash in so many kills all nodes."""


AWAY_MS: Final = 2_500
"""Long enough that the node counts as gone, and logs that keep little are cut."""
AWAY_FLUSHES: Final = 3


class Nemesis:
    """Draws what happens from rates in `Core.faults`, until `stop`."""

    def __init__(self, core: Core, machines: Sequence[Place], network: Network, links: Links) -> None:
        self._core = core
        self._machines = machines
        self._network = network
        self._links = links
        self._rng = core.stream("nemesis")
        self._streams: dict[str, Random] = {}
        self._stopped = False
        faults = core.faults
        for mean, harm in (
            (faults.crash_every, self._crash),
            (faults.partition_every, self._partition),
            (faults.reset_every, self._reset),
            (faults.stall_every, self._stall),
            (faults.hang_every, self._hang),
            (faults.slow_every, self._slow),
            (faults.pause_every, self._pause),
            (faults.jump_every, self._jump),
            (faults.transfer_every, self._transfer),
            (faults.flush_every, self._flush),
            (faults.full_every, self._full),
            (faults.flip_every, self._flip),
            (faults.wipe_every, self._wipe),
            (faults.forget_every, self._forget),
            (faults.away_every, self._away),
            (faults.short_every, self._short),
        ):
            if mean:
                core.scheduler.after(faults.calm, self._later, mean, harm)

    def stop(self) -> None:
        """No more harm, and what was done is mended: partitions healed, disks well, the dead alive. Disks that were
        damaged or emptied are not, and their nodes are lost."""
        self._stopped = True
        self._network.heal()
        for machine in self._machines:
            machine.disk.hangs_until = machine.disk.slow_until = 0
            machine.disk.log.heal()
            machine.disk.data.heal()
            machine.full = False
            machine.room(Space.PLENTY)
            if machine.spoiled:
                machine.lose()
            machine.start()

    def _later(self, mean: int, harm: Callable[[], None]) -> None:
        # Each kind draws from a stream of its own: leaving one out, as the shrinker does, leaves the others alone.
        rng = self._streams.setdefault(harm.__name__, self._core.stream(f"nemesis {harm.__name__}"))
        self._core.scheduler.after(1 + int(rng.expovariate(1 / mean)), self._strike, mean, harm)

    def _strike(self, mean: int, harm: Callable[[], None]) -> None:
        if not self._stopped:
            self._rng = self._streams[harm.__name__]
            harm()
            self._later(mean, harm)

    def _any(self) -> Place:
        return self._rng.choice(self._machines)

    def _leader(self) -> Place | None:
        """One that leads a group or stands for election."""
        busy = [
            machine
            for machine in self._machines
            if machine.node is not None
            and any(replica.raft.role is not StateRole.FOLLOWER for replica in machine.node.host.replicas.values())
        ]
        return self._rng.choice(busy) if busy else None

    def _victim(self) -> Place:
        """Half of the time a leader."""
        leader = self._leader() if self._rng.randrange(2) else None
        return leader or self._any()

    # --- processes ---------------------------------------------------------------------------------------------------

    def _crash(self) -> None:
        """One node, often a leader, or all; now or in the middle of its next turn."""
        rng = self._rng
        victims = list(self._machines) if not rng.randrange(MASSACRE) else [self._victim()]
        for machine in victims:
            power = rng.random() < 0.5
            self._core.hit("power cut" if power else "kill")
            if rng.random() < 0.5:
                machine.doom(power=power)
            else:
                machine.crash(power=power)

    def died(self, machine: Machine) -> None:
        """A node crashed: it comes back some time."""
        self._links.crashed(machine.place)
        self._core.scheduler.after(1 + self._rng.randrange(self._core.faults.down), machine.start)

    def _pause(self) -> None:
        suspended = self._rng.random() < 0.3
        self._core.hit("suspension" if suspended else "pause")
        self._victim().pause(1 + self._rng.randrange(PAUSE_MS), suspended=suspended)

    def _jump(self) -> None:
        self._core.hit("clock jump")
        self._any().leap(self._rng.randrange(JUMP_MS))

    def _transfer(self) -> None:
        target = self._any()
        for machine in self._machines:
            if machine is target or machine.node is None:
                continue
            for group, replica in machine.node.host.replicas.items():
                if replica.raft.role is StateRole.LEADER and self._rng.randrange(2):
                    self._core.hit("transfer")
                    machine.transfer(group, target.node_id)

    # --- the network -------------------------------------------------------------------------------------------------

    def _partition(self) -> None:
        rng, count = self._rng, len(self._machines)
        if count == 1:
            return
        leader = self._leader() or self._any()
        shape = rng.choice(sorted(SHAPES))
        pairs = SHAPES[shape](rng, range(count), leader.place)
        flaps = rng.randrange(2, FLAPS) if rng.random() < 0.25 else 1
        self._core.report.partitions += 1
        self._core.hit(f"partition: {shape}{', flapping' if flaps > 1 else ''}")
        self._core.note("partition", "", pairs)
        begin = 0
        for _ in range(flaps):
            end = begin + 1 + rng.randrange(PARTITION_MS if flaps == 1 else FLAP_MS)
            self._core.scheduler.after(begin, self._cut, pairs)
            self._core.scheduler.after(end, self._heal)
            begin = end + 1 + rng.randrange(FLAP_MS)

    def _cut(self, pairs: Pairs) -> None:
        if self._stopped:
            return
        self._network.cut(pairs)
        for one, other in sorted({(min(pair), max(pair)) for pair in pairs}):
            self._links.cut(one, other)

    def _heal(self) -> None:
        self._core.note("heal")
        self._network.heal()

    def _reset(self) -> None:
        if len(self._machines) > 1:
            self._core.hit("link reset")
            self._links.reset(*self._rng.sample(range(len(self._machines)), 2))

    # --- disks -------------------------------------------------------------------------------------------------------

    def _stall(self) -> None:
        disk = self._any().disk
        self._core.hit("write stall")
        self._rng.choice((disk.log, disk.data)).fail(Fault.STALL, 1 + self._rng.randrange(STALLED_WRITES))

    def _hang(self) -> None:
        self._core.hit("disk hang")
        self._any().disk.hangs_until = self._core.scheduler.now + self._rng.randrange(HANG_MS)

    def _slow(self) -> None:
        self._core.hit("slow disk")
        self._any().disk.slow_until = self._core.scheduler.now + self._rng.randrange(SLOW_MS)

    def _flush(self) -> None:
        self._any().flush()

    def _short(self) -> None:
        """A disk is nearly full, for a while: any number of them may be, and then nobody takes what needs space. Some
        fill up under a snapshot."""
        machine = self._any()
        if self._rng.random() < UNFIT:
            self._core.scheduler.after(POLL_MS, self._wait_for_snapshot, UNFIT_MS // POLL_MS)
        elif not machine.idle:
            self._core.hit("disk short of space")
            machine.room(self._rng.choice((Space.LOW, Space.CRITICAL)))
            if self._rng.random() < CRAMPED:
                machine.cramp()
            self._core.scheduler.after(1 + self._rng.randrange(SHORT_MS), machine.room, Space.PLENTY)

    def _wait_for_snapshot(self, left: int) -> None:
        """The first node to get one has no room for it."""
        receivers = [machine for machine in self._machines if machine.receives]
        if receivers and not self._stopped:
            self._core.hit("snapshot doesn't fit")
            receivers[0].room(Space.CRITICAL)
            self._core.scheduler.after(UNFITTING_MS, receivers[0].room, Space.PLENTY)
        elif left and not self._stopped:
            self._core.scheduler.after(POLL_MS, self._wait_for_snapshot, left - 1)

    def _spare(self) -> Place | None:
        """One whose loss leaves a majority of whole disks."""
        whole = [machine for machine in self._machines if not (machine.full or machine.spoiled or machine.bereft)]
        count = len(self._machines)
        if count - len(whole) + 1 > (min(count, membership.MAX_VOTERS) - 1) // 2:
            return None
        if not all(machine.founded for machine in whole):
            return None  # the cluster's only founding document might be the one that goes
        running = [machine for machine in whole if machine.node is not None and not machine.paused]
        return self._rng.choice(running) if running else None

    def _full(self) -> None:
        machine = self._spare()
        if machine is not None:
            self._core.hit("full disk")
            machine.full = True
            self._rng.choice((machine.disk.log, machine.disk.data)).fail(Fault.FULL, ALWAYS)

    def _forget(self) -> None:
        """One node at a time, and together with those lost for good a minority: while its data comes, the others must
        have theirs. A replica without data may not campaign, and its vote is for no shorter log than its own: where a
        majority has lost something, it may be that nobody can lead any more."""
        machine = self._spare()
        nodes = [machine.node for machine in self._machines if machine.serves]
        if machine is None or any(node is None or node.snapshots.lost for node in nodes):
            return
        self._core.hit("lost data")
        machine.lose_data()
        self._core.scheduler.after(1 + self._rng.randrange(100), machine.start)

    def _away(self) -> None:
        machine = self._any()
        if machine.node is None:
            return
        self._core.hit("node away")
        machine.crash(power=bool(self._rng.randrange(2)))
        for place in range(AWAY_FLUSHES):
            for other in self._machines:
                self._core.scheduler.after((place + 1) * AWAY_MS // AWAY_FLUSHES, other.flush)
        self._core.scheduler.after(AWAY_MS, machine.start)

    def _flip(self) -> None:
        machine = self._spare()
        if machine is not None:
            engine: MemoryEngine = self._rng.choice((machine.disk.log, machine.disk.data))
            keys = [key for key, value in engine.scan(b"", LAST_KEY) if value]
            if keys:
                self._core.hit("flipped bit")
                machine.spoiled = True
                engine.flip(self._rng.choice(keys), 0, detected=True)

    def _wipe(self) -> None:
        machine = self._spare()
        if machine is not None:
            if self._rng.randrange(2) and machine.lose_log():
                self._core.hit("lost log")
            else:
                self._core.hit("wiped node")
                machine.wipe()

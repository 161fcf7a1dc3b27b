"""Who does harm, when and to whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nebuladb.raft import StateRole
from nebuladb.sim.core import Core
from nebuladb.sim.links import Links
from nebuladb.sim.machine import Machine
from nebuladb.sim.network import Network
from nebuladb.storage.memory import Fault

PARTITION_MS = 2_500
HANG_MS = 2_000
STALLED_WRITES = 20
MASSACRE = 6
"""One crash in so many kills all nodes."""


class Nemesis:
    """Draws what happens from rates in `Core.faults`, until `stop`."""

    def __init__(self, core: Core, machines: Sequence[Machine], network: Network, links: Links) -> None:
        self._core = core
        self._machines = machines
        self._network = network
        self._links = links
        self._rng = core.stream("nemesis")
        self._stopped = False
        faults = core.faults
        for mean, harm in (
            (faults.crash_every, self._crash),
            (faults.partition_every, self._partition),
            (faults.reset_every, self._reset),
            (faults.stall_every, self._stall),
            (faults.hang_every, self._hang),
            (faults.transfer_every, self._transfer),
            (faults.flush_every, self._flush),
        ):
            if mean:
                self._later(mean, harm)

    def stop(self) -> None:
        """No more harm, and what was done is mended: partitions healed, disks well, the dead alive."""
        self._stopped = True
        self._network.heal()
        for machine in self._machines:
            machine.disk.hangs_until = 0
            machine.disk.log.heal()
            machine.disk.data.heal()
            machine.start()

    def _later(self, mean: int, harm: Callable[[], None]) -> None:
        self._core.scheduler.after(int(self._rng.expovariate(1 / mean)), self._strike, mean, harm)

    def _strike(self, mean: int, harm: Callable[[], None]) -> None:
        if not self._stopped:
            harm()
            self._later(mean, harm)

    def _any(self) -> Machine:
        return self._rng.choice(self._machines)

    def _victim(self) -> Machine:
        """Half of the time one that leads a group or stands for election."""
        busy = [
            machine
            for machine in self._machines
            if machine.node is not None
            and any(replica.raft.role is not StateRole.FOLLOWER for replica in machine.node.host.replicas.values())
        ]
        return self._rng.choice(busy) if busy and self._rng.randrange(2) else self._any()

    def _crash(self) -> None:
        """One node, often a leader, or all; now or in the middle of its next turn."""
        rng = self._rng
        victims = list(self._machines) if not rng.randrange(MASSACRE) else [self._victim()]
        for machine in victims:
            power = rng.random() < 0.5
            if rng.random() < 0.5:
                machine.doom(power=power)
            else:
                machine.crash(power=power)

    def died(self, machine: Machine) -> None:
        """A node crashed: it comes back some time."""
        self._links.crashed(machine.place)
        self._core.scheduler.after(1 + self._rng.randrange(self._core.faults.down), machine.start)

    def _partition(self) -> None:
        """Halves, one node alone, or one direction of some pairs."""
        rng, count = self._rng, len(self._machines)
        if count == 1:
            return
        self._core.report.partitions += 1
        places = list(range(count))
        rng.shuffle(places)
        size = 1 if rng.random() < 0.5 else rng.randrange(1, count)
        here, there = places[:size], places[size:]
        pairs = [(one, other) for one in here for other in there]
        if rng.random() < 0.6:
            pairs += [(other, one) for one, other in pairs]
        self._core.note("partition", "", pairs)
        self._network.cut(pairs)
        for one, other in sorted({(min(pair), max(pair)) for pair in pairs}):
            self._links.cut(one, other)
        self._core.scheduler.after(rng.randrange(PARTITION_MS), self._heal)

    def _heal(self) -> None:
        self._core.note("heal")
        self._network.heal()

    def _reset(self) -> None:
        if len(self._machines) > 1:
            self._links.reset(*self._rng.sample(range(len(self._machines)), 2))

    def _stall(self) -> None:
        disk = self._any().disk
        self._rng.choice((disk.log, disk.data)).fail(Fault.STALL, 1 + self._rng.randrange(STALLED_WRITES))

    def _hang(self) -> None:
        self._any().disk.hangs_until = self._core.scheduler.now + self._rng.randrange(HANG_MS)

    def _transfer(self) -> None:
        target = self._any()
        for machine in self._machines:
            if machine is target or machine.node is None:
                continue
            for group, replica in machine.node.host.replicas.items():
                if replica.raft.role is StateRole.LEADER and self._rng.randrange(2):
                    machine.transfer(group, target.node_id)

    def _flush(self) -> None:
        self._any().flush()

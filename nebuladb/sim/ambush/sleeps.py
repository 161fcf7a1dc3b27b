"""A whole cluster stands still while leases run out, and its leader leads on."""

from __future__ import annotations

from typing import Final

from nebuladb.ids import META_GROUP
from nebuladb.raft import Raft, StateRole
from nebuladb.sim.ambush.moments import leading
from nebuladb.sim.ambush.scene import LONGEST_MS, Scene
from nebuladb.sim.place import Place

LEASES: Final = 3
"""How many the leader must know of."""
LOOK_MS: Final = 30
SETTLE_MS: Final = 400
STILL_MS: Final = (1_400, 2_300)
"""About as long as a lease lives."""
LAST_MS: Final = (20, 100)
"""How much longer the leader stands still: what the others were asked meanwhile, they ask it."""
AWAKE_MS: Final = (300, 800)


class Sleeps:
    """As when the one machine that all nodes run on is suspended: nobody is elected (S12), and what the leader was
    asked meanwhile it takes before it looks at its clock again. A lease that is renewed then lives from then on, and
    not from when the leader fell asleep (S27): by that time it would be over."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._waits = False

    def strike(self, machine: Place, group: int, raft: Raft) -> None:
        """Somebody stands for election, or leads."""
        if raft.role is StateRole.LEADER and group != META_GROUP and not self._waits:
            self._waits = True
            self._scene.until = self._scene.core.scheduler.now + LONGEST_MS
            self._wait(machine, group, raft.term)

    def _wait(self, leader: Place, group: int, term: int) -> None:
        """For leases."""
        scene = self._scene
        if scene.over or leader.node is None or leading(leader, group, term) is None:
            scene.until, self._waits = 0, False
        elif len(leader.node.host.replicas[group].lessor) < LEASES:
            scene.core.scheduler.after(LOOK_MS, self._wait, leader, group, term)
        else:
            scene.core.scheduler.after(scene.rng.randrange(SETTLE_MS), self._sleep, leader, group, term)

    def _sleep(self, leader: Place, group: int, term: int) -> None:
        scene = self._scene
        if not scene.over:
            still, suspended = scene.rng.randrange(*STILL_MS), bool(scene.rng.randrange(2))
            for machine in scene.machines:
                more = scene.rng.randrange(*LAST_MS) if machine is leader else 0
                machine.pause(still + more, suspended=suspended)
            scene.core.hit("all asleep while leases run")
            scene.core.scheduler.after(still + scene.rng.randrange(*AWAKE_MS), self._wait, leader, group, term)

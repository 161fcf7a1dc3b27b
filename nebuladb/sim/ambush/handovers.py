"""A leader hands over while its lease holds, and doesn't hear of its successor."""

from __future__ import annotations

from typing import Final

from nebuladb.ids import META_GROUP
from nebuladb.raft import Raft, StateRole
from nebuladb.sim.ambush.moments import leading, lease_holds
from nebuladb.sim.ambush.scene import BEGUN_MS, LONGEST_MS, Scene
from nebuladb.sim.place import Place

LEFT_MS: Final = 250
"""Of the lease, at least."""
ALONE_MS: Final = 600
"""How long the leader is alone: clients ask it, and its successor."""


class Handovers:
    """A leader hands over (S10), while its lease holds or while a round is under way that would renew it. What the heir
    says doesn't reach it, and as soon as the heir stands for election nothing does. Whoever asks it then must not be
    told what was."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._waits = False

    def strike(self, machine: Place, group: int, raft: Raft) -> None:
        """Somebody stands for election, or leads."""
        if raft.role is StateRole.LEADER and group != META_GROUP and not self._waits:
            scene = self._scene
            self._waits = True
            scene.until = scene.core.scheduler.now + LONGEST_MS
            scene.core.scheduler.after(scene.rng.randrange(*BEGUN_MS), self._hand_over, machine, group, raft.term)

    def _hand_over(self, leader: Place, group: int, term: int) -> None:
        scene, raft = self._scene, leading(leader, group, term)
        if scene.over or raft is None:
            scene.until, self._waits = 0, False
            return
        heirs = self._heirs(leader, group, raft)
        if not heirs or not (lease_holds(leader, group, LEFT_MS) or raft._reads.context):
            scene.core.scheduler.after(1, self._hand_over, leader, group, term)
            return
        heir = scene.rng.choice(heirs)
        scene.network.cut([(heir.place, leader.place)])
        scene.until = scene.core.scheduler.now + ALONE_MS
        leader.transfer(group, heir.node_id)
        scene.core.hit("leadership handed over under a lease")
        scene.core.scheduler.after(1, self._part, leader, heir, group, term)

    def _heirs(self, leader: Place, group: int, raft: Raft) -> list[Place]:
        """Who has all that the leader has: it hands over to nobody else."""
        nodes = leader.node.host.replicas[group].nodes if leader.node else {}
        level = {nodes.get(voter) for voter in raft.configuration.voters if not raft.membership.lag(voter)}
        others = (machine for machine in self._scene.machines if machine is not leader)
        return [machine for machine in others if machine.node is not None and machine.node_id in level]

    def _part(self, leader: Place, heir: Place, group: int, term: int) -> None:
        """The leader, from all, once the heir stands."""
        scene = self._scene
        replica = heir.node.host.replicas.get(group) if heir.node else None
        if scene.over or replica is None or scene.core.scheduler.now >= scene.until:
            return
        if replica.raft.term == term and replica.raft.role is StateRole.FOLLOWER:
            scene.core.scheduler.after(1, self._part, leader, heir, group, term)
        else:
            scene.network.cut([(other.place, leader.place) for other in scene.machines])
            scene.until = scene.core.scheduler.now + ALONE_MS

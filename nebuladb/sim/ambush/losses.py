"""One of the two who know something loses it, and is left with the one who never knew."""

from __future__ import annotations

from typing import Final

from nebuladb.ids import META_GROUP
from nebuladb.raft import Raft, StateRole
from nebuladb.sim.ambush.moments import leading
from nebuladb.sim.ambush.scene import BEGUN_MS, LONGEST_MS, OVERTAKEN_MS, Scene
from nebuladb.sim.place import Place

ALONE_MS: Final = (150, 400)
"""How long one follower is cut off: shorter than it takes to stand for election."""
KINDS: Final = ("leader", "voter", "wipe", "log")
"""Who loses what: the leader or its only follower what their disks had not synced, or that follower the whole directory
or its log."""


class Losses:
    """A leader has one follower left, and the disk of one of both hangs, or is about to be emptied. What clients are
    told now, only the other one of them is sure to know (S2, S3, S14, S15): it is cut off next, and whoever lost
    something is alone with the follower who missed it. If they elect somebody, nothing acknowledged may be missing."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._begun = False

    def strike(self, machine: Place, group: int, raft: Raft) -> None:
        """Somebody stands for election, or leads."""
        if raft.role is StateRole.LEADER and group != META_GROUP:
            scene = self._scene
            scene.core.scheduler.after(scene.rng.randrange(*BEGUN_MS), self._part, machine, group, raft.term)

    def _part(self, leader: Place, group: int, term: int) -> None:
        scene = self._scene
        others = [other for other in scene.machines if other is not leader and other.node is not None]
        if self._begun or leading(leader, group, term) is None or len(others) != 2 or scene.over:
            return
        self._begun = True
        kind = scene.rng.choice(KINDS if self._whole() else KINDS[:2])
        behind, voter = scene.rng.sample(others, 2)
        victim, keeper = (leader, voter) if kind == "leader" else (voter, leader)
        now, alone = scene.core.scheduler.now, scene.rng.randrange(*ALONE_MS)
        scene.until = now + LONGEST_MS
        scene.isolate(behind)
        if kind in KINDS[:2]:
            victim.disk.hangs_until = scene.until
        scene.core.scheduler.after(alone, self._lose, victim, keeper, kind)

    def _whole(self) -> bool:
        """Whether a disk may be lost here: nothing else takes any, and no other one is damaged or empty."""
        machines = self._scene.machines
        return bool(self._scene.core.drawn.ambush) and all(
            machine.founded and not (machine.spoiled or machine.lost) for machine in machines
        )

    def _lose(self, victim: Place, keeper: Place, kind: str) -> None:
        scene = self._scene
        victim.disk.hangs_until = 0
        taken = kind not in KINDS[:2] and not self._whole()  # by another ambush meanwhile: two disks are a majority
        if scene.over or taken or victim.node is None or keeper.node is None:
            scene.until = 0
            return
        if kind == "wipe":
            victim.wipe()
        elif kind != "log" or not victim.lose_log():
            victim.crash(power=True)
        scene.core.hit(f"loss behind an acknowledgement: {kind}")
        scene.network.heal()
        scene.isolate(keeper)
        scene.until = scene.core.scheduler.now + OVERTAKEN_MS

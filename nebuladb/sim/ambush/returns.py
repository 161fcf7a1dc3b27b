"""A leader that stood still is back, and reads by its lease, when its voter hears of a candidate's term."""

from __future__ import annotations

from typing import Final

from nebuladb.ids import META_GROUP
from nebuladb.node.disk import Space
from nebuladb.raft import Raft, StateRole
from nebuladb.sim.ambush.moments import leading, lease_holds, patience
from nebuladb.sim.ambush.scene import BEGUN_MS, LONGEST_MS, Scene
from nebuladb.sim.place import Place

STILL_MS: Final = (1_200, 1_700)
"""How long a leader stands still: one of the others stands for election meanwhile, and the other one asks it."""
LEFT_MS: Final = 250
"""How much of the leader's lease is left, at least, when what was late arrives."""
SOON_MS: Final = 100
"""The candidate asks again within this time then."""
WAIT_MS: Final = 1_500
"""How long a moment of both is waited for."""
ALONE_MS: Final = 600
"""How long the leader is alone then: clients ask it, and its successor."""


class Returns:
    """While a leader stands still one of its two followers stands for election, and from then on what it says is late,
    and it can't reach the leader. The other one, which asked it for a pre-vote, hears the leader again instead. When
    the leader may read by its lease (S9), and is alone, what was late arrives: the answer, with its later term, and the
    candidate's requests. If they elect it, whoever asks the first leader must not be told what was."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._group = self._term = 0
        self._leader: Place | None = None
        self._others: tuple[Place, Place] | None = None
        """Who stands, and whose vote it needs; None before anybody does."""

    def strike(self, machine: Place, group: int, raft: Raft) -> None:
        """Somebody stands for election, or leads."""
        scene, leader = self._scene, self._leader
        if raft.role is StateRole.LEADER and group != META_GROUP and leader is None:
            scene.core.scheduler.after(scene.rng.randrange(*BEGUN_MS), self._stand_still, machine, group, raft.term)
        elif raft.role is StateRole.CANDIDATE and (group, raft.term) == (self._group, self._term + 1) and leader:
            voters = [other for other in scene.machines if other not in (leader, machine) and other.node is not None]
            if self._others is None and leader.paused and len(voters) == 1 and not scene.over:
                self._others = machine, voters[0]
                scene.network.hold([(machine.place, voters[0].place)])
                scene.isolate(leader, voters[0])

    def _stand_still(self, leader: Place, group: int, term: int) -> None:
        scene = self._scene
        if self._leader is not None or leading(leader, group, term) is None or scene.over:
            return
        self._leader, self._group, self._term = leader, group, term
        still = scene.rng.randrange(*STILL_MS)
        scene.until = scene.core.scheduler.now + LONGEST_MS
        leader.pause(still, suspended=False)
        scene.core.scheduler.after(still - 1, self._awake, leader)

    def _awake(self, leader: Place) -> None:
        """The voter takes no writes (S33) while it hears the leader: its log is no longer than the candidate's then."""
        scene = self._scene
        if scene.over or self._others is None:
            scene.until = 0
        else:
            self._others[1].room(Space.CRITICAL)
            scene.core.scheduler.after(2, self._wait, leader, *self._others, scene.core.scheduler.now + WAIT_MS)

    def _wait(self, leader: Place, candidate: Place, voter: Place, end: int) -> None:
        """For a lease under which the candidate will ask again."""
        scene, now = self._scene, self._scene.core.scheduler.now
        waits = not scene.over and leading(leader, self._group, self._term) is not None and now < end
        if waits and not (lease_holds(leader, self._group, LEFT_MS) and patience(candidate, self._group) < SOON_MS):
            scene.core.scheduler.after(1, self._wait, leader, candidate, voter, end)
            return
        voter.room(Space.PLENTY)
        scene.until = 0
        if waits:
            scene.network.heal()
            scene.isolate(leader)
            scene.core.hit("a later term comes to light under a lease")
            scene.until = now + ALONE_MS

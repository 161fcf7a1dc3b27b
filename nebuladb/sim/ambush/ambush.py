"""Harm at the moments that safety hangs on: a vote was given, a term has begun, a leader writes for itself alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from nebuladb.ids import META_GROUP
from nebuladb.kv.store import Store
from nebuladb.node.node import Node
from nebuladb.raft import Raft, StateRole
from nebuladb.sim.ambush.handovers import Handovers
from nebuladb.sim.ambush.losses import Losses
from nebuladb.sim.ambush.moments import commits_after, leading, leads, lease_holds, patience
from nebuladb.sim.ambush.returns import Returns
from nebuladb.sim.ambush.scene import BEGUN_MS, LONGEST_MS, OVERTAKEN_MS, Scene
from nebuladb.sim.ambush.sleeps import Sleeps
from nebuladb.sim.core import Core
from nebuladb.sim.faults import AMBUSHES, draw_ambush
from nebuladb.sim.machine import Machine
from nebuladb.sim.network import Network
from nebuladb.sim.place import Place
from nebuladb.storage.memory import ALWAYS, Fault

LOOK_MS: Final = 3
"""Less than this passes between a change and its being seen."""
FRESH_MS: Final = 40
"""A leader dies within this time of its election: before its term's first entry reached anybody, or just after."""
ALONE_MS: Final = (1_000, 2_000)
"""How long a leader is cut off: the others elect one meanwhile."""
HUNG_MS: Final = (200, 1_200)
"""How much longer its disk hangs."""
LOOK_AGAIN_MS: Final = 20
NAP_MS: Final = 100
"""How long before another stands for election a voter is killed: it is back by then, and linked again."""
LEASE_MS: Final = 200
"""What must be left of a lease, for something to happen before it ends."""
NAP_ENDS_MS: Final = 500
"""After it: a lease has ended by then."""
WATCH_MS: Final = 5
FLUSHES: Final = 4
CUT_MS: Final = 60
"""Between two flushes of a successor, each followed by a cut of its log."""
STALLED_WRITES: Final = 40
"""The most writes that an engine refuses in the middle of a command, each tried again after some milliseconds."""

STILL_MS: Final = (1_200, 1_700)
"""How long a leader stands still: the others elect one meanwhile, whom clients find and write through."""
LIVES_ON_MS: Final = (100, 300)
"""How long who is to die is cut off first, as clients see what it does."""
SLOW_VOTES_MS: Final = 60
"""How long a vote is on its way to the disk."""

_Strike = Callable[[Place, int, Raft], None]

NEW: Final[dict[str, type[Losses] | type[Sleeps] | type[Handovers] | type[Returns]]] = {
    "losses": Losses, "sleeps": Sleeps, "handovers": Handovers, "returns": Returns,
}  # fmt: skip
"""Kinds that are a class each, whose object lives for one ambush."""


class Ambush:
    """At times drawn from `Faults.ambush_every`, for a while, one of these, or of those in `NEW`:

    - voters: while a leader is cut off somebody else is elected; before it is heard from it dies, and so does its
      voter, whose vote is hardly on the disk, and the former leader stands in the same term. If the voter has
      forgotten its vote, both are elected;
    - leaders: each is killed as its term begins, or in the very turn in which it does;
    - revivals (the paper's figure 8): one leader is cut off and appends for itself alone; the next dies in its first
      turn, so that nobody else has what it wrote in that place; the first is elected again and dies when a follower has
      acknowledged what it had appended before, and nothing of its new term; then the second may lead, and overwrite it;
    - tails: a leader is cut off while its disk hangs. What it has appended is overwritten before it was durable;
    - naps: a leader hears only from one voter, whose disk hangs. Just before the other one stands that voter loses
      power, and is back at once. If it votes, two nodes lead while the first still holds its lease;
    - strays: a leader is cut off and appends for itself alone; its successor commits hardly more than its term's first
      entry, and cuts its log there. The first one's log is as long, and another: it gets a snapshot;
    - laggards (S4): while members change a voter appends and can't apply. When the leader has left the joint
      configuration, that voter and another, a majority of those before, are alone with each other. If the laggard
      stands for election, it counts by members who decide no more, and the leader goes on with those who do;
    - halves (S23, S24): an engine stalls in the middle of a command: for a while everybody may look at half of it;
    - echoes (S8): the replies to a round of reads are late, and the leader that waits for them stands still until a
      successor has committed something. Whoever asked it meanwhile must not be told by those replies what was.
    """

    def __init__(self, core: Core, machines: Sequence[Place], network: Network) -> None:
        self._core = core
        self._machines = machines
        self._network = network
        self._rng = core.stream("ambush")
        self._kind = core.stream("ambush kinds")
        self._scene = Scene(core, machines, network, core.stream("ambush scene"))
        kinds: tuple[_Strike, ...] = (
            self._voters, self._leaders, self._revivals, self._tails, self._naps, self._strays, self._laggards,
            self._halves, self._echoes,
        )  # fmt: skip
        self._kinds = dict(zip(AMBUSHES, kinds, strict=False))
        self._strike: _Strike = self._leaders
        self._group = 0
        self._known: set[tuple[int, int, int, StateRole]] = set()
        """(place, group, term, role) that were looked at in this ambush."""
        self._apart: list[int] = []
        """Places of who was cut off, in their order."""
        self._laggard: Machine | None = None
        """Whose data takes no writes."""
        self._half = (0, 0, b"")
        """(place, index, key) of the last command that was stopped in its middle."""
        self._joint = False
        """The members have begun to change by way of a joint configuration."""
        core.scheduler.after(core.faults.calm, self._later)

    def _later(self) -> None:
        mean = self._core.faults.ambush_every
        if mean:
            self._core.scheduler.after(1 + int(self._rng.expovariate(1 / mean)), self._lie_in_wait)

    def _lie_in_wait(self) -> None:
        kind = self._core.faults.ambush or draw_ambush(self._rng, self._kind)
        new = NEW.get(kind)
        self._strike = new(self._scene).strike if new else self._kinds[kind]
        self._scene.until = self._core.scheduler.now + self._rng.randrange(LONGEST_MS)
        self._apart = []
        self._known.clear()
        self._core.hit(f"ambush: {kind}")
        for machine in self._rng.sample(self._machines, len(self._machines)):
            for group in machine.node.host.replicas if machine.node else ():
                self._look_at(machine, group)
        self._end()

    def stood(self, place: int, group: int) -> None:
        """A replica stands for election, or leads now."""
        if self._core.scheduler.now < self._scene.until:
            self._core.scheduler.after(self._rng.randrange(LOOK_MS), self._look_at, self._machines[place], group)

    def _look_at(self, machine: Place, group: int) -> None:
        replica = machine.node.host.replicas.get(group) if machine.node else None
        if replica is None or not self._core.faults.ambush_every:
            return
        raft = replica.raft
        at = (machine.place, group, raft.term, raft.role)
        if raft.role is not StateRole.FOLLOWER and at not in self._known:
            self._known.add(at)
            self._strike(machine, group, raft)

    def _end(self) -> None:
        """Unless a strike has made it longer."""
        core = self._core
        if not core.faults.ambush_every:
            return  # the faults are over
        if core.scheduler.now < self._scene.until:
            core.scheduler.after(self._scene.until - core.scheduler.now, self._end)
        else:
            self._network.heal()
            if self._laggard is not None:
                self._laggard.disk.data.heal()
                self._laggard = None
            self._later()

    # --- the kinds ---------------------------------------------------------------------------------------------------

    def _voters(self, machine: Place, group: int, raft: Raft) -> None:
        stage = len(self._apart)
        if raft.role is StateRole.LEADER and group != META_GROUP and not stage:
            self._group, self._apart = group, [machine.place]
            self._scene.until = self._core.scheduler.now + LONGEST_MS
            self._core.scheduler.after(self._rng.randrange(*BEGUN_MS), self._scene.isolate, machine)
        elif (
            raft.role is StateRole.CANDIDATE and (group, stage) == (self._group, 1) and machine.place != self._apart[0]
        ):
            for other in self._machines:
                other.disk.hangs_until = self._core.scheduler.now + SLOW_VOTES_MS * (other is not machine)
            machine.doom(power=False, when=partial(self._elected, machine, raft.term))

    def _elected(self, machine: Place, term: int, node: Node) -> bool:
        """Whether a candidate dies, as it does in the turn in which it leads: then so do its voters, before they hear
        from it, and the former leader may talk to them."""
        if len(self._apart) > 1 or not leads(self._group, term, node):
            return False
        self._apart.append(machine.place)
        self._core.hit("voters die before they hear from whom they elected")
        for other in self._machines:
            if other.place not in self._apart:
                other.crash(power=self._rng.random() < 0.5)
        self._turn_over(machine)
        return True

    def _turn_over(self, machine: Machine) -> None:
        """Whoever was alone may talk again, and `machine` may not."""
        self._network.heal()
        self._scene.isolate(machine)

    def _leaders(self, machine: Machine, group: int, raft: Raft) -> None:
        if raft.role is StateRole.CANDIDATE and self._rng.randrange(2):
            machine.doom(power=False, when=partial(leads, group, raft.term))
        elif raft.role is StateRole.LEADER:
            self._core.scheduler.after(self._rng.randrange(FRESH_MS), self._scene.kill, machine)

    def _revivals(self, machine: Machine, group: int, raft: Raft) -> None:
        place, stage = machine.place, len(self._apart)
        if not stage:
            if raft.role is StateRole.LEADER and group != META_GROUP:
                self._group = group
                self._apart = [place]
                self._scene.until = self._core.scheduler.now + LONGEST_MS
                # Not before clients work: it must have something to append.
                self._core.scheduler.after(self._rng.randrange(*BEGUN_MS), self._scene.isolate, machine)
        elif group == self._group and stage == 1 and raft.role is StateRole.CANDIDATE and place != self._apart[0]:
            machine.doom(power=False, when=partial(self._falls, machine, raft.term, 0))
        elif group == self._group and stage == 2 and raft.role is StateRole.LEADER and place == self._apart[0]:
            machine.doom(power=False, when=partial(self._falls, machine, raft.term, raft.last_index))

    def _falls(self, machine: Machine, term: int, before: int, node: Node) -> bool:
        """Whether a leader of `term` is to die in this turn: at once; or soon, when a follower has anything below
        `before`. From then on nothing leaves it any more, and the others may talk."""
        replica = node.host.replicas.get(self._group)
        if replica is None or replica.raft.role is not StateRole.LEADER or replica.raft.term != term:
            return False
        raft = replica.raft
        if len(self._apart) > 2:
            return False
        if before and not any(
            0 < raft.last_index - raft.membership.lag(peer) < before for peer in replica.nodes if peer != raft.replica
        ):
            return False
        self._apart.append(machine.place)
        self._core.hit("former leader revived" if before else "leader dies before anybody follows")
        self._turn_over(machine)
        if before:
            self._core.scheduler.after(self._rng.randrange(*LIVES_ON_MS), self._scene.kill, machine)
        return not before

    def _tails(self, machine: Machine, group: int, raft: Raft) -> None:
        if raft.role is StateRole.LEADER and group != META_GROUP and not self._apart:
            self._apart = [machine.place]
            # First the disk: a leader that is cut off has room for an entry or two, and none of them is to be synced.
            cut = self._core.scheduler.now + 2 * FRESH_MS
            self._scene.until = cut + self._rng.randrange(*ALONE_MS)
            machine.disk.hangs_until = self._scene.until + self._rng.randrange(*HUNG_MS)
            self._core.scheduler.after(2 * FRESH_MS, self._scene.isolate, machine)

    def _naps(self, machine: Machine, group: int, raft: Raft) -> None:
        if raft.role is StateRole.LEADER and group != META_GROUP:
            self._core.scheduler.after(self._rng.randrange(*BEGUN_MS), self._to_bed, machine, group, raft.term)

    def _to_bed(self, leader: Machine, group: int, term: int) -> None:
        """As soon as somebody reads by the lease the leader hears only from one voter, which will forget what it is
        sent from now on: its log is then no longer than the other one's."""
        others = [other for other in self._machines if other is not leader and other.node is not None]
        if leading(leader, group, term) is None or self._apart or len(others) < 2 or not self._core.faults.ambush_every:
            return
        if not lease_holds(leader, group, 0):
            self._core.scheduler.after(LOOK_AGAIN_MS, self._to_bed, leader, group, term)
            return
        self._group, self._apart = group, [leader.place]
        self._scene.until = self._core.scheduler.now + LONGEST_MS
        voter, other = self._rng.sample(others, 2)
        voter.disk.hangs_until = self._scene.until
        self._core.scheduler.after(2 * FRESH_MS, self._scene.isolate, leader, voter)
        self._core.scheduler.after(2 * FRESH_MS, self._nap, leader, voter, other, term)

    def _nap(self, leader: Machine, voter: Machine, other: Machine, term: int) -> None:
        """Shortly before `other` stands for election, if the lease lasts: the voter forgets that it has answered the
        leader, and doesn't hear from it again."""
        left = patience(other, self._group)
        if leading(leader, self._group, term) is None or not self._core.faults.ambush_every or not left:
            self._scene.until = 0
        elif left > NAP_MS:
            self._core.scheduler.after(min(left - NAP_MS, NAP_MS), self._nap, leader, voter, other, term)
        elif lease_holds(leader, self._group, LEASE_MS):
            self._core.hit("voter naps under a lease")
            self._scene.isolate(leader)
            voter.disk.hangs_until = 0
            voter.crash(power=True)
            self._core.scheduler.after(1 + self._rng.randrange(FRESH_MS // 4), voter.start)
            self._scene.until = self._core.scheduler.now + NAP_ENDS_MS
        else:
            self._core.scheduler.after(2 * NAP_MS, self._nap, leader, voter, other, term)

    def _strays(self, machine: Machine, group: int, raft: Raft) -> None:
        if raft.role is not StateRole.LEADER or group == META_GROUP or len(self._apart) > 1:
            return
        if not self._apart:
            self._group, self._apart = group, [machine.place]
            self._scene.until = self._core.scheduler.now + LONGEST_MS
            self._scene.isolate(machine)
        elif group == self._group and machine.place != self._apart[0]:
            self._apart.append(machine.place)
            self._succeeds(machine, raft.term, raft.last_index)

    def _succeeds(self, machine: Machine, term: int, first: int) -> None:
        """As soon as the entry at `first` is committed, nothing more is for a while, and the log is cut there."""
        replica = machine.node.host.replicas.get(self._group) if machine.node else None
        if replica is None or replica.raft.term != term or not self._core.faults.ambush_every:
            self._scene.until = 0
        elif replica.applied < first:
            self._core.scheduler.after(WATCH_MS, self._succeeds, machine, term, first)
        else:
            now = self._core.scheduler.now
            self._scene.until = now + FLUSHES * CUT_MS
            for other in self._machines:
                if other.place not in self._apart:
                    other.disk.hangs_until = self._scene.until + self._rng.randrange(*HUNG_MS)
            for flush in range(FLUSHES - 1):
                self._core.scheduler.after(flush * CUT_MS, machine.flush)
            self._core.scheduler.after(FLUSHES * CUT_MS, self._network.heal)

    def _laggards(self, machine: Machine, group: int, raft: Raft) -> None:
        if raft.role is StateRole.LEADER and group != META_GROUP:  # whose members change one by one
            self._members_change(machine, group, raft.term)

    def _members_change(self, leader: Machine, group: int, term: int) -> None:
        """As soon as somebody learns who is to vote soon, one of the voters goes on appending and applies no more."""
        raft = leading(leader, group, term)
        if raft is None or self._apart or not self._core.faults.ambush_every:
            return
        replica = leader.node.host.replicas[group] if leader.node else None
        homes = {replica.nodes.get(voter) for voter in raft.configuration.voters} if replica else set()
        others = [one for one in self._machines if one is not leader and one.node is not None and one.node_id in homes]
        if not raft.configuration.learners or len(others) < 2:
            self._core.scheduler.after(WATCH_MS, self._members_change, leader, group, term)
            return
        laggard, voter = self._rng.sample(others, 2)
        self._group, self._apart, self._laggard, self._joint = group, [laggard.place], laggard, False
        self._scene.until = self._core.scheduler.now + LONGEST_MS
        laggard.disk.data.fail(Fault.STALL, ALWAYS)
        self._core.scheduler.after(WATCH_MS, self._overtaken, leader, laggard, voter, term)

    def _overtaken(self, leader: Machine, laggard: Machine, voter: Machine, term: int) -> None:
        """In the joint configuration the voter is cut off from all but the laggard, so that its log is no longer; when
        that is left, the laggard is, too."""
        raft = leading(leader, self._group, term)
        behind = laggard.node.host.replicas.get(self._group) if laggard.node else None
        if raft is None or behind is None or not self._core.faults.ambush_every:
            self._scene.until = 0
        elif raft.configuration.outgoing or raft.configuration.voters == behind.raft.configuration.voters:
            if raft.configuration.outgoing:
                self._joint = True
                self._scene.isolate(voter, laggard)
            self._core.scheduler.after(WATCH_MS, self._overtaken, leader, laggard, voter, term)
        elif not self._joint:
            self._scene.until = 0  # one voter more: any majority has somebody of each one before
        else:
            self._scene.isolate(voter, laggard)
            self._scene.isolate(laggard, voter)
            self._core.hit("laggard overtaken")
            self._scene.until = self._core.scheduler.now + OVERTAKEN_MS

    def _halves(self, machine: Machine, group: int, raft: Raft) -> None:
        """See `halved`."""

    def halved(self, place: int, store: Store) -> None:
        """A store has applied a part of an entry; perhaps a part of one command, down to some key."""
        half = place, store.index, store._state.cursor
        if (
            self._core.scheduler.now < self._scene.until
            and self._strike == self._halves
            and half[2]
            and half != self._half
        ):
            self._half = half
            self._core.hit("stall in the middle of a command")
            self._machines[place].disk.data.fail(Fault.STALL, 1 + self._rng.randrange(STALLED_WRITES))

    def _echoes(self, machine: Place, group: int, raft: Raft) -> None:
        if raft.role is StateRole.LEADER and group != META_GROUP:
            self._core.scheduler.after(self._rng.randrange(*BEGUN_MS), self._hold_up, machine, group, raft.term)

    def _hold_up(self, leader: Place, group: int, term: int) -> None:
        """From now on nothing comes to the leader: a round that begins has no end."""
        if leading(leader, group, term) is None or self._apart or not self._core.faults.ambush_every:
            return
        self._group, self._apart = group, [leader.place]
        self._scene.until = self._core.scheduler.now + LONGEST_MS
        self._network.hold((other.place, leader.place) for other in self._machines)
        self._round_begins(leader, term)

    def _round_begins(self, leader: Place, term: int) -> None:
        """As soon as its heartbeats have left, the leader stands still; who has replied to them is cut off from it."""
        raft = leading(leader, self._group, term)
        if raft is None or not self._core.faults.ambush_every:
            self._network.heal()
        elif not raft._reads.context:
            self._core.scheduler.after(1, self._round_begins, leader, term)
        else:
            still = self._rng.randrange(*STILL_MS)
            leader.pause(still, suspended=False)
            self._core.scheduler.after(FRESH_MS, self._scene.isolate, leader)
            self._core.scheduler.after(still + LOOK_MS, self._echo, leader, term)

    def _echo(self, leader: Place, term: int) -> None:
        """The replies arrive, behind the reads for which the leader was asked meanwhile."""
        if leading(leader, self._group, term) is not None and any(
            commits_after(other, self._group, term) for other in self._machines
        ):
            self._core.hit("replies arrive under a successor")
        self._network.heal()

"""Elections, indexes and states of replicas: what must hold of each after every step, and between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from nebuladb.kv.store import Store
from nebuladb.node.node import Node
from nebuladb.node.turn import Turn
from nebuladb.raft import FOLLOWER, LEADER, Configuration, Raft, StateRole
from nebuladb.sim.faults import MAX_DRIFT
from nebuladb.sim.invariants.alone import Alone
from nebuladb.sim.invariants.changes import Changes
from nebuladb.sim.invariants.floors import Floors
from nebuladb.sim.invariants.logs import Logs
from nebuladb.sim.violation import Violation, require

CHECK_EVERY = 32
"""Steps of a node between two runs of the product's own checks."""
CLOCK_SLACK_MS = 200
"""Rounding of many clock readings."""


@dataclass(slots=True)
class _Seen:
    """A replica as it was at the last look, in this life."""

    picture: tuple[object, ...] = ()
    """As long as it is the same, nothing has to be looked at."""
    term: int = 0
    commit: int = 0
    configurations: set[Configuration] = field(default_factory=set)
    """In force since what is committed was looked at."""
    looked: int = 0
    """What is committed was compared up to here."""
    index: int = 0
    revision: int = 0
    led: int = 0
    """The latest term in which it was seen leading."""
    stood: tuple[int, StateRole] = (0, FOLLOWER)
    """Its term and role."""


class Replicas:
    """All replicas of all nodes."""

    def __init__(self, logs: Logs, changes: Changes, floors: Floors) -> None:
        self.leader_changes = 0
        self.stood: Callable[[int, int], None] = lambda place, group: None
        """Told (place, group) of each replica that stands for election, or leads now."""
        self.halved: Callable[[int, Store], None] = lambda place, store: None
        """Told (place, store) of each replica that has applied a part of an entry, after each turn that ends so."""
        self.removable: set[int] = set()
        """Nodes that somebody wanted to remove."""
        self._changes = changes
        self._floors = floors
        self._logs = logs
        self._seen: dict[int, dict[int, _Seen]] = {}
        """Place → group → what was seen there."""
        self._leaders: dict[tuple[int, int], tuple[int, int]] = {}
        self._states: dict[tuple[int, int], tuple[int, ...]] = {}
        self._configurations: dict[tuple[int, int], Configuration] = {}
        self._hashes: dict[tuple[int, int], bytes] = {}
        self._asked: dict[int, list[int]] = {}
        self._stalled: set[int] = set()
        """Places whose last turn met a stalled engine."""
        self._steps = 0
        self._alone = Alone()
        self.ticked = self._alone.ticked
        """Told (place, node) of each tick."""

    def started(self, place: int) -> None:
        """A new life begins: what the old one had in memory is forgotten."""
        self._seen[place] = {}
        self._alone.started(place)

    def step(self, place: int, node: Node, turn: Turn, now: int) -> None:
        """Look at a node after a turn, at virtual time `now`."""
        self._steps += 1
        host = node.host
        look: Iterable[int] = host.stepped
        if self._steps % CHECK_EVERY == 0:
            node.check()
            look = host.replicas
        elif turn.stalled or place in self._stalled:
            look = host.replicas  # what a stalled log holds back is written in a later turn, about other groups
        if turn.stalled:
            self._stalled.add(place)
        elif self._stalled:
            self._stalled.discard(place)
        replicas, groups, known = host.replicas, node.groups, self._seen[place]
        for group in look:
            replica, data = replicas.get(group), groups.get(group)
            if replica is None or data is None:
                continue
            if replica.lost:
                known.pop(group, None)  # it has no state, until a snapshot brings another one
                continue
            # Their fields, and not the properties that tell them: this runs for every group that a turn has stepped.
            raft, store = replica.raft, data.store
            log, stored = raft.log, store._state
            picture = (raft.role, raft.term, log.commit, log.last, replica.log.last(), stored.index)
            seen = known.get(group)
            if seen is None:
                seen = known[group] = _Seen(index=stored.index)
            if seen.picture != picture:
                self._changed(seen, place, group, node, now)
                seen.picture = picture
            if stored.place or stored.cursor:
                self.halved(place, store)
            if stored.revision != seen.revision:
                require(stored.revision > seen.revision, f"group {group} on n{place + 1}: a revision went back")
                seen.revision = stored.revision
                self._published(place, group, store)
                self._floors.published(group, store.revision, now)

    def _changed(self, seen: _Seen, place: int, group: int, node: Node, now: int) -> None:
        replica, store = node.host.replicas[group], node.groups[group].store
        raft, index = replica.raft, store.index
        term, role, commit, last = raft.term, raft.role, raft.commit, raft.last_index
        if not (seen.term <= term and seen.commit <= commit <= last):
            raise Violation(
                f"group {group} on n{place + 1}: from term {seen.term}, commit {seen.commit} "
                f"to term {term}, commit {commit} in a log that ends at {last}"
            )
        seen.term, seen.commit = term, commit
        if seen.stood != (term, role):
            seen.stood = term, role
            if role is not FOLLOWER:
                self.stood(place, group)
        seen.configurations.add(raft.configuration)
        # A stalled or full batch leaves the log behind what Raft has in memory; equal ends are equal logs.
        written = replica.log.last() == (last, raft.last_term)
        if written and commit > seen.looked:
            seen.looked = self._logs.committed(group, replica, seen.looked, seen.configurations)
            seen.configurations = {raft.configuration}
        if role is LEADER and seen.led != term:
            self._leads(place, group, node)
            if written:
                seen.led = term
                self.leader_changes += 1
                self._logs.elected(group, raft, replica.log)
        if index != seen.index:
            require(
                seen.index < index <= commit,
                f"group {group} on n{place + 1}: from applied {seen.index} to {index}; commit is {commit}",
            )
            seen.index = index
            self._applied(place, group, store, now)
            if node.reconciler.rows[group].configuration_index <= index == replica.applied:
                self._configured(place, group, raft, index)

    def _leads(self, place: int, group: int, node: Node) -> None:
        term = node.host.replicas[group].raft.term
        me = (place, node.host.incarnation)
        other = self._leaders.setdefault((group, term), me)
        if other != me:
            raise Violation(f"group {group}: n{place + 1} leads term {term}, which n{other[0] + 1} led or leads")

    def _applied(self, place: int, group: int, store: Store, now: int) -> None:
        if not self._logs.on_disk(place, group, store.index, store.term):
            entry = f"(index {store.index}, term {store.term})"
            raise Violation(f"group {group} on n{place + 1}: {entry} is applied and not on the disk (S1)")
        if store.clock > now * (1 + MAX_DRIFT) + CLOCK_SLACK_MS:
            raise Violation(f"group {group} on n{place + 1}: the lease clock is at {store.clock} after {now} ms (S27)")
        self._floors.seen(group, store.floor, now)
        if store.partial:
            return
        state = (store.term, store.revision, store.floor, store.epoch, store.clock, store.key_count, store.size)
        other = self._states.setdefault((group, store.index), state)
        if other != state:
            raise Violation(
                f"group {group} on n{place + 1}: at index {store.index} it is {state}, another replica was {other}"
            )

    def _configured(self, place: int, group: int, raft: Raft, index: int) -> None:
        """A configuration is in force from the entry on that brought it, in a snapshot too (S4, S5)."""
        other = self._configurations.setdefault((group, index), raft.configuration)
        if other != raft.configuration:
            raise Violation(
                f"group {group} on n{place + 1}: at index {index} {raft.configuration} is in force, on another {other}"
            )

    def _published(self, place: int, group: int, store: Store) -> None:
        empty = self._changes.published(group, store)
        require(not empty, f"group {group} on n{place + 1}: revisions {empty} changed nothing (S29)")

    def hash_asked(self, group: int, index: int) -> None:
        """A HASH stands at `index`: every replica will have one of that state (S28)."""
        self._asked.setdefault(group, []).append(index)

    def hashes(self, place: int, node: Node) -> None:
        """Compare the hashes that a node has taken."""
        for group, data in node.groups.items():
            for index in self._asked.get(group, ()):
                digest = data.store.hash_at(index)
                if digest is not None and self._hashes.setdefault((group, index), digest) != digest:
                    raise Violation(f"group {group} on n{place + 1}: the state hash at index {index} differs")

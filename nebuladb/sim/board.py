"""All that clients know together: the registers, and the revisions that anybody has been told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Protocol, TypeVar, cast

from nebuladb.kv import sessions
from nebuladb.kv.store import Store
from nebuladb.sim.invariants.changes import Changes
from nebuladb.sim.invariants.leavings import Leavings
from nebuladb.sim.register import Register
from nebuladb.sim.uses import Uses
from nebuladb.sim.violation import require


class Fact(Protocol):
    """What the clients of one workload know of one group together."""

    def check(self) -> None:
        """Raise `Violation` unless the history of all of them can have been; when the run is over."""
        ...

    def holds(self, store: Store) -> None:
        """Raise `Violation` unless a node's last state is one that they may see; after recovery, on each node."""
        ...


F = TypeVar("F", bound=Fact)


class Board:
    """Shared by the clients of a world, which talk to each other outside of the database."""

    def __init__(self, changes: Changes) -> None:
        self.changes = changes
        """What was committed."""
        self.registers: dict[int, list[Register]] = {}
        self.facts: dict[tuple[int, str], Fact] = {}
        self.dropped: set[int] = set()
        """Groups of keyspaces that somebody asked to drop."""
        self.leavings = Leavings()
        self.opened: Counter[int] = Counter()
        """Group → sessions that clients asked for."""
        self._uses: dict[int, Uses] = {}
        self._told: dict[int, int] = {}
        self._writes: dict[tuple[int, int], str] = {}
        self._processes = 0

    def new_process(self) -> int:
        """A client's number."""
        self._processes += 1
        return self._processes

    def fact(self, group: int, kind: Callable[[int], F]) -> F:
        """What the clients of `group` share; made when it is first asked for."""
        name = getattr(kind, "__name__", "")
        found = self.facts.get((group, name))
        if found is None:
            found = self.facts[group, name] = kind(group)
        return cast(F, found)

    def new_register(self, group: int) -> Register:
        """A key that nobody has used."""
        registers = self.registers.setdefault(group, [])
        register = Register(group, b"key/%d" % len(registers))
        registers.append(register)
        return register

    def any_register(self, group: int, rng: Random) -> Register:
        """One of the group's; a new one more likely than an old one."""
        registers = self.registers[group]
        count = len(registers)
        return registers[max(rng.randrange(count), rng.randrange(count))]

    def uses(self, group: int) -> Uses:
        """Of the group's sessions."""
        return self._uses.setdefault(group, Uses(group))

    def session_ended(self, group: int, who: str) -> None:
        """`who` is told that its session has ended, which it didn't ask for: there was no room for all (S20)."""
        opened, room = self.opened[group], vars(sessions)["MAX_SESSIONS"]  # which is small in some seeds
        require(opened > room, f"group {group}, {who}: its session has ended; {opened} were opened, {room} have room")

    def told(self, group: int) -> int:
        """The highest revision that any client was told."""
        return self._told.get(group, 0)

    def tell(self, group: int, revision: int, floor: int, what: str) -> None:
        """Somebody is told `revision` by an operation that began when `floor` had been told: it can't be older."""
        require(revision >= floor, f"{what}: revision {revision} is told after {floor} (group {group})")
        self._told[group] = max(self.told(group), revision)

    def wrote(self, group: int, revision: int, floor: int, what: str) -> None:
        """Likewise, by a write that stepped the revision: it is the write's own."""
        require(revision > floor, f"{what}: wrote at revision {revision}, but {floor} had been told (group {group})")
        other = self._writes.setdefault((group, revision), what)
        require(other is what, f"{what} and {other} have the same revision {revision} (group {group})")
        self.tell(group, revision, floor, what)

    def acknowledged(self, group: int) -> list[int]:
        """Revisions that clients know to be a write's own."""
        return [revision for where, revision in self._writes if where == group]

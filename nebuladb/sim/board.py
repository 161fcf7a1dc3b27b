"""All that clients know together: the registers, and the revisions that anybody has been told."""

from __future__ import annotations

from random import Random

from nebuladb.sim.register import Register
from nebuladb.sim.violation import require


class Board:
    """Shared by the clients of a world, which talk to each other outside of the database."""

    def __init__(self) -> None:
        self.registers: dict[int, list[Register]] = {}
        self._told: dict[int, int] = {}
        self._writes: dict[tuple[int, int], str] = {}

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

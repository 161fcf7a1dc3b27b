"""Elements that are added and never lost, until the whole set is swept away at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from nebuladb.errors import NebulaError
from nebuladb.kv.answer import Answer
from nebuladb.kv.store import Store
from nebuladb.sim.actor import Actor, unknown
from nebuladb.sim.board import Board
from nebuladb.sim.core import Core
from nebuladb.sim.look import Then
from nebuladb.sim.machine import Machine
from nebuladb.sim.violation import require
from nebuladb.sim.workloads.requests import delete_range, put

FULL: Final = 12
"""Elements after which a set is left, to be swept: with small bounds the delete of so many takes several slices."""


@dataclass(slots=True)
class _Set:
    number: int
    certain: set[bytes] = field(default_factory=set)
    """Acknowledged, or seen by a linearizable read: in it for ever, if nobody sweeps."""
    open: set[bytes] = field(default_factory=set)
    """Under way, or of unknown outcome: they may come at any time, even behind the sweep."""
    sweeping: bool = False
    """Somebody began to."""
    swept: bool = False
    """Somebody was told that it was done."""

    @property
    def low(self) -> bytes:
        return b"set/%d/" % self.number

    @property
    def high(self) -> bytes:
        return b"set/%d0" % self.number


class Sets:
    """All sets of one group; the last is being filled."""

    def __init__(self, group: int) -> None:
        self._group = group
        self.sets = [_Set(0)]

    def current(self) -> _Set:
        """The one that is being filled."""
        if len(self.sets[-1].certain) >= FULL:
            self.sets.append(_Set(len(self.sets)))
        return self.sets[-1]

    def saw(self, of: _Set, keys: set[bytes], certain: set[bytes], where: str, *, swept: bool) -> None:
        """A linearizable read; `certain` and `swept` are what was known when it began."""
        where = f"group {self._group}, set {of.number}, {where}"
        foreign = keys - of.certain - of.open
        require(not foreign, f"{where}: nobody can have added {sorted(foreign)}")
        missing = certain - keys
        if not of.sweeping:
            require(not missing, f"{where}: {sorted(missing)} are missing")
            of.certain |= keys
            of.open -= keys
            return
        # What was certain stood before the sweep began, and goes as a whole.
        require(missing in (set(), certain), f"{where}: of {len(certain)} elements {len(missing)} are swept away")
        left = keys & certain
        require(not (swept and left), f"{where}: {sorted(left)} are there although it was swept")

    def check(self) -> None:
        """Each read was checked when it came."""

    def holds(self, store: Store) -> None:
        for of in self.sets:
            keys = {kv.key for kv in store.range(of.low, of.high).kvs}
            self.saw(of, keys, of.certain, "the last state", swept=of.swept)


class Adder(Actor):
    """Adds, reads, and now and then sweeps."""

    def __init__(self, core: Core, machines: Sequence[Machine], board: Board, group: int, name: str) -> None:
        super().__init__(core, machines, board, group, name)
        self._sets = board.fact(group, Sets)
        self._count = 0

    def _begin(self) -> None:
        draw = self._rng.random()
        current = self._sets.current()
        last = self._sets.sets[-2:][0]
        if last.sweeping and not last.swept and draw < 0.7:
            self._read(last)  # which sees all of it or nothing, however many slices the sweep takes
        elif draw < 0.6:
            self._add(current)
        elif draw < 0.9 or current is self._sets.sets[0]:
            self._read(self._rng.choice(self._sets.sets[-2:]))
        else:
            self._sweep(self._sets.sets[-2])

    def _add(self, to: _Set) -> None:
        self._count += 1
        element = to.low + b"%s.%d" % (self.name.encode(), self._count)
        to.open.add(element)

        def written(outcome: Answer | NebulaError) -> None:
            if self._done(outcome) is None:
                if not unknown(outcome):
                    require(element not in to.certain, f"{element!r} was read, and is said to have failed")
                    to.open.discard(element)
                return
            if not to.sweeping:  # else it may have come before the sweep or behind it
                to.open.discard(element)
                to.certain.add(element)
            self._ok()

        self._ask(put(element, b""), written)

    def _read(self, of: _Set) -> None:
        certain, swept = set(of.certain), of.swept

        def looked(store: Store, machine: Machine) -> Then:
            keys = {kv.key for kv in store.range(of.low, of.high).kvs}
            self._sets.saw(of, keys, certain, f"a read on {machine.name}", swept=swept)
            return self._ok

        self._look(looked)

    def _sweep(self, of: _Set) -> None:
        of.sweeping = True

        def written(outcome: Answer | NebulaError) -> None:
            if self._done(outcome) is not None:
                of.swept = True
                self._ok()

        self._ask(delete_range(of.low, of.high), written)

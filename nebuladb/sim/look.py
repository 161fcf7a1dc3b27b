"""A client's read, which waits for rows that are on the disk only, as those of ``node.looks`` do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from nebuladb.errors import NebulaError, StoreError
from nebuladb.kv.loans import Misses
from nebuladb.kv.store import Store
from nebuladb.sim.core import Core
from nebuladb.sim.faults import FETCH_MS
from nebuladb.sim.machine import Machine
from nebuladb.sim.violation import require

Then = Callable[[], None]
"""What the client does when it has its answer."""


class Look:
    """`read` is called with the group's store until it meets no more misses; what it does before the last is to be of
    no consequence. Between, the node goes on: what it writes, the loans must have. What `read` returns is the answer,
    handed to `answer`; None if nobody waits for one. `failed` is called if nothing comes of it, once."""

    def __init__(
        self,
        core: Core,
        rng: Random,
        machine: Machine,
        group: int,
        read: Callable[[Store], Then | None],
        answer: Callable[[Then], None],
        failed: Callable[[], None],
    ) -> None:
        """Raises as `Machine.store`."""
        self._core = core
        self._rng = rng
        self._machine = machine
        self._group = group
        self._read = read
        self._answer = answer
        self._failed = failed
        self._store = machine.store(group)
        self._held: list[bytes] = []
        """What it has borrowed, until it is done."""

    def begin(self) -> None:
        """Read, now or when the rows are here."""
        disk, missed, then = self._machine.disk, None, None
        disk.chill(self._rng)
        try:
            then = self._read(self._store)
        except Misses as misses:
            missed = list(misses.rows)
        except StoreError:
            if not self._machine.spoiled:
                raise
            self._failed()  # damage is never served
        finally:
            disk.warm()
        if missed is None:
            self._store.give_back(self._held)
            if then is not None:
                self._answer(then)
            return
        self._core.hit("cold read")
        self._store.borrow(missed)
        self._held += missed
        self._core.scheduler.after(self._rng.randrange(FETCH_MS), self._fetch, missed)

    def _fetch(self, rows: Sequence[bytes]) -> None:
        """In a thread: what it reads may be old by the time it comes."""
        found = self._machine.disk.read(rows)
        self._core.scheduler.after(self._rng.randrange(FETCH_MS), self._came, rows, found)

    def _came(self, rows: Sequence[bytes], found: Sequence[bytes | None] | StoreError) -> None:
        try:
            replaced = self._machine.store(self._group) is not self._store
        except NebulaError:
            replaced = True  # the node died, or stands still
        if replaced or isinstance(found, StoreError):
            require(replaced or self._machine.spoiled, f"group {self._group} on {self._machine.name}: {found}")
            self._give_up()
        else:
            self._store.supply(rows, found)
            self.begin()

    def _give_up(self) -> None:
        self._store.give_back(self._held)
        self._failed()

"""What may be refused, forgotten or ended, and what may not: the oracles object to each that was nobody's wish."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from types import SimpleNamespace
from typing import cast

from nebuladb.errors import Unavailable
from nebuladb.kv.loans import Misses
from nebuladb.kv.store import Store
from nebuladb.sim.core import Core
from nebuladb.sim.faults import FETCH_MS, Faults
from nebuladb.sim.look import Look
from nebuladb.sim.machine import Machine
from nebuladb.sim.trace import Trace
from tests.unit.kv.helpers import GROUP


def world() -> Core:
    return Core(1, Faults(), Trace())


# --- reads that take the disk ----------------------------------------------------------------------------------------


class ColdStore:
    """Its rows are on the disk only."""

    def __init__(self) -> None:
        self.borrowed: list[bytes] = []
        self.rows: dict[bytes, bytes | None] = {}

    def borrow(self, rows: Sequence[bytes]) -> None:
        self.borrowed += rows

    def fetch(self, rows: Sequence[bytes]) -> list[bytes | None]:
        return [row.upper() for row in rows]

    def supply(self, rows: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        self.rows.update(zip(rows, values, strict=True))

    def give_back(self, rows: Sequence[bytes]) -> None:
        for row in rows:
            self.borrowed.remove(row)

    def get(self, row: bytes) -> bytes | None:
        if row not in self.rows:
            raise Misses([row])
        return self.rows[row]


class ColdMachine:
    spoiled = False
    disk = SimpleNamespace(chill=lambda _: None, warm=lambda: None)

    def __init__(self) -> None:
        self.stores: Sequence[ColdStore] = [ColdStore()]

    def store(self, _: int) -> ColdStore:
        if not self.stores:
            raise Unavailable
        return self.stores[-1]


def test_a_clients_read_waits_for_what_is_on_the_disk_only() -> None:
    machine, core, found, failed = ColdMachine(), world(), list[bytes | None](), list[str]()

    def read(store: Store) -> None:
        cold = cast("ColdStore", store)
        found.extend([cold.get(b"a"), cold.get(b"b")])

    def look() -> None:
        given = core, Random(1), cast("Machine", machine), GROUP, read
        Look(*given, lambda: failed.append("")).begin()

    look()
    (store,) = machine.stores
    assert store.borrowed == [b"a"]
    core.scheduler.run(5 * FETCH_MS)
    assert (found, failed, store.borrowed) == ([b"A", b"B"], [], [])
    assert core.report.faults["cold read"] == 2

    for gone in ([ColdStore()], []):  # another generation took its place; the node died
        machine.stores = [store := ColdStore()]
        look()
        machine.stores = gone
        core.scheduler.run(core.scheduler.now + 5 * FETCH_MS)
        assert (failed.pop(), failed, store.borrowed, len(found)) == ("", [], [], 2)

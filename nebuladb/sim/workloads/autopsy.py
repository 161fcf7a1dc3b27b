"""A state with one row damaged or gone, as a disk may leave it: `nebulad verify` must not call it whole."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Final

from nebuladb.errors import Corruption
from nebuladb.ids import Generation, GroupId
from nebuladb.kv.rows import PREFIX_SIZE, Keys, decode_record
from nebuladb.kv.verify import verify_rows
from nebuladb.node.starting import read_state
from nebuladb.sim.violation import require
from nebuladb.storage.memory import MemoryEngine

CUT: Final = 0.3
TURNED: Final = 0.3
"""Shares of rows that are cut short, and of those in which a bit is turned; the others are gone."""


class Damaged:
    """A view of `engine` in which one row, that others name, is another or none."""

    def __init__(self, engine: MemoryEngine, keys: Keys, rng: Random) -> None:
        self._engine = engine
        rows = dict(engine.scan(keys.state, keys.answer + b"\xff" * 17))
        newest = {row: decode_record(data) for row, data in rows.items() if row.startswith(keys.current)}
        newest = {row: record for row, record in newest.items() if record.version}
        copies = {keys.record_key(record.main, record.sub) for record in newest.values()}
        answered = {keys.session + row[len(keys.answer) :][:8] for row in rows if row.startswith(keys.answer)}
        marks = [row for row in rows if row[PREFIX_SIZE : PREFIX_SIZE + 1] in (b"A", b"K", b"L")]
        self.row = rng.choice([*marks, *sorted(newest), *sorted(copies), *sorted(answered)])
        draw, data = rng.random(), rows[self.row]
        self.data: bytes | None = None
        """What is there; None: it is gone."""
        if data and draw < CUT and not self.row.startswith(keys.attachment):
            self.data = data[:-1]
        elif draw < CUT + TURNED and (self.row in newest or self.row in copies):
            turned = bytearray(data)
            turned[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            self.data = bytes(turned)

    def get(self, key: bytes) -> bytes | None:
        """As `Reader`."""
        return self.data if key == self.row else self._engine.get(key)

    def scan(self, low: bytes, high: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """As `Reader`."""
        for row, data in self._engine.scan(low, high, reverse=reverse):
            if row != self.row:
                yield row, data
            elif self.data is not None:
                yield row, self.data


def is_noticed(engine: MemoryEngine, group: GroupId, generation: Generation, rng: Random, where: str) -> None:
    """Raise `Violation` unless some damage to the group's rows, which agree with each other, is seen."""
    damaged = Damaged(engine, Keys(group, generation), rng)
    try:
        read_state(damaged, group, generation)
        found = list(verify_rows(damaged, group, generation))
    except Corruption as error:
        found = [error.message]
    require(bool(found), f"{where}: row {damaged.row!r} is {damaged.data!r} now, and nobody notices")

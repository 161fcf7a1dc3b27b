"""Registers that several clients read, write and compare-and-set; the checker judges."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final

from nebuladb.errors import NebulaError
from nebuladb.kv.answer import Answer, TxnResult
from nebuladb.kv.store import Store
from nebuladb.sim.actor import Actor, unknown
from nebuladb.sim.board import Board
from nebuladb.sim.core import Core
from nebuladb.sim.linearizability.register import CompareAndSet, Read, Register, Write
from nebuladb.sim.look import Then
from nebuladb.sim.machine import Machine
from nebuladb.sim.workloads.history import History
from nebuladb.sim.workloads.requests import put, put_if_value

USES: Final = 50
"""Operations on a key, about, before the clients go on to the next: short histories are quick to check."""


class Registers(History):
    """Keys that a group's contenders use, two at a time."""

    def __init__(self, group: int) -> None:
        super().__init__(group, Register())
        self._uses = 0

    def key(self, rng: Random) -> bytes:
        """The one to use now."""
        self._uses += 1
        return b"register/%d" % (2 * (self._uses // (2 * USES)) + rng.randrange(2))


class Contender(Actor):
    """One of them. Values are written once, so every read tells which write it saw."""

    def __init__(self, core: Core, machines: Sequence[Machine], board: Board, group: int, name: str) -> None:
        super().__init__(core, machines, board, group, name)
        self._registers = board.fact(group, Registers)
        self._count = 0
        self._seen: dict[bytes, bytes | None] = {}

    def _begin(self) -> None:
        key, call, draw = self._registers.key(self._rng), self._moment, self._rng.random()
        if draw < 0.4:
            self._read(key, call)
            return
        self._count += 1
        value = b"%s.%d" % (self.name.encode(), self._count)
        if draw < 0.65:
            given: Write | CompareAndSet = Write(value, key)
            command = put(key, value)
        else:
            old = self._seen.get(key)
            given = CompareAndSet(old, value, key)
            command = put_if_value(key, old, value)
        self._ask(command, lambda outcome: self._written(outcome, call, given))

    def _read(self, key: bytes, call: int) -> None:
        def looked(store: Store, _: Machine) -> Then:
            kv = self._observe(store, key)
            self._seen[key] = kv.value if kv else None
            self._registers.add(self.process, call, self._moment, Read(key), self._seen[key])
            return self._ok

        self._look(looked)

    def _written(self, outcome: Answer | NebulaError, call: int, given: Write | CompareAndSet) -> None:
        if unknown(outcome):
            self._registers.add_unknown(self.process, call, given)
        answer = self._done(outcome)
        if answer is None:
            return
        done = answer.result.succeeded if isinstance(answer.result, TxnResult) else True
        self._registers.add(self.process, call, self._moment, given, done)
        if done:
            self._seen[given.key] = given.value if isinstance(given, Write) else given.new  # type: ignore[index,assignment]  # ours are bytes
        self._ok()

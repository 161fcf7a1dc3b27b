"""A counter that hands out ids: each once, and later ones are greater."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from nebuladb.errors import NebulaError
from nebuladb.kv.answer import Answer, TxnResult
from nebuladb.kv.store import Store
from nebuladb.sim.actor import Actor
from nebuladb.sim.board import Board
from nebuladb.sim.core import Core
from nebuladb.sim.look import Then
from nebuladb.sim.machine import Machine
from nebuladb.sim.violation import require
from nebuladb.sim.workloads.requests import put_if

COUNTER: Final = b"ids/next"


class Ids:
    """All that were handed out."""

    def __init__(self, group: int) -> None:
        self._group = group
        self._owners: dict[int, str] = {}
        self.highest = 0

    def took(self, number: int, floor: int, who: str) -> None:
        """`who` was given `number`, having asked when `floor` had been handed out."""
        other = self._owners.setdefault(number, who)
        require(other == who, f"group {self._group}: id {number} was handed out to {other} and to {who}")
        require(number > floor, f"group {self._group}: id {number} was handed out to {who} after {floor}")
        self.highest = max(self.highest, number)

    def check(self) -> None:
        """Each was checked when it came."""

    def holds(self, store: Store) -> None:
        kv = store.get(COUNTER)
        at = int(kv.value) if kv else 0
        require(at >= self.highest, f"group {self._group}: the counter is at {at}, id {self.highest} was handed out")


class Numberer(Actor):
    """Takes ids."""

    def __init__(self, core: Core, machines: Sequence[Machine], board: Board, group: int, name: str) -> None:
        super().__init__(core, machines, board, group, name)
        self._ids = board.fact(group, Ids)
        self._count = 0

    def _begin(self) -> None:
        floor = self._ids.highest

        def looked(store: Store, _: Machine) -> Then:
            kv = self._observe(store, COUNTER)
            number = int(kv.value) + 1 if kv else 1
            require(number > floor, f"group {self.group}: the counter is at {number - 1} after {floor} was handed out")
            command = put_if({COUNTER: kv.mod_revision if kv else 0}, {COUNTER: b"%d" % number})
            return partial(self._ask, command, lambda outcome: self._written(outcome, number, floor))

        self._look(looked)

    def _written(self, outcome: Answer | NebulaError, number: int, floor: int) -> None:
        answer = self._done(outcome)
        if answer is not None:
            assert isinstance(answer.result, TxnResult)
            if answer.result.succeeded:
                self._count += 1
                self._ids.took(number, floor, f"{self.name}'s request {self._count}")
            self._ok()

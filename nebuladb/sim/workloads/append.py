"""Texts that several clients append to, by reading and comparing; the checker judges."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from random import Random
from typing import Final

from nebuladb.errors import NebulaError
from nebuladb.kv.answer import Answer, TxnResult
from nebuladb.kv.store import Store
from nebuladb.sim.actor import Actor, unknown
from nebuladb.sim.board import Board
from nebuladb.sim.core import Core
from nebuladb.sim.linearizability.key_value import Append, Get, KeyValue
from nebuladb.sim.look import Then
from nebuladb.sim.machine import Machine
from nebuladb.sim.workloads.history import History
from nebuladb.sim.workloads.requests import put_if

USES: Final = 40
"""Operations on a text, about."""


class Texts(History):
    """What a group's appenders use, two at a time."""

    def __init__(self, group: int) -> None:
        super().__init__(group, KeyValue())
        self._uses = 0

    def key(self, rng: Random) -> bytes:
        """The one to use now."""
        self._uses += 1
        return b"text/%d" % (2 * (self._uses // (2 * USES)) + rng.randrange(2))


class Appender(Actor):
    """One of them. An append that met another one in between certainly was not done."""

    def __init__(self, core: Core, machines: Sequence[Machine], board: Board, group: int, name: str) -> None:
        super().__init__(core, machines, board, group, name)
        self._texts = board.fact(group, Texts)
        self._count = 0

    def _begin(self) -> None:
        key, call = self._texts.key(self._rng), self._moment
        append = self._rng.random() < 0.6

        def looked(store: Store, _: Machine) -> Then:
            kv = self._observe(store, key)
            text = kv.value.decode() if kv else ""
            self._texts.add(self.process, call, self._moment, Get(key), text)
            return partial(self._append, key, text, kv.mod_revision if kv else 0) if append else self._ok

        self._look(looked)

    def _append(self, key: bytes, text: str, revision: int) -> None:
        self._count += 1
        call, given = self._moment, Append(key, f"{self.name}.{self._count} ")

        def written(outcome: Answer | NebulaError) -> None:
            if unknown(outcome):
                self._texts.add_unknown(self.process, call, given)
            answer = self._done(outcome)
            if answer is not None:
                assert isinstance(answer.result, TxnResult)
                if answer.result.succeeded:
                    self._texts.add(self.process, call, self._moment, given, "")
                self._ok()

        self._ask(put_if({key: revision}, {key: (text + given.value).encode()}), written)

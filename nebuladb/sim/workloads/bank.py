"""Accounts of one shard and transfers between them: money neither comes nor goes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from nebuladb.errors import NebulaError
from nebuladb.kv.answer import Answer, RangeResult, TxnResult
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.store import Store
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.sim.actor import Actor
from nebuladb.sim.board import Board
from nebuladb.sim.core import Core
from nebuladb.sim.look import Then
from nebuladb.sim.machine import Machine
from nebuladb.sim.violation import require
from nebuladb.sim.workloads.requests import put_if

ACCOUNTS: Final = 5
OPENING: Final = 100
LOW: Final = b"bank/"
HIGH: Final = b"bank0"
BACK: Final = 30
"""Revisions that a look at the past goes back at most."""


class Bank:
    """The accounts are all there with the whole sum, or none is."""

    def __init__(self, group: int) -> None:
        self._group = group
        self.opened = False
        """Whether anybody knows that it is open."""

    def saw(self, found: RangeResult, where: str, *, opened: bool) -> None:
        """Somebody reads all accounts; `opened`: it had been seen open when that read began."""
        total = sum(int(kv.value) for kv in found.kvs)
        expected = (ACCOUNTS, ACCOUNTS * OPENING)
        require(
            (len(found.kvs), total) == expected or (not found.kvs and not opened),
            f"group {self._group}, {where}: {len(found.kvs)} accounts with {total}, not {ACCOUNTS} with {expected[1]}",
        )

    def check(self) -> None:
        """Every read was checked when it came."""

    def holds(self, store: Store) -> None:
        self.saw(store.range(LOW, HIGH), "the last state", opened=self.opened)


class Teller(Actor):
    """Transfers, and reads of all accounts in four ways."""

    def __init__(self, core: Core, machines: Sequence[Machine], board: Board, group: int, name: str) -> None:
        super().__init__(core, machines, board, group, name)
        self._bank = board.fact(group, Bank)

    def _begin(self) -> None:
        draw = self._rng.random()
        if draw < 0.1:
            self._read_unconfirmed()
        elif draw < 0.25:
            self._read_by_transaction()
        else:
            opened, transfer = self._bank.opened, draw < 0.7
            self._look(lambda store, _: self._looked(store, opened, transfer))

    def _looked(self, store: Store, opened: bool, transfer: bool) -> Then:
        found = store.range(LOW, HIGH)
        self._bank.saw(found, "a linearizable read", opened=opened)
        if not found.kvs:
            puts = {LOW + b"%d" % number: b"%d" % OPENING for number in range(ACCOUNTS)}
            return partial(self._ask, put_if(dict.fromkeys(puts, 0), puts), self._written)
        self._bank.opened = True
        if not transfer:
            past = max(store.floor, store.revision - self._rng.randrange(BACK), 1)
            self._bank.saw(store.range(LOW, HIGH, revision=past), f"a read at revision {past}", opened=False)
            return self._ok
        source, target = self._rng.sample(found.kvs, 2)
        amount = self._rng.randrange(int(source.value) + 1)
        revisions = {source.key: source.mod_revision, target.key: target.mod_revision}
        puts = {source.key: b"%d" % (int(source.value) - amount), target.key: b"%d" % (int(target.value) + amount)}
        return partial(self._ask, put_if(revisions, puts), self._written)

    def _written(self, outcome: Answer | NebulaError) -> None:
        if self._done(outcome) is not None:
            self._ok()

    def _read_unconfirmed(self) -> None:
        """Of any age, but of one revision."""

        def looked(store: Store, machine: Machine) -> Then:
            self._bank.saw(store.range(LOW, HIGH), f"a serializable read on {machine.name}", opened=False)
            return self._ok

        self._look(looked, linearizable=False)

    def _read_by_transaction(self) -> None:
        opened = self._bank.opened
        request = kv_pb2.TxnRequest()
        request.success.add(range=kv_pb2.RangeRequest(key=LOW, range_end=HIGH))

        def read(outcome: Answer | NebulaError) -> None:
            answer = self._done(outcome)
            if answer is not None:
                assert isinstance(answer.result, TxnResult)
                assert isinstance(answer.result.results[0], RangeResult)
                self._bank.saw(answer.result.results[0], "a transaction", opened=opened)
                self._ok()

        self._ask(Command(Kind.TXN, request.SerializeToString()), read)

"""Clients: each writes a key of its own, one operation at a time, and reads anybody's."""

from __future__ import annotations

from collections.abc import Sequence

from nebuladb.errors import NebulaError, Outcome
from nebuladb.kv.answer import Answer, DeleteResult, TxnResult
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.store import Store
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.sim.actor import Actor
from nebuladb.sim.board import Board
from nebuladb.sim.core import Core
from nebuladb.sim.life import Written
from nebuladb.sim.look import Then
from nebuladb.sim.machine import Machine
from nebuladb.sim.register import Register
from nebuladb.sim.violation import require

NEVER = 1 << 50
"""A revision that no key will have."""


class Client(Actor):
    """Puts, compare-and-sets, deletes; linearizable and serializable gets."""

    def __init__(self, core: Core, machines: Sequence[Machine], board: Board, group: int, name: str) -> None:
        super().__init__(core, machines, board, group, name)
        self._count = 0
        self._register: Register = board.new_register(group)

    def _begin(self) -> None:
        draw = self._rng.random()
        if draw < 0.3:
            self._get()
        elif draw < 0.4:
            self._get_serializable()
        else:
            self._write(draw)

    def _write(self, draw: float) -> None:
        """One write of the register."""
        if draw < 0.75:
            self._send(Kind.PUT, kv_pb2.PutRequest(key=self._register.key, value=self._value()).SerializeToString())
        elif draw < 0.9:
            self._compare_and_set(right=draw < 0.87)
        else:
            self._send(Kind.DELETE, kv_pb2.DeleteRequest(key=self._register.key).SerializeToString())

    def _value(self) -> bytes:
        """A value never written before; the register expects it from now on."""
        self._count += 1
        value = b"%s/%d" % (self.name.encode(), self._count)
        self._register.begin(value)
        return value

    # --- writes ------------------------------------------------------------------------------------------------------

    def _send(self, kind: Kind, body: bytes) -> None:
        register, floor = self._register, self._board.told(self.group)
        existed = register.exists
        if kind is Kind.DELETE:
            register.begin(None)
        self._submit(Command(kind, body), lambda outcome: self._written(outcome, floor, existed))

    def _submit(self, command: Command, written: Written) -> None:
        self._ask(command, written)

    def _written(self, outcome: Answer | NebulaError, floor: int, existed: bool) -> None:
        """The outcome of a put or delete."""
        register = self._register
        if self._undone(outcome):
            return
        assert isinstance(outcome, Answer)
        result = outcome.result
        if isinstance(result, DeleteResult):
            require(result.deleted == existed, f"{register}: deleted {result.deleted} keys, it existed: {existed}")
        if existed or not isinstance(result, DeleteResult):
            self._board.wrote(self.group, outcome.revision, floor, f"{register}, write {self._count} of {self.name}")
        else:
            self._board.tell(self.group, outcome.revision, floor, str(register))
        register.acknowledged(outcome.revision)
        self._ok()

    def _undone(self, outcome: Answer | NebulaError) -> bool:
        """Settle a write that was refused, failed or is unknown; False if it was done."""
        register = self._register
        if isinstance(outcome, Answer):
            if not outcome.reason:
                return False
            self._rightly_refused(outcome)
            register.failed()
            self._failed()
        elif outcome.outcome is Outcome.FAILED:
            register.failed()
            self._failed()
        else:
            self._register = self._board.new_register(self.group)
            self._unknown()
        return True

    def _compare_and_set(self, *, right: bool) -> None:
        """Put if the mod revision is the one we know (or, on purpose, not)."""
        register, floor = self._register, self._board.told(self.group)
        # Wrong for ever: the request may come late, and no revision that is past comes back.
        revision = register.revision if right else register.revision - 1 if register.exists else NEVER
        request = kv_pb2.TxnRequest()
        request.compare.add(target=kv_pb2.Compare.MOD, key=register.key, number=revision)
        value = self._value() if right else b"never"
        request.success.add(put=kv_pb2.TxnPut(key=register.key, value=value))
        written = self._compared if right else self._compared_wrongly
        self._submit(Command(Kind.TXN, request.SerializeToString()), lambda outcome: written(outcome, floor))

    def _compared(self, outcome: Answer | NebulaError, floor: int) -> None:
        if self._undone(outcome):
            return
        assert isinstance(outcome, Answer)
        assert isinstance(outcome.result, TxnResult)
        require(outcome.result.succeeded, f"{self._register}: a compare with its true revision failed")
        self._board.wrote(self.group, outcome.revision, floor, f"{self._register}, write {self._count}")
        self._register.acknowledged(outcome.revision)
        self._ok()

    def _compared_wrongly(self, outcome: Answer | NebulaError, floor: int) -> None:
        answer = self._done(outcome)
        if answer is not None:
            assert isinstance(answer.result, TxnResult)
            require(not answer.result.succeeded, f"{self._register}: a compare with a wrong revision succeeded")
            self._board.tell(self.group, answer.revision, floor, str(self._register))
            self._ok()

    # --- reads -------------------------------------------------------------------------------------------------------

    def _get(self) -> None:
        register = self._board.any_register(self.group, self._rng)
        floor, told = register.settled, self._board.told(self.group)

        def looked(store: Store, machine: Machine) -> Then:
            register.saw(floor, self._observe(store, register.key))
            self._board.tell(self.group, store.revision, told, f"a read of {register} on {machine.name}")
            return self._ok

        self._look(looked)

    def _get_serializable(self) -> None:
        register = self._board.any_register(self.group, self._rng)

        def looked(store: Store, _: Machine) -> Then:
            register.saw(0, self._observe(store, register.key), linearizable=False)
            return self._ok

        self._look(looked, linearizable=False)

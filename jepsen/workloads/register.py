"""Registers that several clients read, write and compare-and-set; the linearizability checker judges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from jepsen.history import Json, Op, Outcome
from jepsen.verdict import Findings
from jepsen.workloads.base import Worker, Workload, operation, searched
from nebuladb.sim.linearizability.operation import Operation
from nebuladb.sim.linearizability.register import CompareAndSet, Read, Register, Write

KEYS: Final = 3
"""In use at the same time."""
USES: Final = 80
"""Operations on a key, about: short histories are quick to check, whatever became of the unknown ones."""


class Registers(Workload):
    """Values are written once, so every read tells which write it saw."""

    def __init__(self) -> None:
        self._uses = 0
        self._values = 0
        self._seen: dict[str, str | None] = {}

    async def step(self, worker: Worker) -> None:
        self._uses += 1
        key = f"register/{KEYS * (self._uses // (KEYS * USES)) + worker.rng.randrange(KEYS)}"
        draw = worker.rng.random()
        if draw < 0.4:
            await self._read(worker, key)
            return
        self._values += 1
        name, value = key.encode(), str(self._values)
        if draw < 0.65:

            async def put() -> None:
                await worker.client.put(name, value.encode())

            op = await worker.do("write", key, value, put)
        else:
            old = self._seen.get(key)

            async def compare_and_set() -> bool:
                expected = None if old is None else old.encode()
                return (await worker.client.compare_and_set(name, value.encode(), expected=expected)).succeeded

            op = await worker.do("cas", key, [old, value], compare_and_set)
        if op.outcome is Outcome.OK and op.result is not False:
            self._seen[key] = value

    async def _read(self, worker: Worker, key: str) -> None:
        async def get() -> Json:
            kv = await worker.client.get(key.encode())
            return None if kv is None else kv.value.decode()

        op = await worker.look("read", key, None, get)
        if op.outcome is Outcome.OK:
            self._seen[key] = op.result

    async def finish(self, worker: Worker) -> None:
        for key in sorted({op.key for op in worker.clients.history.ops}):
            await self._read(worker, key)

    @staticmethod
    def check(ops: Sequence[Op], *, clocks_run_true: bool) -> Findings:
        return searched((_operation(op) for op in ops if op.outcome is not Outcome.FAILED), Register())


def _operation(op: Op) -> Operation[Json, Json]:
    match op.f:
        case "read":
            return operation(op, Read(op.key), op.result)
        case "write":
            return operation(op, Write(op.value, op.key), True)  # noqa: FBT003 - its output is not looked at
        case "cas":
            return operation(op, CompareAndSet(op.value[0], op.value[1], op.key), op.result)
    raise ValueError(f"no operation of a register: {op}")

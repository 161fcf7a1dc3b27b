"""Texts that several clients append to, by reading and comparing; the linearizability checker judges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from jepsen.history import Json, Op, Outcome
from jepsen.verdict import Findings
from jepsen.workloads.base import Worker, Workload, operation, searched
from nebuladb.sim.linearizability.key_value import Append, Get, KeyValue
from nebuladb.sim.linearizability.operation import Operation

KEYS: Final = 2
USES: Final = 60
"""Operations on a text, about."""


class Appends(Workload):
    """An append that met another one in between certainly was not done, and is left out of what is judged."""

    def __init__(self) -> None:
        self._uses = 0
        self._count = 0

    async def step(self, worker: Worker) -> None:
        self._uses += 1
        key = f"text/{KEYS * (self._uses // (KEYS * USES)) + worker.rng.randrange(KEYS)}"
        found = await self._get(worker, key)
        if found.outcome is not Outcome.OK or worker.rng.random() < 0.4:
            return
        text, revision = found.result
        self._count += 1
        piece = f"{self._count} "

        async def append() -> bool:
            value = (text + piece).encode()
            return (await worker.client.compare_and_set(key.encode(), value, mod_revision=revision)).succeeded

        await worker.do("append", key, piece, append)

    @staticmethod
    async def _get(worker: Worker, key: str) -> Op:
        async def get() -> Json:
            kv = await worker.client.get(key.encode())
            return ["", 0] if kv is None else [kv.value.decode(), kv.mod_revision]

        return await worker.look("get", key, None, get)

    async def finish(self, worker: Worker) -> None:
        for key in sorted({op.key for op in worker.clients.history.ops}):
            await self._get(worker, key)

    @staticmethod
    def check(ops: Sequence[Op], *, clocks_run_true: bool) -> Findings:
        happened = (op for op in ops if op.outcome is not Outcome.FAILED and op.result is not False)
        return searched(map(_operation, happened), KeyValue())


def _operation(op: Op) -> Operation[Json, Json]:
    if op.f == "append":
        return operation(op, Append(op.key, op.value), "")
    return operation(op, Get(op.key), op.result[0])

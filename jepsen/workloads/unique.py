"""A counter that hands out ids: each once, and later ones are greater."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from jepsen.history import Json, Op, Outcome, moments
from jepsen.verdict import Findings
from jepsen.workloads.base import Worker, Workload, judged
from nebuladb.sim.violation import Violation
from nebuladb.sim.workloads.unique import Ids

COUNTER: Final = b"ids/next"


class Numbers(Workload):
    """Read, compare and set: who succeeds has the id."""

    async def step(self, worker: Worker) -> None:
        async def take() -> Json:
            kv = await worker.client.get(COUNTER)
            number, revision = (int(kv.value) + 1, kv.mod_revision) if kv else (1, 0)
            taken = await worker.client.compare_and_set(COUNTER, b"%d" % number, mod_revision=revision)
            return number if taken.succeeded else None

        await worker.do("take", COUNTER.decode(), None, take)

    async def finish(self, worker: Worker) -> None:
        async def get() -> Json:
            kv = await worker.client.get(COUNTER)
            return int(kv.value) if kv else 0

        await worker.look("read", COUNTER.decode(), None, get)

    @staticmethod
    def check(ops: Sequence[Op], *, clocks_run_true: bool) -> Findings:
        return judged(ops, _violations(ops))


def _violations(ops: Sequence[Op]) -> Iterator[str]:
    ids = Ids(0)
    floors: dict[tuple[int, int], int] = {}
    for moment in moments(ops):
        op, asked = moment.op, (moment.op.process, moment.op.call)
        if not moment.returns:
            floors[asked] = ids.highest
        elif op.outcome is Outcome.OK and op.result is not None:
            try:
                if op.f == "take":
                    ids.took(op.result, floors[asked], f"process {op.process} at {op.returned} ns")
                elif op.result < floors[asked]:
                    yield f"the counter is read as {op.result} after {floors[asked]} was handed out"
            except Violation as violation:
                yield str(violation)

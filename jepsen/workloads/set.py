"""Elements that are added and never lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from jepsen.history import Json, Op, Outcome, moments
from jepsen.verdict import Findings
from jepsen.workloads.base import Worker, Workload, judged
from nebuladb.client import prefix_end
from nebuladb.sim.violation import Violation
from nebuladb.sim.workloads.set import Sets

FULL: Final = 150
"""Additions after which the next set is begun: reading large ones would be most of the load."""


class Additions(Workload):
    """Set n has the keys set/n/…"""

    def __init__(self) -> None:
        self._count = 0

    async def step(self, worker: Worker) -> None:
        current = self._count // FULL
        if worker.rng.random() < 0.3:
            await self._read(worker, max(0, current - worker.rng.randrange(2)))
            return
        self._count += 1
        name = f"set/{current}/"
        element = f"{name}{self._count}"

        async def add() -> None:
            await worker.client.put(element.encode(), b"")

        await worker.do("add", name, element, add)

    @staticmethod
    async def _read(worker: Worker, number: int) -> None:
        low = f"set/{number}/".encode()

        async def scan() -> Json:
            return [kv.key.decode() async for kv in worker.client.scan(low, prefix_end(low), keys_only=True)]

        await worker.look("read", low.decode(), None, scan)

    async def finish(self, worker: Worker) -> None:
        for number in range(self._count // FULL + 1):
            await self._read(worker, number)

    @staticmethod
    def check(ops: Sequence[Op], *, clocks_run_true: bool) -> Findings:
        return judged(ops, _violations(ops))


def _violations(ops: Sequence[Op]) -> Iterator[str]:
    facts: dict[str, Sets] = {}
    certain: dict[tuple[int, int], set[bytes]] = {}
    for moment in moments(ops):
        op, asked = moment.op, (moment.op.process, moment.op.call)
        sets = facts.setdefault(op.key, Sets(0))
        of = sets.sets[0]
        if op.f == "add" and not moment.returns:
            of.open.add(op.value.encode())
        elif op.f == "add":
            element = op.value.encode()
            if op.outcome is Outcome.OK:
                of.open.discard(element)
                of.certain.add(element)
            elif op.outcome is Outcome.FAILED:
                if element in of.certain:
                    yield f"{element!r} was read, and is said to have failed"
                of.open.discard(element)
        elif not moment.returns:
            certain[asked] = set(of.certain)
        elif op.outcome is Outcome.OK:
            keys = {key.encode() for key in op.result}
            if len(keys) < len(op.result):
                yield f"{op.key} read by process {op.process} has {max(op.result, key=op.result.count)} twice"
            try:
                sets.saw(of, keys, certain[asked], f"{op.key} read by process {op.process}", swept=False)
            except Violation as violation:
                yield str(violation)

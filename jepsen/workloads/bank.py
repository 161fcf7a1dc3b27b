"""Accounts of one shard and transfers between them: money neither comes nor goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jepsen.history import Json, Op, Outcome, moments
from jepsen.verdict import Findings
from jepsen.workloads.base import Worker, Workload, judged
from nebuladb.client import KeyValue, RangeResult
from nebuladb.kv import answer
from nebuladb.sim.violation import Violation
from nebuladb.sim.workloads.bank import ACCOUNTS, HIGH, LOW, OPENING, Bank


class Transfers(Workload):
    """Transfers compare revisions; reads are of four kinds, and each must see all the money."""

    async def begin(self, worker: Worker) -> None:
        async def open_accounts() -> bool:
            txn = worker.client.txn()
            for number in range(ACCOUNTS):
                key = LOW + b"%d" % number
                txn = txn.when("version", key, "=", 0).put(key, b"%d" % OPENING)
            return (await txn.commit()).succeeded

        await worker.do("open", "bank", OPENING, open_accounts)

    async def step(self, worker: Worker) -> None:
        draw = worker.rng.random()
        if draw < 0.15:
            await self._read(worker, "read by transaction")
        elif draw < 0.25:
            await self._read(worker, "read by any node")
        elif draw < 0.4:
            await self._read(worker, "read")
        else:
            await self._transfer(worker)

    @staticmethod
    async def _scan(worker: Worker, *, serializable: bool = False) -> list[KeyValue]:
        return [kv async for kv in worker.client.scan(LOW, HIGH, serializable=serializable)]

    async def _read(self, worker: Worker, how: str) -> None:
        async def read() -> Json:
            if how == "read by transaction":
                found = (await worker.client.txn().get(LOW, HIGH).commit()).results[0]
                assert isinstance(found, RangeResult)
                return _balances(found.kvs)
            return _balances(await self._scan(worker, serializable=how == "read by any node"))

        await worker.look(how, "bank", None, read)

    async def _transfer(self, worker: Worker) -> None:
        found: list[KeyValue] = []

        async def read() -> Json:
            found[:] = await self._scan(worker)
            return _balances(found)

        op = await worker.look("read", "bank", None, read)
        if op.outcome is not Outcome.OK or len(found) < 2:
            return
        source, target = worker.rng.sample(found, 2)
        amount = worker.rng.randrange(int(source.value) + 1)

        async def transfer() -> bool:
            txn = worker.client.txn()
            for kv, change in ((source, -amount), (target, amount)):
                txn = txn.when("mod", kv.key, "=", kv.mod_revision).put(kv.key, b"%d" % (int(kv.value) + change))
            return (await txn.commit()).succeeded

        await worker.do("transfer", "bank", [source.key.decode(), target.key.decode(), amount], transfer)

    async def finish(self, worker: Worker) -> None:
        await self._read(worker, "read")

    @staticmethod
    def check(ops: Sequence[Op], *, clocks_run_true: bool) -> Findings:
        return judged(ops, _violations(ops))


def _balances(kvs: Sequence[KeyValue]) -> dict[str, int]:
    return {kv.key.decode(): int(kv.value) for kv in kvs}


def _violations(ops: Sequence[Op]) -> Iterator[str]:
    bank = Bank(0)
    opened: dict[tuple[int, int], bool] = {}
    for moment in moments(ops):
        op, asked = moment.op, (moment.op.process, moment.op.call)
        if not moment.returns:
            # A read of any age may be of a time before the opening.
            opened[asked] = bank.opened and op.f != "read by any node"
        elif op.outcome is Outcome.OK and op.f == "open":
            bank.opened = True
        elif op.outcome is Outcome.OK and op.f.startswith("read"):
            kvs = tuple(answer.KeyValue(k.encode(), 1, 1, 1, 0, b"%d" % v) for k, v in op.result.items())
            try:
                bank.saw(answer.RangeResult(kvs, len(kvs), False), f"{op.f} at {op.call} ns", opened=opened[asked])  # noqa: FBT003
            except Violation as violation:
                yield str(violation)

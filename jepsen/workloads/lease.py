"""Locks under leases: never two holders who are sure of it, and fencing tokens never go back (S27)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, cast

from jepsen.history import Json, Op, Outcome, moments
from jepsen.verdict import Findings
from jepsen.workloads.base import Worker, Workload, judged
from nebuladb.client import AsyncClient
from nebuladb.errors import LeaseNotFound
from nebuladb.sim.violation import Violation
from nebuladb.sim.workloads.lease import Leaseholder, Lock

LOCKS: Final = 2
TTL: Final = 2
"""Seconds, the shortest that there is."""
ROUNDS: Final = 8
"""At most so many renewals and looks while the lock is held."""
ROUND_SECONDS: Final = 0.3
END_SECONDS: Final = 3 * TTL + 2
"""After the last operation all leases have ended: a new leader gives each its whole time once more."""
TIMEOUT: Final = 1.0
ROUNDING_NS: Final = 10_000_000
"""Of clock readings by the millisecond."""


class Locks(Workload):
    """Grant, acquire, renew and look for a while, then give back, or walk away and let it expire."""

    timeout = TIMEOUT

    async def step(self, worker: Worker) -> None:
        key = f"lock/{worker.rng.randrange(LOCKS)}"

        async def grant() -> Json:
            return (await worker.client.grant_lease(TTL, key=key.encode())).id

        granted = await worker.do("grant", key, None, grant)
        if granted.outcome is not Outcome.OK:
            return
        lease = granted.result

        async def acquire() -> Json:
            txn = worker.client.txn().when("version", key.encode(), "=", 0).put(key.encode(), b"", lease=lease)
            result = await txn.commit()
            return result.revision if result.succeeded else None

        acquired = await worker.do("acquire", key, lease, acquire)
        if acquired.outcome is Outcome.OK and acquired.result is not None:
            await self._hold(worker, key, lease)
            if worker.rng.random() < 0.3:
                return

        async def revoke() -> None:
            await worker.client.revoke_lease(lease)

        await worker.do("revoke", key, lease, revoke)

    @staticmethod
    async def _hold(worker: Worker, key: str, lease: int) -> None:
        """Until it is lost, or long enough."""
        for _ in range(worker.rng.randrange(ROUNDS)):
            await asyncio.sleep(worker.rng.random() * ROUND_SECONDS)

            async def renew() -> Json:
                return await _renewed(worker.client, lease)

            renewed = await worker.look("renew", key, lease, renew)

            async def look() -> Json:
                kv = await worker.client.get(key.encode())
                return kv.lease if kv else 0

            seen = await worker.look("look", key, lease, look)
            lost = renewed.result == 0 or (seen.outcome is Outcome.OK and seen.result != lease)
            if lost or worker.clients.stop.is_set():
                return

    async def finish(self, worker: Worker) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + END_SECONDS
        for number in range(LOCKS):
            key = f"lock/{number}"

            async def look(name: bytes = key.encode()) -> Json:
                kv = await worker.client.get(name)
                return kv.lease if kv else 0

            while (await worker.look("look", key, 0, look)).result and loop.time() < end:  # noqa: ASYNC110
                await asyncio.sleep(ROUND_SECONDS)
            await worker.look("look after the end", key, None, look)

    @staticmethod
    def check(ops: Sequence[Op], *, clocks_run_true: bool) -> Findings:
        return judged(ops, _violations(ops, clocks_run_true=clocks_run_true))


async def _renewed(client: AsyncClient, lease: int) -> int:
    """Seconds that the lease has from the sending on; 0: it is gone."""
    keeper = client.keep_alive(lease)
    try:
        await keeper.renew()
    except LeaseNotFound:
        return 0
    return keeper.ttl


@dataclass(eq=False, slots=True)
class _Holder:
    """A lease, and up to when (ms) it certainly lives."""

    name: str
    until: float


class _Judge:
    """Goes through time. Without true clocks nobody knows how long a lease lives; tokens ascend nevertheless."""

    def __init__(self, *, clocks_run_true: bool) -> None:
        self._true = clocks_run_true
        self._locks: dict[str, Lock] = {}
        self._holders: dict[int, _Holder] = {}
        self._floors: dict[tuple[int, int], int] = {}

    def see(self, op: Op, *, returns: bool) -> None:
        """Raises `Violation`."""
        lock = self._locks.setdefault(op.key, Lock(0))
        if not returns:
            self._floors[op.process, op.call] = lock.token
            if op.f == "revoke" and op.value in self._holders:
                self._release(lock, self._holders[op.value])
        elif op.f == "look after the end":
            if op.outcome is Outcome.OK and op.result:
                raise Violation(f"{op.key}: lease {op.result:x} holds it long after its end")
        elif op.f == "revoke" or (op.outcome is Outcome.UNKNOWN and op.f == "acquire"):
            self._holders.pop(op.value, None)
        elif op.outcome is Outcome.OK:
            self._answered(lock, op)

    def _answered(self, lock: Lock, op: Op) -> None:
        if op.f == "grant":
            self._holders[op.result] = _Holder(f"lease {op.result:x}", self._end(op, TTL))
            return
        holder = self._holders.get(op.value)
        if holder is None:
            return
        if op.f == "acquire" and op.result is not None:
            floor = self._floors[op.process, op.call]
            # The fact asks a holder for nothing but these two.
            lock.acquired(cast(Leaseholder, holder), op.result, floor, op.returned // 1_000_000)
        elif op.f == "renew" and op.result:
            holder.until = self._end(op, op.result)
        elif op.f in ("renew", "look") and op.result != op.value:
            if op.returned / 1e6 < holder.until:
                raise Violation(
                    f"{op.key}: {holder.name} is gone at {op.returned} ns; it lives until {holder.until} ms"
                )
            self._release(lock, holder)

    @staticmethod
    def _release(lock: Lock, holder: _Holder) -> None:
        holder.until = 0
        lock.released(cast(Leaseholder, holder))

    def _end(self, op: Op, ttl: int) -> float:
        return (op.call - ROUNDING_NS) / 1e6 + ttl * 1000 if self._true else 0


def _violations(ops: Sequence[Op], *, clocks_run_true: bool) -> Iterator[str]:
    judge = _Judge(clocks_run_true=clocks_run_true)
    for moment in moments(ops):
        try:
            judge.see(moment.op, returns=moment.returns)
        except Violation as violation:
            yield str(violation)

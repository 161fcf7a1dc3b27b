"""Requests that are sent again and again, to several nodes at once: each runs once, with one answer (S20)."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from jepsen.history import Json, Op, Outcome
from jepsen.verdict import Findings
from jepsen.workloads.base import Clients, Worker, Workload, judged
from nebuladb.client import methods, prefix_end
from nebuladb.client.retry import Kind
from nebuladb.client.transport import Transport
from nebuladb.errors import NebulaError, SessionExpired
from nebuladb.pb.nebula.v1 import common_pb2, kv_pb2, session_pb2

PREFIX: Final = b"session/"
TIMEOUT: Final = 3.0
"""Seconds for which a request is repeated."""
TWICE: Final = 0.5
"""Share of the requests that are sent by two at the same time."""
AGAIN: Final = 0.3
"""Share of those that were answered, and are sent once more."""


class _Session:
    """One client's session, and its ways to the nodes, each beginning at another one."""

    def __init__(self, clients: Clients, node: int) -> None:
        rings = [clients.endpoints[at:] + clients.endpoints[:at] for at in (node, (node + 1) % len(clients.endpoints))]
        self.ways = [Transport(ring, TIMEOUT) for ring in rings]
        self.id = 0
        self.sequence = 0

    async def open(self) -> None:
        answer = await self.ways[0].call(methods.SESSION_OPEN, session_pb2.SessionOpenRequest(key=PREFIX))
        self.id, self.sequence = answer.id, 0

    async def put(self, way: int, key: bytes, value: bytes) -> int:
        """The put's revision, whoever ran it."""
        reference = common_pb2.SessionRef(id=self.id, sequence=self.sequence, lowest_unanswered=self.sequence)
        request = kv_pb2.PutRequest(key=key, value=value, session=reference)
        return (await self.ways[way].call(methods.PUT, request, kind=Kind.ONCE)).header.revision


class Repeats(Workload):
    """Each key is put once; a second execution would give it version 2."""

    def __init__(self) -> None:
        self._keys = 0
        self._sessions: dict[Worker, _Session] = {}

    async def step(self, worker: Worker) -> None:
        session = self._sessions.get(worker)
        if session is None:
            session = self._sessions[worker] = _Session(worker.clients, worker.node)
        if not session.id:
            await worker.look("open", PREFIX.decode(), None, session.open)
            return
        self._keys += 1
        session.sequence += 1
        key = PREFIX + b"%07d" % self._keys
        ways = (0, 1) if worker.rng.random() < TWICE else (0,)
        again = worker.rng.random() < AGAIN

        async def put() -> Json:
            answers = await asyncio.gather(*(session.put(way, key, key) for way in ways), return_exceptions=True)
            if again:
                answers += await asyncio.gather(session.put(1, key, key), return_exceptions=True)
            revisions = [answer for answer in answers if isinstance(answer, int)]
            errors = [answer for answer in answers if isinstance(answer, BaseException)]
            if any(isinstance(error, SessionExpired) for error in errors):
                session.id = 0
            if revisions:
                return revisions
            raise _gravest(errors)

        await worker.do("put", key.decode(), len(ways) + again, put)

    async def _work(self, worker: Worker) -> None:
        try:
            await super()._work(worker)
        finally:
            for way in self._sessions[worker].ways if worker in self._sessions else ():
                await way.close()

    async def finish(self, worker: Worker) -> None:
        async def scan() -> Json:
            found = worker.client.scan(PREFIX, prefix_end(PREFIX))
            return {kv.key.decode(): [kv.version, kv.mod_revision] async for kv in found}

        await worker.look("read", PREFIX.decode(), None, scan)

    @staticmethod
    def check(ops: Sequence[Op], *, clocks_run_true: bool) -> Findings:
        shown = [op for op in ops if op.f != "read"]
        return judged(shown, _violations(ops))


def _gravest(errors: Sequence[BaseException]) -> BaseException:
    """An unknown outcome, if there is one: only if all certainly changed nothing, nothing was changed."""
    for error in errors:
        if not isinstance(error, NebulaError):
            return error
    return max(errors, key=lambda error: isinstance(error, NebulaError) and error.outcome.name == "UNKNOWN")


def _violations(ops: Sequence[Op]) -> Iterator[str]:
    reads = [op for op in ops if op.f == "read" and op.outcome is Outcome.OK]
    if not reads:
        yield "nobody could read what the sessions left"
        return
    left = reads[-1].result
    owners: dict[int, list[str]] = defaultdict(list)
    for op in ops:
        if op.f != "put":
            continue
        version, revision = left.get(op.key, [0, 0])
        if version > 1:
            yield f"{op.key} was put {version} times by one request"
        if op.outcome is Outcome.FAILED and version:
            yield f"{op.key} is there, and its put is said to have failed: {op.error}"
        if op.outcome is Outcome.OK:
            owners[op.result[0]].append(op.key)
            if set(op.result) != {revision}:
                yield f"{op.key} is at revision {revision} of version {version}; the answers were {op.result}"
    for revision, keys in sorted(owners.items()):
        if len(keys) > 1:
            yield f"{keys} all stand at revision {revision}"

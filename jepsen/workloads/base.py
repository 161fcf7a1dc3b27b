"""What all workloads have: clients, each with one operation at a time, and a history of what they were told."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from random import Random
from typing import Any, ClassVar, Final

from jepsen.history import History, Json, Op, Outcome
from jepsen.verdict import Findings
from nebuladb.client import AsyncClient
from nebuladb.errors import NebulaError
from nebuladb.errors import Outcome as Told
from nebuladb.sim.linearizability.check import Part, Report, check
from nebuladb.sim.linearizability.model import Model, Step
from nebuladb.sim.linearizability.operation import UNKNOWN, Operation, Unknown
from nebuladb.sim.linearizability.search import Verdict

WORKERS: Final = 6
TIMEOUT: Final = 1.5
"""Seconds of an operation: about an election's."""
PATIENCE: Final = 20.0
"""Seconds of one in the end, when nothing is broken any more."""
BACK_OFF: Final = 0.1
"""Seconds after a refusal."""
MAX_SHOWN: Final = 20
"""Violations of one run that are told."""


class Clients:
    """What workers share."""

    def __init__(self, endpoints: Sequence[str], rate: float, rng: Random) -> None:
        self.endpoints = list(endpoints)
        self.rng = rng
        self.history = History()
        self.stop = asyncio.Event()
        """The time is over: begin nothing more."""
        self._pause = WORKERS / rate
        self._began = time.monotonic_ns()
        self._processes = 0

    @property
    def now(self) -> int:
        """ns since the run began."""
        return time.monotonic_ns() - self._began

    def new_process(self) -> int:
        """A number for histories."""
        self._processes += 1
        return self._processes

    def client(self, node: int, *, only: bool = True, timeout: float = TIMEOUT) -> AsyncClient:
        """Of that node, or of all with that one first."""
        ring = self.endpoints[node:] + self.endpoints[:node]
        return AsyncClient(ring[:1] if only else ring, timeout=timeout)

    async def pause(self) -> None:
        """Before an operation, so that all workers together keep to the rate."""
        seconds = min(self.rng.expovariate(1 / self._pause), 10 * self._pause)
        try:
            async with asyncio.timeout(seconds):
                await self.stop.wait()
        except TimeoutError:
            pass


class Worker:
    """One client, and the name under which histories know it: a new one after each unknown outcome."""

    def __init__(self, clients: Clients, number: int, *, timeout: float = TIMEOUT) -> None:
        self.clients = clients
        self.rng = clients.rng
        self.node = number % len(clients.endpoints)
        self.process = clients.new_process()
        self.client = clients.client(self.node, timeout=timeout)

    async def close(self) -> None:
        """End its connections."""
        await self.client.close()

    async def do(self, f: str, key: str, value: Json, action: Callable[[], Awaitable[Json]]) -> Op:
        """One operation: what `action` returns is its answer. Only a write's outcome can be unknown."""
        return await self._do(f, key, value, action, reads=False)

    async def look(self, f: str, key: str, value: Json, action: Callable[[], Awaitable[Json]]) -> Op:
        """Likewise one that changes nothing."""
        return await self._do(f, key, value, action, reads=True)

    async def _do(self, f: str, key: str, value: Json, action: Callable[[], Awaitable[Json]], *, reads: bool) -> Op:
        call = self.clients.now
        result, text = None, ""
        try:
            result, outcome = await action(), Outcome.OK
        except NebulaError as error:
            text = f"{type(error).__name__}: {error.message}"
            outcome = Outcome.FAILED if reads or error.outcome is Told.FAILED else Outcome.UNKNOWN
        op = Op(self.process, f, key, value, call, self.clients.now, outcome, result, text)
        self.clients.history.add(op)
        if outcome is Outcome.UNKNOWN:
            self.process = self.clients.new_process()
        elif outcome is Outcome.FAILED:
            await asyncio.sleep(BACK_OFF * self.rng.random())
        return op


class Workload(ABC):
    """What workers do under faults (`step`), and once more when all is well (`finish`); and the judge."""

    workers: ClassVar[int] = WORKERS
    timeout: ClassVar[float] = TIMEOUT

    async def begin(self, worker: Worker) -> None:  # noqa: B027 - most have nothing to prepare
        """Before the first fault."""

    @abstractmethod
    async def step(self, worker: Worker) -> None:
        """One operation, or a few that belong together."""

    @abstractmethod
    async def finish(self, worker: Worker) -> None:
        """The last reads: a cluster that serves again can answer them, however long that takes."""

    @staticmethod
    @abstractmethod
    def check(ops: Sequence[Op], *, clocks_run_true: bool) -> Findings:
        """Judge a history. `clocks_run_true`: no nemesis moved the nodes' clocks."""

    async def run(self, clients: Clients) -> None:
        """Until `clients.stop`."""
        async with asyncio.TaskGroup() as group:
            for number in range(self.workers):
                group.create_task(self._work(Worker(clients, number, timeout=self.timeout)))

    async def _work(self, worker: Worker) -> None:
        try:
            while not worker.clients.stop.is_set():
                await self.step(worker)
                await worker.clients.pause()
        finally:
            await worker.close()

    async def open(self, clients: Clients) -> None:
        """The beginning, by a client of its own."""
        await self._alone(clients, self.begin)

    async def end(self, clients: Clients) -> None:
        """The end, likewise."""
        await self._alone(clients, self.finish)

    @staticmethod
    async def _alone(clients: Clients, action: Callable[[Worker], Awaitable[None]]) -> None:
        worker = Worker(clients, clients.rng.randrange(len(clients.endpoints)), timeout=PATIENCE)
        try:
            await action(worker)
        finally:
            await worker.close()


class Picture(Model[int, str, None]):
    """Draws a history that another checker judged: inputs are its texts, and its states are of no use."""

    def initial(self) -> int:
        return 0

    def step(self, state: int, given: str, output: Unknown | None) -> Step[int]:
        return state

    def describe(self, operation: Operation[str, None]) -> str:
        return operation.input


def _text(op: Op) -> str:
    given = "" if op.value is None else f" {op.value}"
    answer = "?" if op.outcome is Outcome.UNKNOWN else op.result
    return f"{op.f} {op.key}{given} → {'done' if answer is None else answer}"


def judged(ops: Iterable[Op], violations: Iterable[str]) -> Findings:
    """Findings of a checker that has found these."""
    told = list(violations)
    verdict = Verdict.NOT_LINEARIZABLE if told else Verdict.LINEARIZABLE
    operations = tuple(
        Operation(op.process, op.call, None if op.outcome is Outcome.UNKNOWN else op.returned, _text(op), None)
        for op in sorted(ops, key=lambda op: op.call)
        if op.outcome is not Outcome.FAILED
    )
    part: Part[int, str, None] = Part(None, operations, verdict, (), None)
    return Findings(Report(verdict, (part,)), Picture(), told[:MAX_SHOWN])


def searched(operations: Iterable[Operation[Any, Any]], model: Model[Any, Any, Any]) -> Findings:
    """Findings of the linearizability checker."""
    report = check(operations, model)
    violations = []
    part = report.failed
    if report.verdict is Verdict.NOT_LINEARIZABLE and part is not None and part.failure is not None:
        violations.append(
            f"the history of {part.key!r} is not linearizable: its shortest prefix that is not has "
            f"{len(part.failure.prefix)} operations and ends with {model.describe(part.failure.operation)} "
            f"of process {part.failure.operation.process}"
        )
    return Findings(report, model, violations, len(report.undecided))


def operation(op: Op, given: Json, output: Json) -> Operation[Json, Json]:
    """For the checker; not for one that failed."""
    if op.outcome is Outcome.UNKNOWN:
        return Operation(op.process, op.call, None, given, UNKNOWN)
    return Operation(op.process, op.call, op.returned, given, output)

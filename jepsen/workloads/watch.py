"""Watches that outlive nodes: every event once, in order, none missing (S26)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

from jepsen.history import Json, Op, Outcome
from jepsen.verdict import Findings
from jepsen.workloads.base import Clients, Worker, Workload, judged
from nebuladb.client import Event, EventType, prefix_end
from nebuladb.errors import NebulaError

PREFIX: Final = b"watch/"
KEYS: Final = 8
WATCHERS: Final = 3
MOVE: Final = 0.01
"""Share of the events after which a watcher begins anew behind it, at whatever node."""
MARK: Final = "watch/~"
"""The last event: who has seen it has seen all."""
CATCH_UP_SECONDS: Final = 60.0


class Watches(Workload):
    """Writers put, delete and put two keys at once; a watcher's history has one operation an event."""

    def __init__(self) -> None:
        self._values = 0
        self._watchers: list[_Watcher] = []

    async def open(self, clients: Clients) -> None:
        self._watchers = [_Watcher(clients, node) for node in range(WATCHERS)]
        await super().open(clients)

    async def step(self, worker: Worker) -> None:
        self._values += 1
        draw, value = worker.rng.random(), str(self._values)
        first, second = (f"{PREFIX.decode()}{number}" for number in worker.rng.sample(range(KEYS), 2))
        if draw < 0.6:

            async def put() -> Json:
                return (await worker.client.put(first.encode(), value.encode())).revision

            await worker.do("put", first, value, put)
        elif draw < 0.75:

            async def delete() -> Json:
                result = await worker.client.delete(first.encode())
                return result.revision if result.deleted else None

            await worker.do("delete", first, None, delete)
        else:

            async def put_two() -> Json:
                txn = worker.client.txn().put(first.encode(), value.encode()).put(second.encode(), value.encode())
                return (await txn.commit()).revision

            await worker.do("put two", f"{first} {second}", value, put_two)

    async def finish(self, worker: Worker) -> None:
        async def mark() -> Json:
            return (await worker.client.put(MARK.encode(), b"end")).revision

        async def scan() -> Json:
            found = worker.client.scan(PREFIX, prefix_end(PREFIX))
            return {kv.key.decode(): [kv.value.decode(), kv.mod_revision] async for kv in found}

        await worker.do("put", MARK, "end", mark)
        await worker.look("read", PREFIX.decode(), None, scan)
        await asyncio.wait([watcher.task for watcher in self._watchers], timeout=CATCH_UP_SECONDS)

    async def end(self, clients: Clients) -> None:
        try:
            await super().end(clients)
        finally:
            for watcher in self._watchers:
                watcher.task.cancel()
            await asyncio.gather(*(watcher.task for watcher in self._watchers), return_exceptions=True)

    @staticmethod
    def check(ops: Sequence[Op], *, clocks_run_true: bool) -> Findings:
        return judged(ops, _violations(ops))


class _Watcher:
    """From the first revision to the mark."""

    def __init__(self, clients: Clients, node: int) -> None:
        self._clients = clients
        self._node = node
        self._process = clients.new_process()
        self._after = 0
        self._record("watch", PREFIX.decode(), None, None, "")
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self._clients.client(self._node, only=False) as client:
            while True:
                try:
                    async for event in client.watch(PREFIX, prefix_end(PREFIX), start_revision=self._after + 1):
                        # Between two revisions only: who resumes behind one has been told all of it.
                        if event.kv.mod_revision > self._after and self._clients.rng.random() < MOVE:
                            break
                        self._saw(event)
                        if event.kv.key == MARK.encode():
                            return
                except NebulaError as error:
                    self._record("broken", "", None, None, str(error))

    def _saw(self, event: Event) -> None:
        value = event.kv.value.decode() if event.type is EventType.PUT else None
        self._record("event", event.kv.key.decode(), event.kv.mod_revision, value, "")
        self._after = event.kv.mod_revision

    def _record(self, f: str, key: str, revision: Json, value: Json, error: str) -> None:
        now = self._clients.now
        outcome = Outcome.FAILED if error else Outcome.OK
        self._clients.history.add(Op(self._process, f, key, revision, now, now, outcome, value, error))


Told = tuple[int, str, Json]
"""(revision, key, value); a deletion has no value."""


def _violations(ops: Sequence[Op]) -> Iterator[str]:
    watches: dict[int, list[Told]] = {}
    for op in ops:
        if op.f == "watch":
            watches[op.process] = []
        elif op.f == "event":
            watches.setdefault(op.process, []).append((op.value, op.key, op.result))
    if not any(watches.values()):
        yield "no watch was told of anything"
        return
    for process, told in sorted(watches.items()):
        yield from _own(f"watcher {process}", told)
    (first, longest), *others = sorted(watches.items(), key=lambda item: -len(item[1]))
    for process, told in others:
        different = next((pair for pair in zip(longest, told, strict=False) if pair[0] != pair[1]), None)
        if different is not None:
            yield f"watchers {first} and {process} were told differently: {different[0]} and {different[1]}"
    yield from _against_writes(longest, ops)
    yield from _against_reads(longest, ops)


def _own(who: str, told: Sequence[Told]) -> Iterator[str]:
    """What one watcher can tell by itself."""
    last = told[-1] if told else None
    if last is None or last[1] != MARK:
        yield f"{who} never came to the end; its last event was {last}"
    for before, after in pairwise(told):
        if after[0] < before[0]:
            yield f"{who} was told {after} after {before}"
    if len(told) != len({event[:2] for event in told}):
        yield f"{who} was told {max(told, key=told.count)} twice"


def _against_writes(told: Sequence[Told], ops: Sequence[Op]) -> Iterator[str]:
    """Each acknowledged write is an event of its revision; each event is of a write that nobody was told had failed, or
    had nothing to delete, and none ran twice: a client repeats none whose outcome is unknown."""
    events = set(told)
    possible: Counter[tuple[str, Json]] = Counter()
    for op in ops:
        if op.f not in ("put", "put two", "delete"):
            continue
        keys = op.key.split()
        if op.outcome is Outcome.UNKNOWN or (op.outcome is Outcome.OK and op.result is not None):
            possible.update((key, op.value) for key in keys)
        if op.outcome is Outcome.OK and op.result is not None:
            for event in ((op.result, key, op.value) for key in keys):
                if event not in events:
                    yield f"{op.f} of process {op.process} was acknowledged, and its event {event} is missing"
    for event in told:
        possible[event[1:]] -= 1
        if possible[event[1:]] < 0:
            yield f"there is an event {event}, and no write, or none any more, that can be the cause"


def _against_reads(told: Sequence[Told], ops: Sequence[Op]) -> Iterator[str]:
    """All events together are the state."""
    reads = [op for op in ops if op.f == "read" and op.outcome is Outcome.OK]
    if not reads:
        yield "nobody could read the keys in the end"
        return
    state = {key: [value, revision] for revision, key, value in told}
    state = {key: found for key, found in state.items() if found[0] is not None}
    if state != reads[-1].result:
        yield f"the events lead to {state}; what is there is {reads[-1].result}"

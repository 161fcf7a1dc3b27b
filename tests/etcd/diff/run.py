"""One sequence of operations against two servers, compared step by step."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Final

from google.protobuf.message import Message

from nebuladb.pb.etcd import kv_pb2, lease_pb2, watch_pb2
from tests.etcd.diff import crowd_ops, kv_ops, lease_ops, txn_ops, upkeep_ops, watch_ops
from tests.etcd.diff.calls import (
    Answer,
    Call,
    CloseWatch,
    Draw,
    Failure,
    KeepAlive,
    OpenWatch,
    Settle,
    Snapshot,
    Step,
    WatchStep,
)
from tests.etcd.diff.normal import differ
from tests.etcd.diff.target import Target, WatchStream
from tests.etcd.diff.values import SENTINEL, World

WEIGHTS: Final[dict[Draw, float]] = {
    kv_ops.do_range: 22,
    kv_ops.do_put: 18,
    kv_ops.do_delete: 8,
    kv_ops.do_compact: 5,
    kv_ops.do_big: 0.1,
    txn_ops.do_txn: 18,
    txn_ops.do_read_txn: 4,
    txn_ops.do_long_txn: 0.5,
    lease_ops.do_grant: 6,
    lease_ops.do_revoke: 6,
    lease_ops.do_keep_alive: 3,
    lease_ops.do_time_to_live: 3,
    lease_ops.do_leases: 0.5,
    watch_ops.do_watch: 6,
    watch_ops.do_cancel: 1.5,
    watch_ops.do_progress: 1.5,
    watch_ops.do_close: 1.5,
    watch_ops.do_settle: 0.5,
    watch_ops.do_fragments: 0.1,
    upkeep_ops.do_status: 0.5,
    upkeep_ops.do_hash: 1,
    upkeep_ops.do_defragment: 0.1,
    upkeep_ops.do_move_leader: 0.3,
    upkeep_ops.do_snapshot: 0.1,
    upkeep_ops.do_alarm: 1,
}
CROWD: Final[dict[Draw, float]] = {
    crowd_ops.do_load: 30,
    crowd_ops.do_read: 40,
    crowd_ops.do_remove: 12,
    crowd_ops.do_compact: 3,
    crowd_ops.do_watch: 4,
    crowd_ops.do_hash: 2,
}
"""Instead of all that, where families name ``crowd_ops``."""
LATE_SECONDS: Final = 0.25
"""etcd sends what is past when a loop comes round, every 100 ms."""
POLL_SECONDS: Final = 0.2
DUE_SECONDS: Final = 10.0
"""In which what is due on a watch stream must have come."""


@dataclass
class Difference(Exception):
    """The servers answered a step differently."""

    operation: int
    step: object
    reference: object
    other: object
    panic: str = ""
    """Not empty: there was nothing to compare with, since the reference died, and of what."""

    def __str__(self) -> str:
        return (
            f"operation {self.operation}: {_show(self.step)}\n--- the reference:\n{_show(self.reference)}\n"
            f"--- the other:\n{_show(self.other)}"
        )


def _show(thing: object) -> str:
    text = f"{type(thing).__name__} {{\n{thing}}}" if isinstance(thing, Message) else str(thing)
    return text if len(text) < 3000 else f"{text[:1500]}\n… {len(text) - 3000} characters …\n{text[-1500:]}"


@dataclass
class Tally:
    """What was asked so far."""

    operations: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    """By method."""
    wrong: Counter[str] = field(default_factory=Counter)
    """Requests that were refused, or named a lease that doesn't exist, by what the reference said."""

    @property
    def share_wrong(self) -> float:
        """Of all requests."""
        return self.wrong.total() / max(1, self.requests.total())


class Run:
    """A seed's operations against `reference` and `other`, which are fresh."""

    def __init__(self, seed: int, reference: Target, other: Target, families: Collection[str] = ()) -> None:
        self._seed = seed
        table = CROWD if "crowd_ops" in families else WEIGHTS
        chosen = {draw for draw in table if not families or draw.__module__.rpartition(".")[2] in families}
        self._weights = {draw: weight if draw in chosen else 0.0 for draw, weight in table.items()}
        self._reference = reference
        self._other = other
        self._both = (reference, other)
        self._world = World()
        self._number = 0
        self.tally = Tally()
        self._uncounted = Tally()
        """What the harness itself asks for."""

    def run(self, numbers: Iterable[int]) -> None:
        """These operations of the seed. Raises `Difference`."""
        draws, weights = list(self._weights), list(self._weights.values())
        for self._number in numbers:
            rng = Random(f"{self._seed}/{self._number}")
            steps = rng.choices(draws, weights)[0](rng, self._world)
            self.tally.operations += 1
            answer: Answer = None
            while True:
                try:
                    step = next(steps) if answer is None else steps.send(answer)
                except StopIteration:
                    break
                answer = self._step(step)
        self._number += 1
        self._settle(None)

    def _step(self, step: Step) -> Answer:
        """Take it on both; the reference's answer."""
        match step:
            case Call():
                futures = [target.send(step) for target in self._both]
                answers = [target.answer(step, future) for target, future in zip(self._both, futures, strict=True)]
                if isinstance(step.request, lease_pb2.LeaseGrantRequest) and not step.request.ID:
                    self._learn(answers)
                return self._compare(step.method, step, *answers)
            case KeepAlive():
                one, other = (target.keep_alive(step.lease) for target in self._both)
                return self._compare("Lease/LeaseKeepAlive", step, one, other)
            case Snapshot():
                forms = [target.snapshot() for target in self._both]
                self.tally.requests["Maintenance/Snapshot"] += 1
                if forms[0] != forms[1]:
                    raise Difference(self._number, step, *forms)
            case OpenWatch():
                for target in self._both:
                    target.open(step.stream)
                create = watch_pb2.WatchCreateRequest(key=b"\0", range_end=b"\0", watch_id=watch_ops.WITNESS)
                request = watch_pb2.WatchRequest(create_request=create)
                self._watch(WatchStep(step.stream, request, answered=True))
            case CloseWatch():
                for target in self._both:
                    target.streams.pop(step.stream).close()
            case WatchStep():
                self._watch(step)
            case Settle():
                self._settle(step)
        return None

    def _learn(self, answers: list[Message | Failure]) -> None:
        one, other = answers
        kind = lease_pb2.LeaseGrantResponse
        if isinstance(one, kind) and isinstance(other, kind) and one.ID > 0 < other.ID:
            self._other.learn(other.ID, one.ID)
            other.ID = one.ID

    def _compare(self, method: str, step: object, one: Message | Failure, other: Message | Failure) -> Answer:
        self.tally.requests[method] += 1
        if isinstance(one, Failure):
            self.tally.wrong[f"{one.code} {one.text}"] += 1
            if one.code == "UNAVAILABLE":
                raise Difference(self._number, step, "it is gone: an operation that etcd doesn't survive?", other)
            if one != other:
                raise Difference(self._number, step, one, other)
            return one
        if isinstance(other, Failure) or differ(one, other):
            raise Difference(self._number, step, one, other)
        if isinstance(one, lease_pb2.LeaseTimeToLiveResponse | lease_pb2.LeaseKeepAliveResponse) and one.TTL <= 0:
            self.tally.wrong["an unknown lease"] += 1
        self._world.revision = max(self._world.revision, one.header.revision)  # type: ignore[attr-defined]
        return one

    def _watch(self, step: WatchStep) -> None:
        """Say it on both streams; a creation's answer is waited for, and what it is late for."""
        self.tally.requests["Watch/Watch"] += 1
        streams = self._streams(step.stream)
        before = [stream.created for stream in streams]
        for stream in streams:
            stream.say(step.request)
        if not step.answered:
            return
        for stream, number in zip(streams, before, strict=True):
            if not stream.wait(partial(_created, stream, number), DUE_SECONDS):
                one, other = (dict(stream.came) for stream in streams)
                raise Difference(self._number, step, one, other)
        if streams[0].refused():
            self.tally.wrong["a watch that was refused"] += 1
        elif step.late:
            came = streams[0].amount()
            if streams[0].wait(partial(_grew, streams[0], came), LATE_SECONDS) and streams[0].refused():
                self.tally.wrong["a watch of what is compacted"] += 1

    def _streams(self, number: int) -> tuple[WatchStream, WatchStream]:
        return self._reference.streams[number], self._other.streams[number]

    def _settle(self, step: object) -> None:
        tally, self.tally = self.tally, self._uncounted
        try:
            self._settle_streams(step)
        finally:
            self.tally = tally

    def _settle_streams(self, step: object) -> None:
        """All that is due on the streams has come once two things have that were asked for last.

        Answers to control messages: a creation that is refused, and answered at once. Events: the sentinel's, which
        the witness sees; what etcd sends to watchers in step comes in the order of revisions.
        """
        if not self._world.streams:
            return
        empty = watch_pb2.WatchCreateRequest(key=b"b", range_end=b"a")
        for number in self._world.streams:
            self._watch(WatchStep(number, watch_pb2.WatchRequest(create_request=empty), answered=True))
        put = self._step(Call("KV/Put", kv_pb2.PutRequest(key=SENTINEL, value=b"%d" % self._number)))
        if isinstance(put, Failure):
            raise Difference(self._number, step, "the sentinel was refused", put)
        for number in self._world.streams:
            streams = self._streams(number)
            for stream in streams:
                # The witness has seen it, or (fewer came on this side) the comparison will tell.
                stream.wait(partial(_witnessed, stream, self._world.revision), DUE_SECONDS)
            if not _equal(*streams, DUE_SECONDS):
                raise Difference(self._number, step, *_unequal(*streams))


def _equal(one: WatchStream, other: WatchStream, seconds: float) -> bool:
    """Whether the same has come on both, at last; then it is forgotten."""
    deadline = time.monotonic() + seconds
    while True:
        with one.changed, other.changed:  # nobody else takes two
            if one.same(other):
                one.came.clear()
                other.came.clear()
                return True
            behind = one if one.amount() < other.amount() else other
            amount = behind.amount()
        if time.monotonic() > deadline:
            return False
        behind.wait(partial(_grew, behind, amount), POLL_SECONDS)


def _grew(stream: WatchStream, amount: int) -> bool:
    return stream.amount() > amount


def _created(stream: WatchStream, number: int) -> bool:
    return stream.created > number


def _witnessed(stream: WatchStream, revision: int) -> bool:
    return stream.seen[watch_ops.WITNESS] >= revision


def _unequal(one: WatchStream, other: WatchStream) -> tuple[str, str]:
    """The watchers that were told different things, and what."""
    with other.changed, one.changed:
        ids = [at for at in sorted({*one.came, *other.came}) if one.came.get(at, []) != other.came.get(at, [])]
        return tuple(  # type: ignore[return-value]
            "\n".join(f"watcher {at}: {' '.join(stream.came.get(at, []))}" for at in ids).replace("\n", " ")
            for stream in (one, other)
        )

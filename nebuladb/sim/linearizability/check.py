"""From a history to a verdict, and to the shortest prefix that shows why."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic

from nebuladb.errors import InvariantViolation
from nebuladb.sim.linearizability.model import REJECTED, Model, S
from nebuladb.sim.linearizability.operation import UNKNOWN, I, O, Operation
from nebuladb.sim.linearizability.search import MAX_STEPS, Found, Verdict, search


@dataclass(frozen=True, slots=True)
class Failure(Generic[S, I, O]):
    """The shortest prefix, by completion, of one part that is not linearizable."""

    operation: Operation[I, O]
    """The one whose completion ends the prefix: with any other answer, or none, it would be linearizable."""
    prefix: tuple[Operation[I, O], ...]
    """All operations called by then, by call; those that had not returned by then are of unknown outcome."""
    order: tuple[Operation[I, O], ...]
    """An order that explains all of the prefix that returned before `operation`; empty if not `shortest`."""
    state: S
    """Where that order leads."""
    states: tuple[S, ...]
    """All states that `operation` could find, up to `search.MAX_STATES`, and perhaps more; none allows it. Empty if
    it isn't what it found that is wrong, but what others saw of it before it returned."""
    shortest: bool
    """False: the bound on work was met while looking for a shorter one."""


@dataclass(frozen=True, slots=True)
class Part(Generic[S, I, O]):
    """What was found about the operations of one key."""

    key: Hashable
    operations: tuple[Operation[I, O], ...]
    """By call."""
    verdict: Verdict
    order: tuple[Operation[I, O], ...]
    """If linearizable, an order that shows it. Unknown operations that are not in it need not have happened."""
    failure: Failure[S, I, O] | None


@dataclass(frozen=True, slots=True)
class Report(Generic[S, I, O]):
    """The verdict on a history, and what it rests on."""

    verdict: Verdict
    """NOT_LINEARIZABLE as soon as one part is; else UNDECIDED as soon as one part is."""
    parts: tuple[Part[S, I, O], ...]
    """By the first call of a key."""

    @property
    def failed(self) -> Part[S, I, O] | None:
        """The part that has the shortest failing prefix of the whole history."""
        failed = [(part.failure.operation.returned or 0, at) for at, part in enumerate(self.parts) if part.failure]
        return self.parts[min(failed)[1]] if failed else None

    @property
    def undecided(self) -> tuple[Hashable, ...]:
        """Keys that the bound on work kept from a verdict."""
        return tuple(part.key for part in self.parts if part.verdict is Verdict.UNDECIDED)


def check(
    operations: Iterable[Operation[I, O]], model: Model[S, I, O], *, max_steps: int = MAX_STEPS
) -> Report[S, I, O]:
    """Whether the history is linearizable. Operations that certainly did not happen must not be in it; their order is
    free. `max_steps` bounds each search: one for each key, and about log2(n) more for one that fails.

    Raises: ValueError if an operation returned before it was called."""
    keys: dict[Hashable, list[Operation[I, O]]] = {}
    for operation in sorted(operations, key=lambda operation: operation.call):
        if operation.returned is not None and operation.returned < operation.call:
            raise ValueError(f"it returned before it was called: {operation}")
        keys.setdefault(model.key(operation.input), []).append(operation)
    parts = tuple(_part(key, members, model, max_steps) for key, members in keys.items())
    verdicts = {part.verdict for part in parts}
    for verdict in (Verdict.NOT_LINEARIZABLE, Verdict.UNDECIDED):
        if verdict in verdicts:
            return Report(verdict, parts)
    return Report(Verdict.LINEARIZABLE, parts)


def _part(key: Hashable, operations: Sequence[Operation[I, O]], model: Model[S, I, O], max_steps: int) -> Part[S, I, O]:
    found = search(model, operations, max_steps)
    failure = None
    if found.verdict is Verdict.NOT_LINEARIZABLE:
        failure = _shortest(operations, model, found, max_steps)
    order = tuple(operations[place] for place in found.order)
    return Part(key, tuple(operations), found.verdict, order, failure)


def _shortest(
    operations: Sequence[Operation[I, O]], model: Model[S, I, O], found: Found[S], max_steps: int
) -> Failure[S, I, O]:
    """Bisect the completions: a prefix of a linearizable history is linearizable. The return that the failed search
    came to is mostly the answer, so it and the one before are looked at first. Not always: the search knew answers that
    come later, and a prefix does not; and a relaxed search came too far."""
    ends = sorted((operation.returned, at) for at, operation in enumerate(operations) if operation.returned is not None)
    low, high = 0, len(ends) - 1
    shortest = True
    middle = bisect_left(ends, (found.furthest, -1))
    guesses = [middle - 1, middle]
    while low < high:
        middle = guesses.pop() if guesses else (low + high) // 2
        if not low <= middle < high:
            continue
        attempt = search(model, _prefix(operations, ends[middle]), max_steps)
        if attempt.verdict is Verdict.NOT_LINEARIZABLE:
            high, found = middle, attempt
        else:
            low = middle + 1
            shortest = shortest and attempt.verdict is Verdict.LINEARIZABLE
    time, at = ends[high]
    before = _prefix(operations, ends[high - 1]) if high else []
    order = tuple(before[place] for place in search(model, before, max_steps).order)
    states = found.states if found.furthest == time else ()
    prefix = tuple(_prefix(operations, ends[high]))
    return Failure(operations[at], prefix, order, _replay(model, order), states, shortest)


def _replay(model: Model[S, I, O], order: Iterable[Operation[I, O]]) -> S:
    state = model.initial()
    for operation in order:
        output = UNKNOWN if operation.returned is None else operation.output
        result = model.step(state, operation.input, output)
        if result is REJECTED:
            raise InvariantViolation(f"the order that was found does not explain {operation}")
        state = result
    return state


def _prefix(operations: Sequence[Operation[I, O]], end: tuple[int, int]) -> list[Operation[I, O]]:
    """The history up to a completion: (time, place), for several may share a time."""
    prefix = []
    for at, operation in enumerate(operations):
        if operation.call <= end[0]:
            late = operation.returned is not None and (operation.returned, at) > end
            prefix.append(replace(operation, returned=None) if late else operation)
    return prefix

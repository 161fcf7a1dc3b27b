"""The checker against brute force, and the cases that its short cuts must get right."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from nebuladb.sim.linearizability import search as searching
from nebuladb.sim.linearizability.check import Part, Report, check
from nebuladb.sim.linearizability.key_value import Append, Get, KeyValue, Put
from nebuladb.sim.linearizability.model import REJECTED, Model, Step
from nebuladb.sim.linearizability.operation import UNKNOWN, Operation
from nebuladb.sim.linearizability.register import CompareAndSet, Read, Register, Write
from nebuladb.sim.linearizability.search import Mode, Search, Verdict
from tests.unit.sim.brute import History, after, explainable, random_history, shortest

HISTORIES = int(os.environ.get("NEBULA_HISTORIES", "2000"))
"""All of them: ``NEBULA_HISTORIES=20000 .venv/bin/python -m pytest tests/unit/sim/test_linearizability.py``."""


class Bare(Model[Any, Any, Any]):
    """Another model without what makes it quick."""

    def __init__(self, model: Model[Any, Any, Any]) -> None:
        self._model = model

    def initial(self) -> Any:
        return self._model.initial()

    def step(self, state: Any, given: Any, output: Any) -> Step[Any]:
        return self._model.step(state, given, output)

    def key(self, given: Any) -> Any:
        return self._model.key(given)


def model_of(history: History) -> Model[Any, Any, Any]:
    return KeyValue() if isinstance(history[0].input, Get | Put | Append) else Register()


def assert_order_shows_it(part: Part[Any, Any, Any]) -> None:
    """The order that a part gives has all that returned, respects time, and the object would have answered so."""
    world: dict[Any, Any] | None = {}
    for at, operation in enumerate(part.order):
        assert all(later.returned is None or operation.call <= later.returned for later in part.order[at:])
        assert world is not None
        world = after(world, operation)
    assert world is not None
    assert len(set(part.order)) == len(part.order)
    assert {operation for operation in part.operations if operation.returned is not None} <= set(part.order)


def assert_right(history: History, truth: bool) -> None:
    model = model_of(history)
    report = check(history, model)
    assert report.verdict is (Verdict.LINEARIZABLE if truth else Verdict.NOT_LINEARIZABLE), history
    assert check(history, Bare(model)).verdict is report.verdict, history
    for part in report.parts:
        if part.verdict is Verdict.LINEARIZABLE:
            assert_order_shows_it(part)
        for mode in Mode:
            found = Search(model, part.operations, mode, searching.MAX_STEPS).run().verdict
            inconclusive = {Mode.HASTY: Verdict.NOT_LINEARIZABLE, Mode.RELAXED: Verdict.LINEARIZABLE}.get(mode)
            assert found in (part.verdict, inconclusive), (mode, history)
    if not truth:
        assert report.failed is not None
        failure = report.failed.failure
        assert failure is not None
        assert failure.operation.returned == shortest(history), history
        assert not explainable(failure.prefix)
        assert failure.shortest


def test_it_agrees_with_brute_force() -> None:
    verdicts: Counter[bool] = Counter()
    for seed in range(HISTORIES):
        history = random_history(Random(seed))
        truth = explainable(history)
        verdicts[truth] += 1
        assert_right(history, truth)
    assert min(verdicts.values()) > HISTORIES // 5, "histories of both kinds are needed"


def ok(call: int, returned: int | None, given: Any, output: Any = None) -> Operation[Any, Any]:
    return Operation(call, call, returned, given, output)


def verdict(*history: Operation[Any, Any]) -> Verdict:
    return check(history, model_of(list(history))).verdict


def test_a_stale_read_is_found_and_a_concurrent_one_is_fine() -> None:
    assert verdict(ok(1, 2, Write(7)), ok(3, 4, Read(), None)) is Verdict.NOT_LINEARIZABLE
    assert verdict(ok(1, 3, Write(7)), ok(2, 4, Read(), None)) is Verdict.LINEARIZABLE


def test_what_meets_in_one_instant_is_concurrent() -> None:
    assert verdict(ok(1, 2, Write(7)), ok(2, 2, Read(), None)) is Verdict.LINEARIZABLE


def test_an_unknown_write_may_take_effect_late_or_never_but_not_twice_and_not_early() -> None:
    unknown = ok(1, None, Write(7), UNKNOWN)
    assert verdict(unknown, ok(10, 11, Read(), None)) is Verdict.LINEARIZABLE
    assert verdict(unknown, ok(10, 11, Read(), None), ok(12, 13, Read(), 7)) is Verdict.LINEARIZABLE
    assert verdict(unknown, ok(10, 11, Read(), 7), ok(12, 13, Read(), None)) is Verdict.NOT_LINEARIZABLE
    twice = (ok(10, 11, Read(), 7), ok(12, 13, Write(8)), ok(14, 15, Read(), 7))
    assert verdict(unknown, *twice) is Verdict.NOT_LINEARIZABLE
    assert verdict(unknown, replace(unknown, call=2), *twice) is Verdict.LINEARIZABLE
    assert verdict(ok(1, 2, Read(), 7), replace(unknown, call=3)) is Verdict.NOT_LINEARIZABLE


def test_a_refused_compare_can_tell_that_an_unread_value_was_written() -> None:
    history = [ok(1, 2, Write(1)), ok(3, None, Write(9), UNKNOWN), ok(4, 5, CompareAndSet(1, 2), output=False)]
    assert verdict(*history) is Verdict.LINEARIZABLE
    assert verdict(history[0], history[2]) is Verdict.NOT_LINEARIZABLE


def test_a_write_of_what_is_there_is_no_observation() -> None:
    """Taken at once, as a read is, the append would be lost under the put."""
    history = [ok(1, 9, Append("k", "b")), ok(2, 8, Append("k", "a")), ok(3, 7, Put("k", "a"))]
    assert verdict(*history, ok(10, 11, Get("k"), "aba")) is Verdict.LINEARIZABLE
    assert verdict(*history, ok(10, 11, Get("k"), "abab")) is Verdict.NOT_LINEARIZABLE


def test_keys_are_apart() -> None:
    history = [ok(1, 2, Put("a", "x")), ok(3, 4, Get("b"), ""), ok(5, 6, Get("b"), "x"), ok(7, 8, Get("a"), "x")]
    report = check(history, KeyValue())
    assert [(part.key, part.verdict.value) for part in report.parts] == [
        ("a", "linearizable"),
        ("b", "not linearizable"),
    ]
    assert report.failed is report.parts[1]


def test_the_smallest_failing_prefix_names_the_operation() -> None:
    history = [
        ok(1, 2, Write(1)),
        ok(3, 20, Write(2)),
        ok(4, 5, Read(), 1),
        ok(6, 7, Read(), 2),
        ok(8, 9, Read(), 1),
        ok(10, 11, Read(), 3),
    ]
    failed = check(history, Register()).failed
    assert failed is not None
    assert failed.failure is not None
    failure = failed.failure
    assert failure.operation == history[4]
    assert failure.prefix == (history[0], replace(history[1], returned=None), *history[2:5])
    assert failure.states == (2,)
    assert failure.state == 2
    assert [operation.call for operation in failure.order] == [1, 4, 3, 6]


def test_an_answer_that_comes_too_late_to_explain_an_earlier_one_ends_the_prefix() -> None:
    """The read alone could be explained by the cas, until that says that it was refused."""
    history = [ok(1, 9, CompareAndSet(None, 1), output=False), ok(2, 3, Read(), 1), ok(4, 5, Read(), 1)]
    failed = check(history, Register()).failed
    assert failed is not None
    assert failed.failure is not None
    assert failed.failure.operation == history[0]
    assert failed.failure.states == ()


def test_the_bound_on_work_is_held_and_leaves_it_undecided() -> None:
    history = [ok(1, 100 + value, Write(value)) for value in range(8)]
    history += [ok(200, 201, Read(), 1), ok(202, 203, Read(), 2)]
    assert check(history, Register()).verdict is Verdict.NOT_LINEARIZABLE
    report = check(history, Register(), max_steps=500)
    assert report.verdict is Verdict.UNDECIDED
    assert report.undecided == (None,)
    assert report.failed is None


def test_a_failure_is_certain_even_if_another_key_is_undecided() -> None:
    hard = [ok(1, 100 + value, Write(value, "hard")) for value in range(8)]
    hard += [ok(200, 201, Read("hard"), 1), ok(202, 203, Read("hard"), 2)]
    report = check([*hard, ok(300, 301, Read("easy"), 5)], Register(), max_steps=500)
    assert report.verdict is Verdict.NOT_LINEARIZABLE
    assert report.undecided == ("hard",)


def test_an_operation_that_returned_before_its_call_is_refused() -> None:
    with pytest.raises(ValueError, match="before it was called"):
        check([ok(5, 4, Read(), None)], Register())


class Counting(Model[int, str, int]):
    """A workload's own model: a counter whose answer is the new count. Nothing but what must be there."""

    def initial(self) -> int:
        return 0

    def step(self, state: int, given: str, output: Any) -> Step[int]:
        return state + 1 if output in (UNKNOWN, state + 1) else REJECTED


def test_a_model_needs_only_a_start_and_a_step() -> None:
    history = [Operation(0, 1, 5, "add", 2), Operation(1, 2, 6, "add", 1)]
    assert check(history, Counting()).verdict is Verdict.LINEARIZABLE
    assert check([*history, Operation(2, 7, 8, "add", 4)], Counting()).verdict is Verdict.NOT_LINEARIZABLE
    lost: History = [Operation(process, 3, None, "add", UNKNOWN) for process in range(3, 43)]
    report: Report[int, str, int] = check([*history, *lost, Operation(2, 7, 8, "add", 30)], Counting())
    assert report.verdict is Verdict.LINEARIZABLE
    assert check([*history, *lost, Operation(2, 7, 8, "add", 99)], Counting()).verdict is Verdict.NOT_LINEARIZABLE


def long_history(operations: int, *, lie: bool) -> History:
    """Six processes, one key, values written once, every twentieth outcome unknown."""
    random, state, history = Random(operations), None, []
    points = []
    free = [0] * 6
    for number in range(operations):
        process = free.index(min(free))
        call = free[process] + random.randint(1, 3)
        returned = call + random.randint(1, 9)
        free[process] = returned
        points.append((random.uniform(call, returned), number, process, call, returned))
    for _, number, process, call, returned in sorted(points):
        unknown = random.random() < 0.05
        given = random.choice([Read(), Write(number), CompareAndSet(state, number)])
        answer: Any = state if isinstance(given, Read) else True
        history.append(Operation(process, call, None if unknown else returned, given, UNKNOWN if unknown else answer))
        if not isinstance(given, Read) and not (unknown and random.random() < 0.5):
            state = number
    reads = [at for at, one in enumerate(history) if isinstance(one.input, Read) and one.returned is not None]
    if lie:
        history[reads[-1]] = replace(history[reads[-1]], output=history[reads[-30]].output)
    return history


@pytest.mark.parametrize("lie", [False, True])
def test_a_long_history_with_a_hundred_unknown_outcomes_is_decided(lie: bool) -> None:
    report = check(long_history(2000, lie=lie), Register())
    assert report.verdict is (Verdict.NOT_LINEARIZABLE if lie else Verdict.LINEARIZABLE)
    if lie:
        assert report.failed is not None
        assert report.failed.failure is not None
        assert isinstance(report.failed.failure.operation.input, Read)

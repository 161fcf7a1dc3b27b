"""Each checker passes a history that can have been, and objects to the same one with one wrong answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jepsen.history import Json, Op, Outcome
from jepsen.verdict import Findings
from jepsen.workloads import WORKLOADS
from jepsen.workloads.watch import MARK
from nebuladb.sim.linearizability.timeline import draw

MS = 1_000_000


class Script:
    """Operations one after another, a millisecond each, of one process each."""

    def __init__(self) -> None:
        self.ops: list[Op] = []

    def op(
        self, f: str, key: str, value: Json = None, result: Json = None, outcome: Outcome = Outcome.OK, at: int = -1
    ) -> Script:
        call = (at if at >= 0 else 2 * len(self.ops)) * MS
        self.ops.append(Op(len(self.ops), f, key, value, call, call + MS, outcome, result))
        return self


FAILED, UNKNOWN = Outcome.FAILED, Outcome.UNKNOWN
MONEY = {f"bank/{number}": 100 for number in range(5)}
MOVED = MONEY | {"bank/0": 90, "bank/1": 110}

GOOD: dict[str, list[Op]] = {
    "register": Script()
    .op("read", "k")
    .op("write", "k", "1")
    .op("cas", "k", ["1", "2"], True)  # noqa: FBT003
    .op("write", "k", "3", outcome=FAILED)
    .op("write", "k", "4", outcome=UNKNOWN)
    .op("read", "k", None, "2")
    .op("read", "k", None, "4")
    .ops,
    "append": Script()
    .op("append", "k", "1 ", True)  # noqa: FBT003
    .op("append", "k", "2 ", False)  # noqa: FBT003
    .op("append", "k", "3 ", outcome=UNKNOWN)
    .op("get", "k", None, ["1 ", 3])
    .op("get", "k", None, ["1 3 ", 4])
    .ops,
    "bank": Script()
    .op("open", "bank", 100, True)  # noqa: FBT003
    .op("read by any node", "bank", None, {})
    .op("read", "bank", None, MONEY)
    .op("transfer", "bank", ["bank/0", "bank/1", 10], True)  # noqa: FBT003
    .op("read by transaction", "bank", None, MOVED)
    .ops,
    "unique": Script()
    .op("take", "c", None, 1)
    .op("take", "c", outcome=UNKNOWN)
    .op("take", "c", None, 3)
    .op("take", "c")
    .op("read", "c", None, 3)
    .ops,
    "set": Script()
    .op("add", "s", "a")
    .op("add", "s", "b", outcome=UNKNOWN)
    .op("add", "s", "c", outcome=FAILED)
    .op("read", "s", None, ["a"])
    .op("read", "s", None, ["a", "b"])
    .ops,
    "lease": Script()
    .op("grant", "l", None, 7, at=0)
    .op("acquire", "l", 7, 10, at=2)
    .op("renew", "l", 7, 2, at=1000)
    .op("look", "l", 7, 7, at=2900)
    .op("grant", "l", None, 8, at=2950)
    .op("look", "l", 7, 0, at=3100)
    .op("acquire", "l", 8, 12, at=3200)
    .op("revoke", "l", 8, at=3300)
    .op("grant", "l", None, 9, at=3310)
    .op("acquire", "l", 9, 13, at=3400)
    .op("look", "l", 0, 9, at=3500)
    .op("look after the end", "l", None, 0, at=9000)
    .ops,
    "sessions": Script()
    .op("open", "session/")
    .op("put", "a", 2, [5, 5])
    .op("put", "b", 1, outcome=UNKNOWN)
    .op("put", "c", 1, outcome=FAILED)
    .op("read", "session/", None, {"a": [1, 5], "b": [1, 6]})
    .ops,
    "watch": Script()
    .op("put", "k", "1", 2)
    .op("put two", "k l", "2", 3)
    .op("delete", "k", None, 4)
    .op("put", "l", "3", outcome=UNKNOWN)
    .op("put", "l", "4", outcome=FAILED)
    .op("put", MARK, "end", 6)
    .op("read", "", None, {"l": ["3", 5], MARK: ["end", 6]})
    .ops,
}


def told(process: int, *events: tuple[int, str, Json]) -> list[Op]:
    return [
        Op(process, "event", key, revision, at * MS, at * MS, Outcome.OK, value)
        for at, (revision, key, value) in enumerate(events)
    ]


EVENTS = ((2, "k", "1"), (3, "k", "2"), (3, "l", "2"), (4, "k", None), (5, "l", "3"), (6, MARK, "end"))
GOOD["watch"] = [*GOOD["watch"], *told(101, *EVENTS), *told(102, *EVENTS)]


def check(workload: str, ops: list[Op], *, clocks_run_true: bool = True) -> Findings:
    return WORKLOADS[workload].check(ops, clocks_run_true=clocks_run_true)


def changed(workload: str, at: int, result: Json) -> list[Op]:
    ops = list(GOOD[workload])
    ops[at] = replace(ops[at], result=result, outcome=Outcome.OK)
    return ops


@pytest.mark.parametrize("workload", sorted(GOOD))
def test_a_history_that_can_have_been_passes_and_is_drawn(workload: str) -> None:
    findings = check(workload, GOOD[workload])
    assert findings.violations == []
    assert not findings.undecided
    assert "<svg" in draw(workload, findings.report, findings.model)


@pytest.mark.parametrize(
    ("workload", "at", "result"),
    [
        ("register", 5, "1"),  # a stale read
        ("register", 6, "3"),  # what had failed
        ("append", 3, ["2 ", 3]),  # what was refused
        ("append", 4, ["3 1 ", 4]),  # acknowledged before, and behind
        ("bank", 4, MOVED | {"bank/1": 100}),
        ("bank", 2, {}),
        ("unique", 2, 1),
        ("unique", 4, 2),  # handed out and forgotten
        ("set", 4, ["b"]),  # lost
        ("set", 3, ["a", "c"]),  # what had failed
        ("set", 4, ["a", "a", "b"]),  # an element twice
        ("lease", 9, 12),  # the token doesn't ascend
        ("lease", 3, 0),  # gone before its time
        ("lease", 11, 9),  # there long after its end
        ("sessions", 1, [5, 6]),  # two answers
        ("sessions", 4, {"a": [2, 7], "b": [1, 6]}),  # run twice
        ("sessions", 4, {"a": [1, 5], "c": [1, 6]}),  # what had failed
        ("sessions", 4, {"b": [1, 6]}),  # lost
        ("watch", 6, {"k": ["1", 2], "l": ["3", 5], MARK: ["end", 6]}),
    ],
)
def test_one_wrong_answer_is_found_and_drawn(workload: str, at: int, result: Json) -> None:
    findings = check(workload, changed(workload, at, result))
    assert findings.violations
    assert "not linearizable" in draw(workload, findings.report, findings.model)


def test_two_holders_are_found() -> None:
    ops = list(GOOD["lease"])
    ops[6] = replace(ops[6], call=2960 * MS, returned=2970 * MS)
    assert check("lease", ops).violations
    # Where clocks jump, a lease may end early; the token still ascends.
    assert not check("lease", ops, clocks_run_true=False).violations
    assert check("lease", changed("lease", 9, 12), clocks_run_true=False).violations


@pytest.mark.parametrize(
    "events",
    [
        EVENTS[:2] + EVENTS[3:],  # a part of a revision is missing
        EVENTS[:4] + EVENTS[3:],  # twice
        (EVENTS[1], EVENTS[0], *EVENTS[2:]),  # out of order
        EVENTS[:-1],  # it never came to the end
        (*EVENTS[:4], (5, "l", "4"), EVENTS[5]),  # of a write that had failed
    ],
)
def test_what_a_watch_may_not_be_told_is_found(events: tuple[tuple[int, str, Json], ...]) -> None:
    writes = [op for op in GOOD["watch"] if op.f != "event"]
    assert check("watch", [*writes, *told(101, *events)]).violations
    assert check("watch", [*writes, *told(101, *EVENTS), *told(102, *events)]).violations


@pytest.mark.parametrize(
    "again",
    [
        (7, "k", "1"),  # a put that ran twice
        (7, "k", None),  # one delete, two deletions
    ],
)
def test_a_write_without_a_session_that_runs_twice_is_found(again: tuple[int, str, Json]) -> None:
    events = (*EVENTS[:-1], again, (8, MARK, "end"))
    state = {"l": ["3", 5], MARK: ["end", 8]} | ({"k": ["1", 7]} if again[2] else {})
    writes = [op for op in GOOD["watch"] if op.f not in ("event", "read") and op.key != MARK]
    end = Script().op("put", MARK, "end", 8).op("read", "", None, state).ops
    (violation,) = check("watch", [*writes, *told(101, *events), *end]).violations
    assert str(again) in violation


def test_a_delete_that_found_nothing_is_no_cause_of_a_deletion() -> None:
    ops = list(GOOD["watch"])
    ops[2] = replace(ops[2], result=None)
    assert check("watch", ops).violations


def test_sessions_and_watches_that_saw_nothing_prove_nothing() -> None:
    assert check("sessions", GOOD["sessions"][:4]).violations
    assert check("watch", GOOD["watch"][:7]).violations


def test_a_watch_that_was_told_nothing_is_seen_among_others() -> None:
    watches = [Op(process, "watch", "watch/", None, 0, 0, Outcome.OK) for process in (101, 102)]
    assert not check("watch", [*watches, *GOOD["watch"]]).violations
    silent = Op(103, "watch", "watch/", None, 0, 0, Outcome.OK)
    assert check("watch", [*watches, silent, *GOOD["watch"]]).violations == [
        "watcher 103 never came to the end; its last event was None"
    ]

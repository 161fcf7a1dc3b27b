from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from jepsen import history
from jepsen.clocks import Clocks, preloads
from jepsen.history import Op, Outcome
from jepsen.namespaces import discipline, rules
from jepsen.network import Delay
from jepsen.table import KINDS, runs
from jepsen.verdict import Summary, parse


def summary(
    *,
    ok: int = 5,
    failed: int = 1,
    leader_changes: int = 1,
    faults: Mapping[str, int] | None = None,
    violations: Sequence[str] = (),
    undecided: int = 0,
) -> Summary:
    found = {"kill": 2, "pause": 1} if faults is None else faults
    return Summary(
        "register", "kill,pause", "proxies", 7, 60.0, ok, failed, 0, leader_changes, found, violations, undecided
    )


def test_a_valid_run_did_something_under_faults_that_bit() -> None:
    assert summary().verdict == "valid"
    assert summary().exit_code == 0


@pytest.mark.parametrize(
    ("bad", "verdict"),
    [
        (summary(violations=["x"]), "violated"),
        (summary(undecided=1), "undecided"),
        (summary(ok=0), "nothing-done"),
        (summary(faults={"kill": 2}), "no-fault-bit"),
        (summary(failed=0, leader_changes=0), "no-fault-bit"),
    ],
)
def test_anything_else_exits_with_1(bad: Summary, verdict: str) -> None:
    assert bad.verdict == verdict
    assert bad.exit_code == 1


def test_the_last_line_has_the_numbers() -> None:
    pairs = parse(summary().line())
    assert list(pairs)[:9] == [
        *("workload", "nemesis", "seconds", "ok", "failed", "unknown", "leader_changes", "faults", "verdict")
    ]
    assert (pairs["nemesis"], pairs["seconds"], pairs["faults"], pairs["verdict"]) == ("kill,pause", "60", "3", "valid")
    assert pairs["bit"] == "kill:2,pause:1"
    assert parse(summary(faults={}).line())["bit"] == "nothing"


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    ops = [
        Op(1, "read", "k", None, 1, 5, Outcome.OK, {"a": [1, None]}),
        Op(2, "write", "k", "v", 2, 3, Outcome.UNKNOWN, None, "lost"),
    ]
    history.write(reversed(ops), tmp_path / "h")
    assert history.read(tmp_path / "h") == ops


def test_moments_are_in_order_and_a_call_precedes_a_return_of_the_same_time() -> None:
    early, late = Op(1, "a", "", None, 1, 5, Outcome.OK), Op(2, "b", "", None, 5, 9, Outcome.OK)
    assert [(m.op.f, m.returns) for m in history.moments([early, late])] == [
        ("a", False),
        ("b", False),
        ("a", True),
        ("b", True),
    ]


def test_what_a_watch_was_told_is_no_operation() -> None:
    recorded = history.History()
    recorded.add(Op(1, "event", "k", 3, 1, 1, Outcome.OK))
    recorded.add(Op(2, "put", "k", "v", 1, 2, Outcome.OK))
    assert recorded.count(Outcome.OK) == 1


def test_every_pair_of_nemeses_and_every_workload_is_in_the_table() -> None:
    chosen = runs()
    assert len({nemesis for workload, nemesis in chosen if workload == "register"}) == len(KINDS) * 4 // 2 + len(KINDS)
    assert {f"churn,{kind}" for kind in KINDS} <= {nemesis for _, nemesis in chosen}
    assert {workload for workload, _ in chosen} == {
        *("register", "append", "bank", "unique", "set", "watch", "lease", "sessions")
    }


def test_rules_drop_what_comes_from_the_blocked_and_nothing_else() -> None:
    assert "ip saddr { 10.0.0.1, 10.0.0.3 } drop;" in rules(1, frozenset({(0, 1), (2, 1), (1, 0)}))
    assert "drop" not in rules(2, frozenset({(0, 1), (2, 1)}))


def test_netem_is_told_delay_and_loss() -> None:
    command = discipline(Delay(200, 100, 0.05))
    assert command[-5:] == ("delay", "200ms", "100ms", "loss", "5%")
    assert "netem" not in discipline(None)


def test_clocks_only_jump_ahead_and_keep_their_offset(tmp_path: Path) -> None:
    clocks = Clocks(Path("faketime.so"), tmp_path)
    file = Path(clocks.environ(0)["FAKETIME_TIMESTAMP_FILE"])
    assert file.read_text() == "+0s\n"
    clocks.jump(0, 3)
    clocks.jump(0, 10)
    assert file.read_text() == "+13s\n"
    clocks.environ(0)
    assert file.read_text() == "+13s\n"
    assert Clocks(None, tmp_path).environ(0) == {}


def test_preloaded_libraries_add_up() -> None:
    assert preloads({"LD_PRELOAD": "a", "x": "1"}, {"LD_PRELOAD": "b"}) == {"LD_PRELOAD": "a:b", "x": "1"}
    assert preloads({}, {}) == {}

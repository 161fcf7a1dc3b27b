from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import cast

import pytest

from jepsen import history
from jepsen.clocks import Clocks, preloads
from jepsen.history import Op, Outcome
from jepsen.namespaces import discipline, packets, rules
from jepsen.nemesis import NEMESES, Field
from jepsen.network import Addresses, Delay, Network
from jepsen.partitions import Pairs
from jepsen.run import report, unanswered
from jepsen.schedule import Fault
from jepsen.table import KINDS, runs
from jepsen.verdict import Summary, parse
from tests.integration.cluster import Cluster


def summary(
    *,
    ok: int = 60,
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
        (summary(ok=0), "too-little-done"),
        (summary(ok=59), "too-little-done"),
        (summary(faults={"kill": 2}), "no-fault-bit"),
        (summary(failed=0, leader_changes=0), "no-fault-bit"),
    ],
)
def test_anything_else_exits_with_1(bad: Summary, verdict: str) -> None:
    assert bad.verdict == verdict
    assert bad.exit_code == 1


def test_a_run_that_did_too_little_says_how_little() -> None:
    """One success in a minute was valid."""
    assert "59 operations succeeded, less than 1 a second" in report(summary(ok=59))
    assert len(report(summary())) == len(report(summary(ok=59))) - 1


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


def test_work_is_what_succeeds_from_the_first_fault_on() -> None:
    recorded = history.History()
    recorded.add(Op(1, "put", "k", "v", 1, 2, Outcome.OK))
    recorded.add(Op(1, "put", "k", "v", 3, 9, Outcome.FAILED))
    assert (recorded.count(Outcome.OK), recorded.count(Outcome.OK, 1), recorded.count(Outcome.OK, 2)) == (1, 1, 0)


def test_last_operations_that_fail_are_violations() -> None:
    ops = [
        Op(1, "read", "k", None, 1, 5, Outcome.FAILED, None, "Unavailable: no leader"),
        Op(1, "read", "l", None, 5, 6, Outcome.OK, "v"),
        Op(1, "put", "m", "v", 6, 7, Outcome.UNKNOWN, None, "lost"),
        Op(2, "broken", "", None, 6, 6, Outcome.FAILED, None, "a watch broke, and goes on elsewhere"),
    ]
    assert unanswered(ops) == [
        "read k on a cluster that is ready: Unavailable: no leader",
        "put m on a cluster that is ready: lost",
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
    assert "ip saddr { 10.0.0.1, 10.0.0.3 } counter drop;" in rules(1, frozenset({(0, 1), (2, 1), (1, 0)}))
    assert "drop" not in rules(2, frozenset({(0, 1), (2, 1)}))


@pytest.mark.parametrize(
    ("said", "count"),
    [
        ("ip saddr { 10.0.0.1 } counter packets 12 bytes 720 drop", 12),
        ("ip saddr { 10.0.0.1 } counter packets 0 bytes 0 drop", 0),
        ("type filter hook input priority filter; policy accept;", 0),
        ("qdisc netem 8001: root limit 100000 delay 50ms\n Sent 9310 bytes 95 pkt (dropped 0, overlimits 0)", 95),
    ],
)
def test_what_was_dropped_or_slowed_is_read_from_what_the_kernel_says(said: str, count: int) -> None:
    assert packets(said) == count


class Quiet(Network):
    """Nothing comes through it but what is said."""

    def __init__(self, count: int) -> None:
        self._count = count

    async def open(self) -> list[Addresses]:
        return []

    async def close(self) -> None:
        pass

    async def block(self, pairs: Pairs) -> int:
        return self._count

    async def delay(self, delay: Delay | None) -> int:
        return self._count


@pytest.mark.parametrize("kind", ["partition", "latency"])
async def test_who_held_nothing_back_and_slowed_nothing_has_not_hurt(kind: str, tmp_path: Path) -> None:
    fault = Fault(kind, 0, 0, (0, 1, 2), 1, leader=False)
    for count, done in ((0, {}), (7, {kind: 1})):
        cluster = cast("Cluster", None)  # it isn't asked
        field = Field(cluster, Quiet(count), Clocks(None, tmp_path), None, Random(1))
        await NEMESES[kind](field, fault)
        assert field.done == done
        assert f"{count} " in field.log[0]


def test_a_clock_moves_only_where_the_library_was_loaded(tmp_path: Path) -> None:
    mapped = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line)
    assert Clocks(Path(mapped), tmp_path).moves(os.getpid())
    assert not Clocks(tmp_path / "faketime.so", tmp_path).moves(os.getpid())
    assert not Clocks(None, tmp_path).moves(os.getpid())


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

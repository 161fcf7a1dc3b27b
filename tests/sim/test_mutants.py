"""The mutants apply, and the simulator finds some of them: all of them is `make sim-mutants`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nebuladb.sim.report import Report
from nebuladb.sim.world import Result
from tools.mutant import ROOT, Mutant, MutantError, load
from tools.mutants import all_mutants, main
from tools.mutants_clients import seen_by_a_client

MUTANTS = all_mutants()
QUICK = ("acknowledged-before-durable", "applied-before-durable", "value-chosen-at-apply")
"""Each is found by one of the first seeds."""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_applies_and_changes_code(mutant: Mutant) -> None:
    assert mutant.mutated(ROOT)


def test_there_is_a_mutant_for_each_bug_of_the_list() -> None:
    assert len(MUTANTS) >= 26
    rules = (ROOT / "docs" / "safety.md").read_text()
    for mutant in MUTANTS:
        assert re.fullmatch(r"S\d+|(paper|thesis) [\d.]+", mutant.rule)
        assert mutant.rule.startswith(("paper", "thesis")) or f"**{mutant.rule}**" in rules


def test_no_code_of_the_product_knows_of_mutants() -> None:
    knowing = [path for path in (ROOT / "nebuladb").rglob("*.py") if "mutant" in path.read_text().lower()]
    assert knowing == []


def change(old: str, new: str, file: str = "nebuladb/ids.py") -> str:
    return f"rule: S1\nbug: x\n\nfile: {file}\n<<<<\n{old}\n====\n{new}\n>>>>\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("rule: S1\nbug: x\n", "not a mutant"),
        (change("no such line", "other"), "0 times"),
        (change("a", "b", "nebuladb/sim/world.py"), "not the product's"),
        (change("from __future__ import annotations", "from __future__ import annotations  # why"), "no code"),
    ],
)
def test_a_mutant_that_does_nothing_is_refused(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.patch"
    path.write_text(text)
    with pytest.raises(MutantError, match=why):
        load(path).mutated(ROOT)


def test_the_simulator_finds_known_bugs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--first", "--seeds", "10", "--jobs", "2"]) == 0
    out = capsys.readouterr().out
    assert "missed=0" in out
    assert all(f"{name} " in out for name in QUICK)


def test_clients_hunt_on_where_the_first_oracle_is_none_of_theirs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.mutants.CLIENT_SEEDS", 2)
    assert main([QUICK[1], "--seeds", "3"]) == 1  # two seeds are too few for a client to see it
    captured = capsys.readouterr()
    assert "missed=0 client_seen=0" in captured.out
    assert "broke off" not in captured.err


def result(oracle: str, violation: str = "x") -> Result:
    return Result(1, Report(seeds=1), "", violation, oracle)


@pytest.mark.parametrize(
    ("oracle", "violation", "seen"),
    [
        ("workloads.bank", "x", True),
        ("invariants.changes", "x", True),
        ("recovery", "1 ms after the last fault was mended this is not so: puts succeed; n1", True),
        ("recovery", "1 ms after the last fault was mended this is not so: leases end; n1", True),
        ("recovery", "1 ms after the last fault was mended this is not so: level; n1", False),
        ("workloads.operator", "x", False),
        ("workloads.steward", "x", False),
        ("invariants.logs", "x", False),
        ("Corruption in storage.log", "x", False),
        ("", "", False),
    ],
)
def test_only_what_clients_are_told_counts_as_seen_by_one(oracle: str, violation: str, seen: bool) -> None:
    assert seen_by_a_client(result(oracle, violation)) is seen


@pytest.mark.parametrize("name", ["group-destroyed-by-absence", "lease-clock-runs-ahead", "session-steps-the-revision"])
def test_clients_alone_see_what_an_oracle_inside_sees_first(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--clients", "--seeds", "10"]) == 0
    assert "missed=0 client_seen=1" in capsys.readouterr().out


def test_what_is_kept_is_not_hunted_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep = tmp_path / "kept"
    find = '{"seed": 7, "oracle": "client", "client": true, "steps": 9, "seconds": 1.5, "tried": 6, "violation": "x"}'
    keep.write_text(f'{{"mutant": "{QUICK[0]}", "first": {find}, "clients": null}}\n')
    assert main([QUICK[0], "--seeds", "0", "--keep", str(keep)]) == 0
    assert "seed 7, client, 9 steps, 1.5 s; a client saw it" in capsys.readouterr().out
    assert main([*QUICK[:2], "--first", "--seeds", "10", "--keep", str(keep)]) == 0
    assert [QUICK[1] in line for line in keep.read_text().splitlines()] == [False, True]


def test_a_mutant_that_no_seed_finds_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "        self.leader_changes = self.proposed_entries = 0"
    harmless = change(line, line.replace("= 0", "= 1"), "nebuladb/node/replica.py")
    (tmp_path / "harmless.patch").write_text(harmless)
    monkeypatch.setattr("tools.mutants.DIRECTORY", tmp_path)
    assert main(["harmless", "--seeds", "1"]) == 1

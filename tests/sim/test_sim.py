"""Whole clusters, some seeds: the long run is `make sim`."""

from __future__ import annotations

import os
import subprocess
import sys
from random import Random

import pytest

from nebuladb.sim.__main__ import main
from nebuladb.sim.faults import Faults
from nebuladb.sim.report import Report
from nebuladb.sim.runner import run_seed
from nebuladb.sim.world import Result, Variant

SEEDS = [seed for seed in range(1, 100) if not Faults.draw(Random(f"{seed} faults")).ambush][:20]
"""With a mix of faults each."""
SECONDS = 4.0
MEMBER_SEEDS = 6


def test_clusters_survive_their_faults() -> None:
    total = Report()
    for seed in SEEDS:
        result = run_seed(seed, nodes=3, seconds=SECONDS)
        assert not result.violation, f"seed {seed}: {result.violation}"
        total.add(result.report)
    # Faults that don't bite prove nothing.
    assert total.crashes > 20
    assert total.partitions > 5
    assert total.dropped > 100
    assert total.duplicated > 100
    assert total.leader_changes > 3 * len(SEEDS)
    assert total.ops_ok > 100 * len(SEEDS)
    assert total.ops_failed > 0
    assert total.ops_unknown > 0


@pytest.mark.parametrize("nodes", [1, 5])
def test_clusters_of_other_sizes(nodes: int) -> None:
    total = Report()
    for seed in range(1, 5):
        result = run_seed(seed, nodes=nodes, seconds=SECONDS)
        assert not result.violation
        total.add(result.report)
    assert total.ops_ok > 100


def test_nodes_are_added_removed_and_replaced_under_faults() -> None:
    total = Report()
    seeds = [seed for seed in range(1, 60) if Faults.draw(Random(f"{seed} faults")).members_every][:MEMBER_SEEDS]
    for seed in seeds:
        result = run_seed(seed, nodes=3, seconds=SECONDS)
        assert not result.violation, f"seed {seed}: {result.violation}"
        total.add(result.report)
    assert total.faults["node added"] + total.faults["node replaced"] > 0
    assert total.faults["node removed"] + total.faults["node replaced"] > 0
    assert total.faults["removed node stops"] + total.faults["removed node asks"] > 0


# Each of these seeds found a bug once; the sentence says which. (A seed means something else after the simulator
# changed, so each bug has a test of its own beside the code, too.)
@pytest.mark.parametrize(
    ("seed", "seconds"),
    [
        pytest.param(1, 5.0, id="a restart moved the lease clock by the machine's uptime"),
        pytest.param(5, 5.0, id="a new group whose first write stalled never started"),
        pytest.param(15, 5.0, id="groups that found the log batch full waited for a tick"),
        pytest.param(23, 5.0, id="two HASHes in one entry took two states under one index"),
        pytest.param(52, 6.0, id="a replica without data waited 15 s for a snapshot that nobody sent any more"),
        pytest.param(5264, 9.0, id="a slice for damaged data was run on what stood in for it"),
        pytest.param(5331, 9.0, id="a slice was run on data that had been found damaged meanwhile"),
        pytest.param(5615, 9.0, id="a keyspace dropped from an old picture of meta left a replica behind"),
        pytest.param(5702, 9.0, id="a keyspace planned from an old picture had no replica on a new member"),
        pytest.param(5532, 9.0, id="who missed a replacement heard nothing of a leader that came by it"),
        pytest.param(200230, 10.0, id="half an entry that nobody knew to be committed was in the way of a snapshot"),
    ],
)
def test_seeds_that_found_something(seed: int, seconds: float) -> None:
    result = run_seed(seed, nodes=3, seconds=seconds)
    assert not result.violation


def test_a_seed_replays_also_under_another_hash_seed() -> None:
    lines = set()
    for hash_seed in ("0", "1", "4711"):
        command = [sys.executable, "-m", "nebuladb.sim", "--seed", "7", "--seconds", "2"]
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        *table, last = run.stdout.splitlines()
        pairs = dict(pair.split("=") for pair in last.split())
        for measured in ("wall_seconds", "cpu_seconds", *(pair for pair in pairs if pair.endswith("_per_cpu_second"))):
            del pairs[measured]
        lines.add((*table, *pairs.items()))
    assert len(lines) == 1
    assert ("violations", "0") in next(iter(lines))
    assert run_seed(8, nodes=3, seconds=2.0).trace != run_seed(9, nodes=3, seconds=2.0).trace


def test_a_run_reports_what_happened(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "6", "--first-seed", "1", "--seconds", "4", "--jobs", "1"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    report = {name: float(value) for name, value in (pair.split("=") for pair in last.split())}
    assert report["sim_seconds"] > 24
    assert min(report[name] for name in ("steps", "messages", "delivered", "ops_ok", "ops_failed", "ops_unknown")) > 100
    operations = report["ops_ok"] + report["ops_failed"] + report["ops_unknown"]
    assert report["ops_per_sim_second"] == pytest.approx(operations / report["sim_seconds"], rel=0.01)
    assert report["ops_per_sim_second"] > 50
    assert report["unknown_percent_under_kills"] > 5
    arrived = report["delivered"] + report["calls"]
    assert report["calls"] > 100
    assert report["messages_per_cpu_second"] == pytest.approx(arrived / report["cpu_seconds"], rel=0.1)
    counts = {tuple(line.split(maxsplit=2)[::2]): line.split()[1] for line in table}
    assert int(counts["fault", "kill"]) + int(counts["fault", "power cut"]) > 3
    assert int(counts["probe", "append rejected"]) > 0
    assert "never" in counts.values()


@pytest.mark.parametrize("variant", [variant for variant in Variant if variant is not Variant.NONE])
def test_a_broken_world_is_found(variant: Variant) -> None:
    assert any(run_seed(seed, nodes=3, seconds=5.0, variant=variant).violation for seed in range(1, 30))


def test_a_violation_ends_with_exit_code_1_and_the_command_that_replays_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nebuladb.sim.recovery.BOUND_MS", 0)
    assert main(["--seeds", "1", "--first-seed", "3", "--seconds", "1", "--jobs", "1"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].endswith("violations=1")
    assert "replay: python -m nebuladb.sim --seed 3 --seconds 1 --trace" in err


def test_a_history_that_was_not_decided_ends_with_exit_code_1_and_the_seed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was counted, and proved nothing."""
    result = Result(3, Report(seeds=1, undecided=2), "")
    monkeypatch.setattr("nebuladb.sim.__main__.run_seeds", lambda *_, **__: iter([result]))
    assert main(["--seeds", "1", "--first-seed", "3"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].endswith("violations=0")
    assert err == "seed 3: 2 histories were not decided\n"

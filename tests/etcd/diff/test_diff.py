"""The differential test in short runs, and that it would notice."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.etcd.diff import normal
from tests.etcd.diff.mutant import MUTANTS
from tests.etcd.diff.run import Difference, Run
from tests.etcd.diff.shrink import shrink
from tests.etcd.diff.target import Target
from tests.etcd.servers import ETCD, Nebula, RealEtcd

OPERATIONS = 700
MOST_NORMALISED = 40
"""Lines of code that make answers equal before they are compared."""
pytestmark = pytest.mark.skipif(ETCD is None, reason="etcd isn't installed here (Debian: etcd-server)")


@pytest.fixture
def reference(tmp_path: Path) -> Iterator[Target]:
    with RealEtcd(tmp_path / "etcd") as etcd:
        target = Target(etcd.endpoints[0])
        yield target
        target.close()


def test_ours_answers_as_etcd_does(reference: Target, tmp_path: Path) -> None:
    with Nebula(tmp_path / "nebula", 1) as ours:
        other = Target(ours.endpoints[0])
        run = Run(7, reference, other)
        try:
            run.run(range(OPERATIONS))
        finally:
            other.close()
    assert run.tally.operations == OPERATIONS
    assert run.tally.share_wrong >= 0.3


def test_etcd_answers_as_etcd_does(reference: Target, tmp_path: Path) -> None:
    with RealEtcd(tmp_path / "other") as twin:
        other = Target(twin.endpoints[0])
        run = Run(8, reference, other)
        try:
            run.run(range(OPERATIONS // 2))
        finally:
            other.close()


@pytest.mark.parametrize("name", MUTANTS)
def test_one_wrong_answer_is_found(name: str, reference: Target, tmp_path: Path) -> None:
    shim = [sys.executable, "-m", "tests.etcd.diff.mutant", name]
    with Nebula(tmp_path / "nebula", 1, prefix=lambda _: shim) as ours:
        other = Target(ours.endpoints[0])
        run = Run(9, reference, other, families=("kv_ops",))
        try:
            with pytest.raises(Difference) as found:
                run.run(range(OPERATIONS))
        finally:
            other.close()
    assert f"KV/{MUTANTS[name][0]}" in str(found.value)


def test_what_is_normalised_is_little() -> None:
    tree = ast.parse(Path(normal.__file__).read_text())
    lines = {
        node.lineno
        for function in tree.body
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.stmt | ast.expr | ast.pattern)
    }
    assert 15 < len(lines) < MOST_NORMALISED


def test_a_failing_sequence_is_made_smaller() -> None:
    runs: list[Sequence[int]] = []

    def again(numbers: Sequence[int]) -> Difference | None:
        runs.append(numbers)
        return Difference(170, "step", "one", "other") if {31, 170} <= set(numbers) else None

    few, last = shrink(range(200), Difference(199, "step", "one", "other"), again, 100)
    assert few == [31, 170]
    assert last.operation == 170
    assert len(runs) < 50

"""The matrix sees marks, gaps, and lines that don't exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import etcd_matrix


def test_the_matrix_sees_gaps() -> None:
    listed = etcd_matrix.lines("# Head\n1. one\n2. two\n   more\n57. auth\n\n- no line\n")
    assert listed == {1: "one", 2: "two", 57: "auth"}
    printed, gaps = etcd_matrix.report(listed, {1: ["tests/a.py::test_a"], 9: ["tests/a.py::test_b"]})
    assert gaps == [2, 9]
    assert "       tests/a.py::test_a" in printed
    assert sum("NO TEST" in line for line in printed) == 1


def test_marks_are_read_from_tests_alone() -> None:
    source = (
        "@pytest.mark.etcd(3, 4)\nasync def test_x(): ...\n@pytest.mark.etcd(5)\ndef helper(): ...\ndef test_y(): ...\n"
    )
    assert list(etcd_matrix.marks(source)) == [("test_x", [3, 4])]
    said = 'def test_z():\n    """etcd 4 to 6, 15 and 17: there 99 is meant."""\n'
    assert list(etcd_matrix.marks(said)) == [("test_z", [4, 5, 6, 15, 17])]
    assert etcd_matrix.named("What etcd 3.5.16 does.") == []
    assert etcd_matrix.named("etcd 3.5 does it.") == [], "a version is no line"


def test_every_mark_names_a_line_that_exists() -> None:
    if not etcd_matrix.LIST.exists():
        pytest.skip("the list of etcd's lines isn't beside this repository")
    listed = etcd_matrix.lines(etcd_matrix.LIST.read_text())
    assert len(listed) >= 66
    assert set(etcd_matrix.holders(Path(etcd_matrix.ROOT, "tests"))) <= set(listed)

"""The matrix sees marks, gaps, and lines that don't exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from tools import etcd_matrix

NAMED: Final = re.compile(r"\((etcd [\d,andto\s]+?)[;)]")


def test_the_matrix_sees_gaps() -> None:
    listed = etcd_matrix.lines("# Head\n1. one\n2. two\n   more\n57. auth\n\n- no line\n")
    assert listed == {1: "one", 2: "two more", 57: "auth"}
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
    listed = etcd_matrix.lines(etcd_matrix.LIST.read_text())
    assert sorted(listed) == list(range(1, len(listed) + 1))
    assert len(listed) >= 66
    held = set(etcd_matrix.holders(Path(etcd_matrix.ROOT, "tests")))
    assert held | set(etcd_matrix.PENDING) == set(listed)


def test_numbers_in_the_code_lead_to_the_page() -> None:
    listed = etcd_matrix.lines(etcd_matrix.LIST.read_text())
    texts = [path.read_text() for path in sorted(Path(etcd_matrix.ROOT, "nebuladb").rglob("*.py"))]
    named = {number for text in texts for said in NAMED.findall(text) for number in etcd_matrix.named(said)}
    assert len(named) > 40
    assert named <= set(listed)


def test_the_page_has_the_numbers_of_what_it_was_made_from(tmp_path: Path) -> None:
    source = tmp_path / "list.md"
    assert etcd_matrix.differing([1, 2], source) == [], "there is none"
    source.write_text("1. one\n3. three\n")
    assert etcd_matrix.differing([1, 2], source) == [2, 3]
    assert etcd_matrix.differing([1, 3], source) == []
    assert etcd_matrix.differing(etcd_matrix.lines(etcd_matrix.LIST.read_text()), etcd_matrix.SOURCE) == []


def test_no_number_is_given_twice() -> None:
    with pytest.raises(ValueError, match="the number 2"):
        etcd_matrix.lines("1. one\n2. two\n2. three\n")

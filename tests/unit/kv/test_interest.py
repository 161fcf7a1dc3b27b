"""What a key was before a revision that changed it more than once (etcd 38)."""

from __future__ import annotations

from nebuladb.kv.change import Change
from nebuladb.kv.interest import before_the_revision
from nebuladb.kv.rows import Record


def record(main: int, sub: int, version: int, value: bytes) -> Record:
    return Record(main, sub, version and main, version, 0, 0, 0, False, 0, 0, 0, value)  # noqa: FBT003


def test_a_key_that_one_revision_changes_twice_was_what_it_was_before_it() -> None:
    old, other = record(3, 0, 1, b"old"), record(4, 0, 1, b"other")
    put, gone = record(9, 0, 2, b"new"), record(9, 2, 0, b"")
    changes = [Change(b"a", put, old), Change(b"b", record(9, 1, 2, b"x"), other), Change(b"a", gone, put)]
    assert [change.previous for change in before_the_revision(iter(changes))] == [old, other, old]
    created = [Change(b"a", record(9, 0, 1, b"new"), None), Change(b"a", gone, record(9, 0, 1, b"new"))]
    assert [change.previous for change in before_the_revision(created)] == [None, None]
    again = record(9, 3, 1, b"again")
    assert before_the_revision([*changes, Change(b"a", again, None)])[-1].previous is None
    assert [change.record for change in before_the_revision(changes)] == [change.record for change in changes]

"""Two HASHes in one entry have one index, so they name one state (found by the simulator)."""

from __future__ import annotations

from tests.unit.kv.helpers import HASH, Log, finish, fresh, put, run


def test_the_first_hash_of_an_entry_is_the_hash_at_its_index() -> None:
    store, _ = fresh()
    log = Log()
    run(store, log, put(b"a"), HASH)
    other, _ = fresh()
    other_log = Log()
    run(other, other_log, put(b"a"), HASH, put(b"b"), HASH, put(b"c"))
    finish(store)
    finish(other)
    assert log.index == other_log.index
    assert store.hash_at(log.index) == other.hash_at(log.index) is not None

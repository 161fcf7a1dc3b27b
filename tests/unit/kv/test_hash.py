"""The hash sees the logical state, all of it, and nothing else (S28)."""

from __future__ import annotations

from typing import Any

import pytest

from nebuladb.errors import Corruption
from nebuladb.kv import hashing
from nebuladb.kv.limits import Limits
from nebuladb.kv.rows import KEY_AT, Keys, Record
from nebuladb.kv.store import Store
from nebuladb.kv.view import load
from nebuladb.storage.engine import Batch
from nebuladb.storage.memory import MemoryEngine
from tests.unit.kv.helpers import (
    GENERATION,
    GROUP,
    HASH,
    NODE,
    Log,
    compact,
    delete,
    drain,
    finish,
    fresh,
    grant,
    open_session,
    put,
    run,
    state_hash,
)


def populated() -> tuple[Store, MemoryEngine, Log]:
    engine = MemoryEngine(wal=False)
    store, _ = fresh(engine=engine)
    log = Log()
    run(store, log, open_session(), grant(5), put(b"a", b"1", 5), put(b"a", b"2", 5), put(b"b", b"1"), delete(b"b"))
    run(store, log, put(b"b", b"2", session=1 << 16, sequence=1), put(b"c", b"1"), delete(b"c"), compact(4))
    run(store, log, put(b"a", b"3"))
    return store, engine, log


def test_every_bit_of_every_logical_row_counts() -> None:
    store, engine, log = populated()
    finish(store)
    good = state_hash(store, log)
    keys = Keys(GROUP, GENERATION)
    flips = 0
    for row, value in list(engine.scan(keys.state[:-1], keys.state[:-1] + b"\xff")):
        if row in (keys.deletion, keys.state):
            continue
        for bit in range(0, len(value) * 8, 3):
            damaged = bytearray(value)
            damaged[bit // 8] ^= 1 << bit % 8
            copy = MemoryEngine(wal=False)
            batch = Batch()
            for other, data in engine.scan(b"", b"\xff" * 20):
                batch.put(other, bytes(damaged) if other == row else data)
            copy.write(batch)
            try:
                again = Store(copy, GROUP, GENERATION, NODE)
                assert state_hash(again, Log(again.index)) != good, (row[KEY_AT - 1 :], bit)
            except Corruption:
                pass
            flips += 1
    assert flips > 1000


def test_the_hash_is_of_the_state_at_its_command() -> None:
    store, _, log = populated()
    other, _, other_log = populated()
    run(store, log, HASH, put(b"z"))
    run(other, other_log, HASH)
    assert (store.revision, other.revision) == (other.revision + 1, store.revision - 1)
    finish(store)
    finish(other)
    assert store.hash_at(log.index) == other.hash_at(log.index) is not None
    assert store.hash_at(log.index - 1) is None


def test_hashes_and_their_snapshots_are_bounded() -> None:
    store, _ = fresh(Limits(hash_jobs=2, hashes_kept=3, snapshot_age=10))
    log = Log()
    for _ in range(3):
        run(store, log, HASH)
    assert [store.hashing(index) for index in (1, 2, 3)] == [True, False, True], "what has begun comes to its end"
    finish(store)
    assert [store.hash_at(index) is not None for index in (1, 2, 3)] == [True, False, True]
    for _ in range(3):
        run(store, log, HASH)
        finish(store)
    assert [store.hash_at(index) is not None for index in range(1, 7)] == [False] * 3 + [True] * 3
    run(store, log, put(b"a"))
    run(store, log, HASH)
    drain(store, [log.work(put(b"a")) for _ in range(11)])
    finish(store)
    assert store.hash_at(8) is None


def test_a_missing_row_of_history_is_corruption() -> None:
    store, engine, log = populated()
    batch = Batch()
    batch.delete(Keys(GROUP, GENERATION).record_key(store.revision, 0))
    engine.write(batch)
    drain(store, [log.work(HASH)])
    with pytest.raises(Corruption):
        finish(store)


def test_a_tombstone_between_a_record_and_the_floor_is_not_looked_for() -> None:
    digests = set()
    for thorough in (False, True):
        store, _ = fresh()
        log = Log()
        run(store, log, put(b"k"), delete(b"k"), put(b"a"), put(b"k"), compact(4))
        if thorough:
            finish(store)
        digests.add(state_hash(store, log))
        assert store.get(b"k", 4) is None
    assert len(digests) == 1


def test_a_put_over_a_compacted_tombstone_writes_the_same_whether_it_is_deleted_yet_or_not() -> None:
    before = [put(b"a"), put(b"k"), delete(b"k"), put(b"a"), compact(5)]
    after = [put(b"k"), delete(b"k"), put(b"k")]
    digests = set()
    for way in ("in one slice", "in two", "in two with the deletion between them"):
        store, _ = fresh()
        log = Log()
        if way == "in one slice":
            run(store, log, *before, *after)
        else:
            run(store, log, *before)
            if way != "in two":
                finish(store)
            run(store, log, *after)
        digests.add(state_hash(store, log))
    assert len(digests) == 1


def test_a_long_history_is_hashed_in_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    def counted(*arguments: Any) -> Record:
        looked[-1] += 1
        return load(*arguments)

    monkeypatch.setattr(hashing, "load", counted)
    engine = MemoryEngine(wal=False)
    store, _ = fresh(engine=engine)
    log = Log()
    run(store, log, put(b"a"), *(put(b"k") for _ in range(100)), put(b"z"), HASH)
    steps = 0
    while not store.hashed:
        looked.append(0)
        store.background(8)
        steps += 1
    assert max(looked) <= 9
    assert steps > 10
    (_, digest), *_ = store.hashed
    whole, _ = fresh()
    again = Log()
    run(whole, again, put(b"a"), *(put(b"k") for _ in range(100)), put(b"z"), HASH)
    while not whole.hashed:
        looked.append(0)
        whole.background(1_000)
    assert whole.hashed[0][1] == digest

"""The store against the model, whole logs at a time."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nebuladb.env import probe
from nebuladb.errors import Compacted, WriteStalled
from nebuladb.kv.answer import Answer, KeyValue
from nebuladb.kv.change import Applied, Change
from nebuladb.kv.command import Work
from nebuladb.kv.limits import Limits
from nebuladb.kv.store import Store
from nebuladb.storage.memory import Fault, MemoryEngine
from tests.unit.kv.helpers import Log, attached, drain, finish, fresh, reopen, state_hash
from tests.unit.kv.model import Model
from tests.unit.kv.programs import build, program, with_hash

pytestmark = pytest.mark.usefixtures("small_bounds")

limits = st.builds(
    lambda rows, size, cache: Limits(slice_rows=rows, slice_bytes=size, cache_bytes=cache),
    st.sampled_from([1, 2, 5, 20, 4096]),
    st.sampled_from([1, 500, 1 << 20]),
    st.sampled_from([0, 2000, 1 << 20]),
)


def plain(answers: list[tuple[int, Answer]]) -> list[tuple[int, Answer]]:
    """Without the texts, which are no part of an answer."""
    return [(request, answer._replace(message="")) for request, answer in answers]


def told(calls: list[Applied]) -> list[tuple[int, Answer]]:
    return plain([pair for call in calls for pair in call.answers])


def check_reads(store: Store, model: Model) -> None:
    """Everything readable is what the model has."""
    assert (store.revision, store.floor, store.clock) == (model.revision, model.floor, model.clock)
    for revision in range(max(model.floor, 1), model.revision + 1):
        at = model.maps[revision]
        whole = store.range(b"\0", b"\0", revision=revision)
        assert whole.kvs == tuple(at[key] for key in sorted(at))
        assert all(store.get(key, revision) == at.get(key) for key in [b"a", b"b\0", b"ca", b"none"])
    assert store.key_count == len(model.now)
    assert store.size == sum(len(key) + len(kv.value) for key, kv in model.now.items())
    for lease, row in model.leases.items():
        info = store.lease(lease)
        assert info is not None
        assert info.ttl == row.ttl // 1000
        assert info.remaining == max(row.expires - model.clock - 1, 0) // 1000
        assert list(attached(store, lease)) == sorted(key for key, kv in model.now.items() if kv.lease == lease)
    by_row = sorted(model.leases, key=lambda lease: (lease < 0, lease))
    assert [tuple(lease) for lease in store.leases()] == [(i, *model.leases[i]) for i in by_row]


def check_changes(store: Store, model: Model, rows: int) -> None:
    """History is the model's events from every revision that may be asked for."""
    with pytest.raises(Compacted):
        store.changes(model.floor - 2)
    before: dict[tuple[int, bytes], KeyValue | None] = {}
    for event in model.events:
        before.setdefault((event.revision, event.key), event.previous)
    for after in range(max(model.floor - 1, 0), model.revision + 1):
        wanted = [event for event in model.events if event.revision > after]
        got: list[Change] = []
        position = after
        while part := store.changes(position, limit_rows=rows, previous=True):
            got += part
            position = part[-1].revision
        assert [(c.revision, c.key, None if c.deleted else c.kv) for c in got] == [event[:3] for event in wanted]
        for change, event in zip(got, wanted, strict=True):
            # What a put makes was nothing, whatever the revision deleted before it (etcd 38).
            made = event.kv is not None and event.kv.version == 1
            previous = None if made else before[event.revision, event.key]
            assert change.previous_kv == (previous if event.revision > model.floor else None)


@given(program, limits, st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_every_answer_read_and_change_is_the_models(entries: list[Any], bounds: Limits, random: Random) -> None:
    model = Model()
    store, _ = fresh(bounds)
    works, _ = build(entries, Model())
    for work in works:
        expected = model.apply(work)
        assert told(drain(store, [work])) == plain(expected)
        for _ in range(random.randrange(3)):
            store.background(random.randrange(1, 5))
        if random.randrange(3) == 0:
            check_reads(store, model)
    check_reads(store, model)
    check_changes(store, model, random.randrange(1, 4))


def run_all(store: Store, works: list[Work]) -> tuple[list[Applied], bytes]:
    calls = drain(store, works)
    finish(store)
    digest = store.hash_at(works[-1].index)
    assert digest is not None
    return calls, digest


@given(program, limits)
@settings(max_examples=150, deadline=None)
def test_slices_and_deletion_change_nothing(entries: list[Any], bounds: Limits) -> None:
    works, answers = build(entries, Model())
    works = with_hash(works)
    one, _ = fresh()
    calls, digest = run_all(one, works)
    other, _ = fresh(bounds)
    for work in works:
        other_calls = drain(other, [work])
        finish(other)
    assert other.hash_at(works[-1].index) == digest
    third, _ = fresh(bounds)
    third_calls, third_digest = run_all(third, works)
    assert third_digest == digest
    assert told(calls)[: len(answers)] == told(third_calls)[: len(answers)] == plain(answers)
    feed = [change for call in calls for change in call.events]
    if not any(call.missing for call in third_calls):
        assert [change for call in third_calls for change in call.events] == feed
    leases = [[change for call in each for change in call.leases] for each in (calls, third_calls)]
    assert leases[0] == leases[1]
    assert other_calls[-1].index == works[-1].index


@given(program, limits, st.integers(0, 1 << 30))
@settings(max_examples=150, deadline=None)
def test_a_crash_anywhere_and_the_log_again_give_the_same(entries: list[Any], bounds: Limits, seed: int) -> None:
    works, _ = build(entries, Model())
    whole, _ = fresh()
    drain(whole, works)
    digest = state_hash(whole, Log(whole.index))
    random = Random(seed)
    engine = MemoryEngine(wal=False)
    store, _ = fresh(bounds, engine)
    engine.flush()
    crashes = 5
    while store.index < works[-1].index:
        if random.randrange(4) == 0:
            engine.fail(Fault.STALL, 1)
            revision = store.revision
            with pytest.raises(WriteStalled):
                store.apply(works)
            assert store.revision == revision
        store.apply(works)
        event = random.randrange(6)
        if event == 0:
            engine.flush()
        elif event == 1 and crashes:
            crashes -= 1
            store.close()
            engine = engine.crash(random)
            store = reopen(engine, bounds)
        elif event == 2:
            store.background(2)
    finish(store)
    assert state_hash(store, Log(store.index)) == digest


def test_the_programs_reach_the_rare_paths() -> None:
    """Runs last in this file: the properties above are worth what they reach."""
    for name in ("command sliced", "session evicted", "expiry void", "apply stalled"):
        assert probe.hits[name] > 0, name

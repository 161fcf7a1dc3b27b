"""A backup on top of an earlier one: the same state as if all had been saved, or a refusal."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nebuladb.errors import Unavailable
from nebuladb.ids import Generation
from nebuladb.kv.export import Exporter
from nebuladb.kv.importer import Importer
from nebuladb.kv.increment import IncrementExporter, IncrementTarget
from nebuladb.kv.store import Store
from nebuladb.kv.verify import verify_rows
from nebuladb.storage.engine import Engine
from nebuladb.storage.memory import MemoryEngine
from tests.unit.kv.helpers import (
    GENERATION,
    GROUP,
    NODE,
    Log,
    compact,
    delete,
    finish,
    fresh,
    grant,
    open_session,
    put,
    run,
    state_hash,
)

HERE = Generation(1)


def take(exporter: Exporter) -> list[bytes]:
    chunks = list(iter(exporter.read, None))
    exporter.close()
    return chunks


def bring(engine: Engine, chunks: list[bytes], *, on_top: bool) -> Store:
    importer = Importer(IncrementTarget(engine, GROUP, HERE) if on_top else engine, GROUP, HERE)
    for chunk in chunks:
        importer.feed(chunk)
    assert importer.done
    return Store(engine, GROUP, HERE, NODE)


KEYS = st.sampled_from([b"a", b"b", b"c"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, st.sampled_from([0, 5])),
        st.tuples(st.just("delete"), KEYS, st.just(0)),
        st.tuples(st.just("compact"), KEYS, st.integers(0, 6)),
        st.tuples(st.just("background"), KEYS, st.just(0)),
    ),
    max_size=12,
)


def play(store: Store, log: Log, steps: list[tuple[str, bytes, int]]) -> None:
    for what, key, number in steps:
        if what == "put":
            run(store, log, put(key, b"%d" % log.index, number))
        elif what == "delete":
            run(store, log, delete(key))
        elif what == "compact":
            run(store, log, compact(store.revision - number))
        else:
            finish(store)


@settings(deadline=None, max_examples=60)
@given(STEPS, STEPS)
def test_an_increment_makes_of_the_earlier_state_the_later_one(
    before: list[tuple[str, bytes, int]], after: list[tuple[str, bytes, int]]
) -> None:
    store, engine = fresh()
    log = Log()
    run(store, log, open_session(), grant(5, 10), put(b"k", b"v", 5), clock=1_000)
    play(store, log, before)
    base, revision = take(Exporter(engine, GROUP, GENERATION)), store.revision
    play(store, log, after)
    other = MemoryEngine(wal=False)
    bring(other, base, on_top=False).close()
    if store.floor > revision:
        with pytest.raises(Unavailable):
            IncrementExporter(engine, GROUP, GENERATION, revision)
        return
    copy = bring(other, take(IncrementExporter(engine, GROUP, GENERATION, revision)), on_top=True)
    assert (copy.index, copy.revision, copy.floor) == (store.index, store.revision, store.floor)
    assert list(verify_rows(other, GROUP, HERE)) == []
    assert copy.changes(copy.floor) == store.changes(store.floor)
    finish(copy)
    finish(store)
    assert state_hash(copy, Log(log.index)) == state_hash(store, Log(log.index))
    assert list(verify_rows(other, GROUP, HERE)) == []

"""`LogStore` against a model that is too simple to be wrong, with crashes and faults; and what it refuses."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nebuladb.errors import Corruption, InvariantViolation, StoreError, WriteStalled
from nebuladb.ids import BatchId, GroupId
from nebuladb.raft.entry import Entry, encode_entry, entry_of
from nebuladb.raft.ready import HardState, LogReader
from nebuladb.storage.engine import Batch
from nebuladb.storage.log import LogStore
from nebuladb.storage.log_batch import GroupWrite, LogBatch
from nebuladb.storage.log_keys import START_ROW, entry_key, group_key
from nebuladb.storage.log_reader import RECENT_OVERHEAD, RecentEntries
from nebuladb.storage.memory import Fault, MemoryEngine

GROUPS = [GroupId(number) for number in (1, 2, 3)]


@dataclass
class Model:
    start: tuple[int, int]
    entries: list[Entry] = field(default_factory=list)
    hard_state: HardState = field(default_factory=HardState)

    def last(self) -> tuple[int, int]:
        return (self.entries[-1].index, self.entries[-1].term) if self.entries else self.start


def check(store: LogStore, models: dict[GroupId, Model], rng: Random) -> None:
    assert store.groups() == sorted(models)
    recent = store.recent
    assert recent.size == sum(len(record) + RECENT_OVERHEAD for record in recent.records.values())
    assert all(entry_of(record) in models[GroupId(group)].entries for (group, _), record in recent.records.items())
    for group, model in models.items():
        reader = store.reader(group)
        assert (reader.start(), reader.last()) == (model.start, model.last())
        assert store.hard_state(group) == model.hard_state
        first = model.start[0]
        assert [reader.term(first + step) for step in range(len(model.entries) + 1)] == [
            model.start[1],
            *(entry.term for entry in model.entries),
        ]
        if model.entries:
            assert reader.entries(first + 1, model.last()[0] + 1, 1 << 30) == model.entries
            low = rng.randrange(len(model.entries))
            high = rng.randrange(low + 1, len(model.entries) + 1)
            limit = rng.randrange(200)
            want = model.entries[low : low + 1]
            for entry in model.entries[low + 1 : high]:
                if sum(len(have.record) for have in [*want, entry]) > limit:
                    break
                want.append(entry)
            assert reader.entries(first + 1 + low, first + 1 + high, limit) == want


def change(batch: LogBatch, models: dict[GroupId, Model], rng: Random) -> None:
    """One random change, to the batch and the models alike."""
    group = rng.choice(GROUPS)
    model = models.get(group)
    if model is None:
        if group not in batch.dropped:
            model = models[group] = Model((rng.randrange(9), 1))
            model.hard_state = HardState(1, 0, model.start[0])
            batch.create(group, *model.start)
        return
    term = model.hard_state.term
    match rng.randrange(10):
        case 0:
            batch.drop(group)
            del models[group]
        case 1 if not any(write.group == group for write in batch.writes):
            index = model.start[0] + rng.randrange(len(model.entries) + 3)
            held = [entry.term for entry in model.entries if entry.index == index]
            cut_term = rng.choice([*held, *held, *held, term]) if index > model.start[0] else model.start[1]
            keep = index == model.start[0] or held == [cut_term]
            model.entries = [entry for entry in model.entries if keep and entry.index > index]
            model.start = (index, cut_term)
            model.hard_state = model.hard_state._replace(commit=index)
            batch.write(GroupWrite(group, model.hard_state))
            batch.cut(group, index, cut_term)
        case _ if not any(cut[0] == group for cut in batch.cuts):
            kept = len(model.entries) if rng.randrange(3) else rng.randrange(len(model.entries) + 1)
            term += rng.randrange(2)
            entries = [
                encode_entry(model.start[0] + kept + step + 1, term, 0, rng.randbytes(rng.randrange(40)))
                for step in range(rng.randrange(1, 6))
            ]
            model.entries[kept:] = entries
            model.hard_state = HardState(term, rng.randrange(3), model.start[0] + rng.randrange(len(model.entries) + 1))
            batch.write(GroupWrite(group, model.hard_state, entries))


@settings(deadline=None)
@given(seed=st.integers(0, 1 << 32), cache=st.sampled_from([0, 2000, 1 << 20]))
def test_equals_the_model(seed: int, cache: int) -> None:
    rng = Random(seed)
    engine = MemoryEngine(wal=True)
    store = LogStore(engine)
    store.recent.limit = cache
    models: dict[GroupId, Model] = {}
    history = [deepcopy(models)]
    flushed = 0
    for _ in range(20):
        batch = LogBatch(BatchId(store.last_batch + 1))
        for _ in range(rng.randrange(5)):
            change(batch, models, rng)
        if rng.randrange(5) == 0:
            engine.fail(Fault.STALL)
            with pytest.raises(WriteStalled):
                store.write(batch, BatchId(flushed))
            check(store, history[store.last_batch], rng)
        store.write(batch, BatchId(flushed))
        history.append(deepcopy(models))
        check(store, models, rng)
        event = rng.randrange(8)
        if event == 0:
            store.sync()
            flushed = store.last_batch
        elif event == 1:
            engine = engine.crash(rng)
            store = LogStore(engine)
            store.recent.limit = cache
            assert store.last_batch >= flushed
            flushed = store.last_batch
            del history[flushed + 1 :]
            models = deepcopy(history[flushed])
            check(store, models, rng)


def founded(entries: int = 0) -> tuple[MemoryEngine, LogStore]:
    engine = MemoryEngine(wal=True)
    store = LogStore(engine)
    batch = LogBatch(BatchId(1))
    batch.create(GROUPS[0], 5, 1)
    if entries:
        log = [encode_entry(6 + number, 1, 0, b"%d" % number) for number in range(entries)]
        batch.write(GroupWrite(GROUPS[0], HardState(1, 1, 5 + entries), log))
    store.write(batch, BatchId(0))
    return engine, store


def write_of(*entries: Entry) -> GroupWrite:
    return GroupWrite(GROUPS[0], None, list(entries))


def test_what_a_caller_must_not_do_changes_nothing() -> None:
    engine, store = founded(3)
    before = list(engine.scan(b"", b"\xff"))

    def refused(batch: LogBatch, flushed: int = 0) -> None:
        with pytest.raises(InvariantViolation):
            store.write(batch, BatchId(flushed))
        assert list(engine.scan(b"", b"\xff")) == before
        assert store.reader(GROUPS[0]).last() == (8, 1)

    refused(LogBatch(BatchId(1)))
    refused(LogBatch(BatchId(3)))
    refused(LogBatch(BatchId(2)), flushed=2)
    for bad in (
        write_of(encode_entry(11, 1, 0, b"")),  # a hole
        write_of(encode_entry(5, 1, 0, b"")),  # what was cut
        write_of(encode_entry(9, 1, 0, b""), encode_entry(11, 1, 0, b"")),
        write_of(encode_entry(9, 0, 0, b"")),  # an older term
        GroupWrite(GROUPS[1], HardState(1, 0, 0)),  # an unknown group
    ):
        batch = LogBatch(BatchId(2))
        batch.write(write_of(encode_entry(9, 1, 0, b"good")))
        batch.write(bad)
        if bad.entries and bad.entries[0].index == 9:
            batch.writes.pop(0)
        refused(batch)
    batch = LogBatch(BatchId(2))
    batch.create(GROUPS[0], 0, 0)
    refused(batch)
    batch = LogBatch(BatchId(2))
    batch.cut(GROUPS[0], 4, 1)
    refused(batch)
    batch = LogBatch(BatchId(2))
    batch.drop(GROUPS[0])
    batch.write(write_of(encode_entry(9, 1, 0, b"")))
    refused(batch)
    for low, high in ((5, 6), (6, 6), (6, 10)):
        with pytest.raises(InvariantViolation):
            store.reader(GROUPS[0]).entries(low, high, 1)


def test_forgets_nothing_on_a_failed_write() -> None:
    engine, store = founded(3)
    engine.fail(Fault.FULL)
    batch = LogBatch(BatchId(2))
    batch.write(write_of(encode_entry(7, 2, 0, b"")))
    with pytest.raises(StoreError):
        store.write(batch, BatchId(0))
    assert (store.last_batch, store.reader(GROUPS[0]).last()) == (1, (8, 1))


def damage(engine: MemoryEngine, *changes: tuple[bytes, bytes | None]) -> None:
    batch = Batch()
    for key, value in changes:
        batch.delete(key) if value is None else batch.put(key, value)
    engine.write(batch)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        (entry_key(1, 7), None, "group 1: log entry 7 is missing"),
        (entry_key(1, 6), None, "group 1: log entry 6 is missing"),
        (entry_key(1, 8), None, "hard state"),  # the last one: only the commit index knows
        (entry_key(1, 7), encode_entry(7, 1, 0, b"1").record[:-1] + b"2", "group 1, at index 7.*CRC"),
        (entry_key(1, 7), b"short", "group 1, at index 7"),
        (entry_key(1, 7), encode_entry(8, 1, 0, b"1").record, "holds entry 8"),
        (entry_key(1, 7), encode_entry(7, 3, 0, b"1").record, "older term"),
        (entry_key(1, 8), encode_entry(8, 3, 0, b"1").record, "hard state"),
        (group_key(START_ROW, 1), None, "no log start"),
    ],
)
def test_opening_finds_damage(key: bytes, value: bytes | None, text: str) -> None:
    engine, store = founded(3)
    LogStore(engine)
    damage(engine, (key, value))
    with pytest.raises(Corruption, match=text):
        LogStore(engine)
    assert store.reader(GROUPS[0]).entries(6, 9, 100)  # from memory


def test_reading_finds_damage() -> None:
    """Between opening and reading a disk can rot (S35)."""
    for key, value in ((entry_key(1, 7), encode_entry(8, 1, 0, b"1").record), (entry_key(1, 8), None)):
        engine, _ = founded(3)
        store = LogStore(engine)
        damage(engine, (key, value))
        with pytest.raises(Corruption, match="group 1"):
            store.reader(GROUPS[0]).entries(6, 9, 100)
    engine, _ = founded(3)
    store = LogStore(engine)
    engine.flip(entry_key(1, 7), 3, detected=False)
    with pytest.raises(Corruption, match="group 1, at index 7"):
        store.reader(GROUPS[0]).entries(7, 8, 1)


def test_healthy_followers_are_served_from_memory() -> None:
    engine, store = founded(3)
    for key, _ in list(engine.scan(b"e", b"f")):
        engine.flip(key, 0, detected=True)
    assert len(store.reader(GROUPS[0]).entries(6, 9, 1 << 20)) == 3


def test_memory_of_recent_entries_is_bounded() -> None:
    recent = RecentEntries(limit=5000)
    for index in range(1, 1000):
        recent.add(index % 3, [encode_entry(index, 1, 0, bytes(100))])
        assert recent.size <= 5000
    assert (999 % 3, 999) in recent.records
    assert (1, 1) not in recent.records


def test_a_reader_stays_valid() -> None:
    _, store = founded(1)
    reader: LogReader = store.reader(GROUPS[0])
    batch = LogBatch(BatchId(2))
    batch.write(write_of(encode_entry(7, 2, 0, b"")))
    store.write(batch, BatchId(0))
    assert reader.last() == (7, 2)
    assert reader is store.reader(GROUPS[0])


def test_drop_takes_back_what_the_batch_held() -> None:
    _, store = founded(1)
    batch = LogBatch(BatchId(2))
    batch.write(write_of(encode_entry(7, 2, 0, b"")))
    batch.cut(GROUPS[0], 6, 1)
    batch.drop(GROUPS[0])
    batch.create(GROUPS[1], 1, 1)
    batch.drop(GROUPS[1])
    assert bool(batch)
    assert batch.dropped == [GROUPS[0]], "the other was never there"
    store.write(batch, BatchId(0))
    assert store.groups() == []
    with pytest.raises(InvariantViolation):
        store.reader(GROUPS[0])


def test_drop_takes_back_nothing_of_other_groups() -> None:
    batch = LogBatch(BatchId(1))
    batch.write(write_of(encode_entry(7, 2, 0, b"")))
    batch.cut(GROUPS[0], 6, 1)
    batch.create(GROUPS[1], 1, 1)
    batch.drop(GROUPS[2])
    assert [write.group for write in batch.writes] == [GROUPS[0]]
    assert batch.cuts == [(GROUPS[0], 6, 1)]
    assert batch.created == [(GROUPS[1], 1, 1)]


def test_size_grows_with_what_is_added() -> None:
    batch = LogBatch(BatchId(1))
    assert (batch.size, bool(batch)) == (0, False)
    batch.write(write_of(encode_entry(7, 2, 0, bytes(1000))))
    assert 1000 < batch.size < 1200
    for add, least in (
        (partial(batch.register, GROUPS[0], bytes(50)), 50),
        (partial(batch.create, GROUPS[0], 1, 1), 1),
        (partial(batch.cut, GROUPS[0], 1, 1), 1),
        (partial(batch.drop, GROUPS[1]), 1),
    ):
        before = batch.size
        add()
        assert batch.size >= before + least


def test_what_is_overwritten_or_cut_leaves_memory() -> None:
    _, store = founded(1)
    for number, entries in enumerate((range(7, 10), range(7, 8)), 2):
        batch = LogBatch(BatchId(number))
        batch.write(write_of(*(encode_entry(index, number, 0, b"") for index in entries)))
        store.write(batch, BatchId(0))
    assert [index for index in range(7, 11) if (GROUPS[0], index) in store.recent.records] == [7]
    shape = store._groups[GROUPS[0]].shape
    assert shape.runs == ((5, 1), (7, 3))
    batch = LogBatch(BatchId(4))
    batch.cut(GROUPS[0], 7, 3)
    store.write(batch, BatchId(0))
    assert store._groups[GROUPS[0]].shape.runs == ((7, 3),)

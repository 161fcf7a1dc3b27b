"""What every `Engine` must do, and a `LogStore` over it: cases to be run over each implementation.

Shipped with the package, so that whoever writes an engine can test it. A case takes a `Harness` and raises
`AssertionError` where the engine under test differs::

    for case in ENGINE_CASES: case(my_harness())       # a fresh harness for each
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from random import Random
from typing import Final, Protocol

from nebuladb.errors import StoreError
from nebuladb.ids import BatchId, GroupId
from nebuladb.raft.entry import Entry, encode_entry
from nebuladb.raft.ready import HardState
from nebuladb.storage.engine import Batch, Engine, Reader
from nebuladb.storage.log import LogStore
from nebuladb.storage.log_batch import GroupWrite, LogBatch

RANDOM_BATCHES: Final = 300
EVERYTHING: Final = (b"", b"\xff" * 16)
GROUP: Final = GroupId(7)
OTHER: Final = GroupId(8)


class Harness(Protocol):
    """One database under test."""

    wal: bool

    def open(self) -> Engine:
        """Open it, empty at first; again after `close`."""
        ...


Case = Callable[[Harness], None]


def rows(reader: Reader, low: bytes = EVERYTHING[0], high: bytes = EVERYTHING[1]) -> list[tuple[bytes, bytes]]:
    """All pairs of a range."""
    return list(reader.scan(low, high))


def reads_what_was_written(harness: Harness) -> None:
    """Point reads, empty values, binary keys; the last operation on a key in a batch wins."""
    engine = harness.open()
    _equal(engine.get(b"k"), None)
    _write(engine, ("put", b"k", b"1"), ("put", b"\x00\xff", b""), ("put", b"gone", b"x"))
    _write(engine, ("put", b"k", b"2"), ("del", b"k"), ("put", b"k", b"3"), ("del", b"gone"), ("del", b"never"))
    _equal([engine.get(key) for key in (b"k", b"\x00\xff", b"gone", b"never")], [b"3", b"", None, None])
    engine.close()


def reads_from_memory_or_says_that_it_cannot(harness: Harness) -> None:
    """What `get_cached` says is true, and `get_many` knows the rest."""
    engine = harness.open()
    _write(engine, ("put", b"a", b"1"), ("put", b"empty", b""), ("put", b"gone", b"x"), ("put", b"range", b"y"))
    _write(engine, ("del", b"gone"), ("range", b"r", b"s"))
    wanted = {b"a": b"1", b"empty": b"", b"gone": None, b"range": None, b"never": None}
    for _ in range(2):
        for key, value in wanted.items():
            known, found = engine.get_cached(key)
            _equal(found, value if known else None)
        _equal(engine.get_many(list(wanted)), list(wanted.values()))
        _equal(engine.get_many([]), [])
        engine.flush()
    engine.close()


def keeps_snapshots_to_their_spans(harness: Harness) -> None:
    """A snapshot with spans reads within them, as of its time."""
    engine = harness.open()
    _write(engine, ("put", b"a", b"1"), ("put", b"b", b"2"), ("put", b"c", b"3"), ("put", b"d", b"4"))
    snapshot = engine.snapshot([(b"a", b"b\0"), (b"d", b"e")])
    _write(engine, ("put", b"a", b"9"), ("del", b"b"), ("put", b"dd", b"5"))
    for _ in range(2):
        _equal(list(snapshot.scan(b"a", b"b\0")), [(b"a", b"1"), (b"b", b"2")])
        _equal(list(snapshot.scan(b"d", b"e")), [(b"d", b"4")])
        _equal(list(snapshot.scan(b"a\0", b"b")), [])
    _equal([key for key, _ in snapshot.scan(b"a", b"b\0", reverse=True)], [b"b", b"a"])
    _equal(snapshot.get(b"c"), b"3")
    snapshot.close()
    engine.close()


def deletes_half_open_ranges(harness: Harness) -> None:
    """[low, high) in the batch's order; an empty or inverted range removes nothing and breaks nothing."""
    engine = harness.open()
    _write(engine, *(("put", bytes([65 + i]), b"x") for i in range(6)))
    _write(engine, ("range", b"B", b"D"), ("put", b"C", b"new"))
    _equal(rows(engine), [(b"A", b"x"), (b"C", b"new"), (b"D", b"x"), (b"E", b"x"), (b"F", b"x")])
    _write(engine, ("range", b"D", b"D"), ("range", b"E", b"A"), ("put", b"G", b"x"))
    _equal(b"".join(key for key, _ in rows(engine)), b"ACDEFG")
    _write(engine, ("put", b"E5", b"x"), ("range", b"E", b"F"))
    _equal(b"".join(key for key, _ in rows(engine)), b"ACDFG")
    engine.close()


def scans_in_order(harness: Harness) -> None:
    """Low bound included, high excluded, both directions, bounds that are no keys, empty and inverted ranges."""
    engine = harness.open()
    for view in (engine, engine.snapshot()):
        _equal(list(view.scan(*EVERYTHING)), [])
    keys = [b"", b"\x00", b"a", b"a\x00", b"ab", b"b", b"\xfe", b"\xff"]
    _write(engine, *(("put", key, key + b"!") for key in reversed(keys)))
    snapshot = engine.snapshot()
    for view in (engine, snapshot):
        for low in [*keys, b"a\x01", b"zz"]:
            for high in [*keys, b"a\x01", b"zz", b"\xff\xff"]:
                want = [(key, key + b"!") for key in keys if low <= key < high]
                _equal(list(view.scan(low, high)), want)
                _equal(list(view.scan(low, high, reverse=True)), want[::-1])
    snapshot.close()
    engine.close()


def scan_keeps_its_view(harness: Harness) -> None:
    """A scan that has begun sees no later write, whichever."""
    engine = harness.open()
    _write(engine, *(("put", b"%d" % i, b"old") for i in range(6)))
    scan = engine.scan(*EVERYTHING)
    first = next(scan)
    _write(engine, ("put", b"1", b"new"), ("del", b"2"), ("put", b"25", b"new"), ("range", b"3", b"5"))
    _equal([first, *scan], [(b"%d" % i, b"old") for i in range(6)])
    _equal([key for key, _ in rows(engine)], [b"0", b"1", b"25", b"5"])
    engine.close()


def snapshot_keeps_its_view(harness: Harness) -> None:
    """A snapshot sees no later write, survives a flush, and refuses after its close."""
    engine = harness.open()
    _write(engine, ("put", b"a", b"1"), ("put", b"bb", b"1"))
    snapshot = engine.snapshot()
    _write(engine, ("put", b"a", b"2"), ("del", b"bb"), ("put", b"c", b"2"))
    engine.flush()
    _equal(rows(snapshot), [(b"a", b"1"), (b"bb", b"1")])
    _equal([snapshot.get(key) for key in (b"a", b"bb", b"c")], [b"1", b"1", None])
    snapshot.close()
    snapshot.close()
    _refused(lambda: snapshot.get(b"a"))
    _refused(lambda: list(snapshot.scan(*EVERYTHING)))
    _equal(rows(engine), [(b"a", b"2"), (b"c", b"2")])
    engine.close()


def snapshot_serves_scans_side_by_side(harness: Harness) -> None:
    """Interleaved scans and reads of one snapshot don't disturb each other."""
    engine = harness.open()
    keys = [b"%03d" % number for number in range(40)]
    _write(engine, *(("put", key, b"old") for key in keys))
    snapshot = engine.snapshot()
    _write(engine, ("range", b"010", b"020"), *(("put", key + b"x", b"new") for key in keys))
    scans = [snapshot.scan(b"005", b"035", reverse=back) for back in (False, True, False, True)]
    got: list[list[bytes]] = [[], [], [], []]
    for turn in range(30):
        for scan, taken in zip(scans, got, strict=True):
            taken.extend(key for key, _ in islice(scan, 1 + turn % 3))
        _equal(snapshot.get(keys[turn]), b"old")
    _equal(got, [keys[5:35], keys[34:4:-1]] * 2)
    snapshot.close()
    engine.close()


def closes_over_what_lives(harness: Harness) -> None:
    """Open scans and snapshots, begun or not, don't keep the database from being opened again."""
    engine = harness.open()
    _write(engine, *(("put", b"%d" % i, b"x") for i in range(9)))
    engine.flush()
    snapshot = engine.snapshot()
    sources: list[Reader] = [engine, snapshot] * 2
    scans = [source.scan(*EVERYTHING, reverse=back) for source in sources for back in (False, True)]
    begun = [list(islice(scan, 2)) for scan in scans[:4]]
    engine.close()
    engine.close()
    again = harness.open()
    _equal(len(rows(again)), 9)
    _equal(len(begun), 4)
    for scan in scans:
        _refused(lambda scan=scan: list(scan))  # type: ignore[misc]
    for use in (
        lambda: engine.get(b"1"),
        lambda: list(engine.scan(*EVERYTHING)),
        lambda: _write(engine, ("put", b"late", b"")),
        engine.sync,
        engine.flush,
        engine.snapshot,
        lambda: snapshot.get(b"1"),
    ):
        _refused(use)
    again.close()


def keeps_what_was_made_durable(harness: Harness) -> None:
    """After `sync` (with a WAL) or `flush` a reopened database holds every write before it."""
    engine = harness.open()
    _write(engine, ("put", b"a", b"1"), ("put", b"bb", b"1"))
    if harness.wal:
        engine.sync()
    else:
        _refused(engine.sync)
        engine.flush()
    engine.close()
    engine = harness.open()
    _equal(rows(engine), [(b"a", b"1"), (b"bb", b"1")])
    engine.close()


def takes_a_batch_again(harness: Harness) -> None:
    """`Batch` is not consumed: it may be written twice, and an empty one does nothing."""
    engine = harness.open()
    batch = Batch()
    batch.put(b"a", b"1")
    engine.write(batch)
    _write(engine, ("del", b"a"))
    engine.write(batch)
    engine.write(Batch())
    _equal(rows(engine), [(b"a", b"1")])
    engine.close()


def equals_a_dictionary(harness: Harness) -> None:
    """Random batches, flushes, snapshots and reopenings against a dictionary."""
    rng = Random(1)
    engine = harness.open()
    model: dict[bytes, bytes] = {}
    for step in range(RANDOM_BATCHES):
        batch = Batch()
        for _ in range(rng.randrange(1, 12)):
            key, other = (b"%03d" % rng.randrange(200) for _ in range(2))
            kind = rng.randrange(8)
            if kind == 0:
                batch.delete(key)
                model.pop(key, None)
            elif kind == 1 and step % 4 == 0:
                batch.delete_range(key, other)
                model = {have: value for have, value in model.items() if not key <= have < other}
            else:
                batch.put(key, value := rng.randbytes(rng.randrange(40)))
                model[key] = value
        engine.write(batch)
        if step % 50 == 49:
            engine.flush()
            engine.close()
            engine = harness.open()
        low, high = (b"%03d" % rng.randrange(200) for _ in range(2))
        want = sorted((key, value) for key, value in model.items() if low <= key < high)
        _equal(rows(engine, low, high), want)
        _equal(list(engine.scan(low, high, reverse=True)), want[::-1])
    _equal(dict(rows(engine)), model)
    engine.close()


def log_replaces_the_tail(harness: Harness) -> None:
    """Entries that overwrite others take the whole old tail with them, on disk too, in one batch or two."""
    store = _founded(harness)
    _log(store, GroupWrite(GROUP, HardState(1, 1, 0), _entries(1, 10, 1)))
    _log(
        store,
        GroupWrite(GROUP, HardState(2, 2, 0), _entries(6, 9, 2)),
        GroupWrite(GROUP, HardState(3, 1, 2), _entries(4, 5, 3)),
    )
    for log in (store, store := _reopened(harness, store)):
        reader = log.reader(GROUP)
        _equal((reader.start(), reader.last()), ((0, 0), (5, 3)))
        _equal(reader.entries(1, 6, 1 << 20), _entries(1, 3, 1) + _entries(4, 5, 3))
        _equal([reader.term(index) for index in range(6)], [0, 1, 1, 1, 3, 3])
        _equal(log.hard_state(GROUP), HardState(3, 1, 2))
    store.close()


def log_is_cut(harness: Harness) -> None:
    """A cut keeps what is behind it; one that contradicts the log, or is ahead of it, keeps nothing."""
    store = _founded(harness)
    _log(store, GroupWrite(GROUP, HardState(1, 1, 0), _entries(1, 10, 1)), GroupWrite(OTHER, None, _entries(1, 3, 1)))
    _log(store, GroupWrite(OTHER, HardState(4, 0, 3)), cuts=[(GROUP, 6, 1)])
    for log in (store, store := _reopened(harness, store)):
        _equal((log.reader(GROUP).start(), log.reader(GROUP).last()), ((6, 1), (10, 1)))
        _equal(log.reader(GROUP).entries(7, 11, 1 << 20), _entries(7, 10, 1))
        _equal(log.reader(OTHER).entries(1, 4, 1 << 20), _entries(1, 3, 1))
    _log(store, GroupWrite(GROUP, HardState(4, 0, 8)), cuts=[(GROUP, 8, 2), (OTHER, 20, 4)])
    for log in (store, store := _reopened(harness, store)):
        _equal((log.reader(GROUP).start(), log.reader(GROUP).last()), ((8, 2), (8, 2)))
        _equal((log.reader(OTHER).start(), log.reader(OTHER).last()), ((20, 4), (20, 4)))
    _log(store, GroupWrite(OTHER, None, _entries(21, 22, 4)))
    _equal(store.reader(OTHER).entries(21, 23, 1), _entries(21, 21, 4))
    store.close()


def log_drops_a_group(harness: Harness) -> None:
    """A dropped group leaves its registry row and nothing else, and may be created anew in the same batch."""
    store = _founded(harness)
    _log(store, GroupWrite(GROUP, HardState(9, 1, 0), _entries(1, 3, 9)), GroupWrite(OTHER, None, _entries(1, 1, 0)))
    batch = LogBatch(BatchId(store.last_batch + 1))
    batch.drop(GROUP)
    batch.drop(OTHER)
    batch.create(OTHER, 5, 1)
    batch.register(GROUP, b"tombstone")
    store.write(batch, BatchId(0))
    for log in (store, store := _reopened(harness, store)):
        _equal(log.groups(), [OTHER])
        _equal(log.registry(), {GROUP: b"tombstone", OTHER: b"row 8"})
        _equal((log.reader(OTHER).last(), log.hard_state(OTHER)), ((5, 1), HardState(1, 0, 5)))
    store.close()


ENGINE_CASES: Final[list[Case]] = [
    reads_what_was_written,
    reads_from_memory_or_says_that_it_cannot,
    keeps_snapshots_to_their_spans,
    deletes_half_open_ranges,
    scans_in_order,
    scan_keeps_its_view,
    snapshot_keeps_its_view,
    snapshot_serves_scans_side_by_side,
    closes_over_what_lives,
    keeps_what_was_made_durable,
    takes_a_batch_again,
    equals_a_dictionary,
]
LOG_CASES: Final[list[Case]] = [log_replaces_the_tail, log_is_cut, log_drops_a_group]
"""For harnesses with a WAL."""


def _write(engine: Engine, *operations: tuple[str, bytes, bytes] | tuple[str, bytes]) -> None:
    batch = Batch()
    for kind, *arguments in operations:
        {"put": batch.put, "del": batch.delete, "range": batch.delete_range}[kind](*arguments)  # type: ignore[operator]
    engine.write(batch)


def _entries(first: int, last: int, term: int) -> list[Entry]:
    return [encode_entry(index, term, 0, b"%d of %d" % (index, term)) for index in range(first, last + 1)]


def _founded(harness: Harness) -> LogStore:
    store = LogStore(harness.open())
    batch = LogBatch(BatchId(1))
    for group in (GROUP, OTHER):
        batch.create(group, 0, 0)
        batch.register(group, b"row %d" % group)
    store.write(batch, BatchId(0))
    return store


def _log(store: LogStore, *writes: GroupWrite, cuts: list[tuple[GroupId, int, int]] | None = None) -> None:
    batch = LogBatch(BatchId(store.last_batch + 1))
    for write in writes:
        batch.write(write)
    for cut in cuts or []:
        batch.cut(*cut)
    store.write(batch, BatchId(store.last_batch - 1))


def _reopened(harness: Harness, store: LogStore) -> LogStore:
    store.sync()
    store.close()
    return LogStore(harness.open())


def _equal(got: object, want: object) -> None:
    if got != want:
        raise AssertionError(f"got {got!r}, want {want!r}")


def _refused(use: Callable[[], object]) -> None:
    try:
        use()
    except StoreError:
        return
    raise AssertionError("was not refused with a StoreError")

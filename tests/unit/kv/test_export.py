"""Export and import of a shard: the same state elsewhere, golden bytes, and nothing half or damaged."""

from __future__ import annotations

import gc
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zstandard import ZstdCompressor

from nebuladb.errors import Corruption, StoreError, Unavailable, WriteStalled
from nebuladb.ids import Generation, GroupId
from nebuladb.kv.chunk import (
    CHUNK_BYTES,
    MAX_CHUNK_BYTES,
    ChunkKind,
    End,
    Head,
    content_size,
    decode_chunk,
    encode_chunk,
)
from nebuladb.kv.export import Exporter
from nebuladb.kv.importer import Importer
from nebuladb.kv.limits import Limits
from nebuladb.kv.rows import U64
from nebuladb.kv.store import Store
from nebuladb.storage.engine import Engine
from nebuladb.storage.memory import Fault, MemoryEngine
from tests.unit.kv.helpers import (
    GENERATION,
    GROUP,
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
    reopen,
    run,
    state_hash,
)

NEW = Generation(2)


def chunks_of(engine: Engine) -> list[bytes]:
    exporter = Exporter(engine, GROUP, GENERATION)
    chunks = list(iter(exporter.read, None))
    exporter.close()
    return chunks


def import_all(chunks: list[bytes], engine: Engine, group: GroupId = GROUP, generation: Generation = NEW) -> Importer:
    importer = Importer(engine, group, generation)
    for chunk in chunks:
        importer.feed(chunk)
    return importer


def busy_shard(store: Store, log: Log) -> None:
    """Something of everything."""
    run(store, log, open_session(), grant(5, 10), put(b"k", b"v", 5), clock=1000)
    run(store, log, put(b"k", b"w", session=1 << 16, sequence=3, lowest=2), delete(b"k"), put(b"z", b"1"))
    run(store, log, put(b"z", b"2"), put(b"k", b"new"), delete(b"z"), compact(4))


@pytest.mark.parametrize("deleted", [False, True])
def test_a_state_is_the_same_elsewhere(deleted: bool) -> None:
    """Sessions, leases, history and the floor come with it; and deletion goes on where the exporter's stood."""
    store, engine = fresh()
    log = Log()
    busy_shard(store, log)
    if deleted:
        finish(store)
    other = MemoryEngine(wal=False)
    import_all(chunks_of(engine), other)
    copy = Store(other, GROUP, NEW, NODE)
    assert (copy.index, copy.term, copy.revision, copy.floor) == (store.index, store.term, store.revision, store.floor)
    assert copy.busy is store.busy
    assert copy.changes(store.floor) == store.changes(store.floor)
    assert list(copy.leases()) == list(store.leases())
    works = [log.work(put(b"k", b"w", session=1 << 16, sequence=3, lowest=2), put(b"n", b"2", 5), clock=2000)]
    answers = [[call.answers for call in drain(each, works)] for each in (store, copy)]
    assert answers[0] == answers[1]
    finish(store)
    finish(copy)
    twin = Log(log.index)
    assert state_hash(copy, twin) == state_hash(store, log)


def test_the_view_does_not_change_under_writes() -> None:
    store, engine = fresh()
    log = Log()
    for number in range(300):
        run(store, log, put(b"%04d" % number, b"v" * 1000))
    exporter = Exporter(engine, GROUP, GENERATION)
    chunks = [exporter.read()]
    run(store, log, delete(b"0", b"9"), compact(200))
    finish(store)
    Store.destroy(engine, GROUP, GENERATION)
    chunks += list(iter(exporter.read, None))
    exporter.close()
    assert exporter.head.index == 300
    other = MemoryEngine(wal=False)
    import_all([chunk for chunk in chunks if chunk], other)
    assert Store(other, GROUP, NEW, NODE).key_count == 300


def test_chunks_are_small_however_large_a_row_is() -> None:
    store, engine = fresh()
    log = Log()
    large = bytes(range(256)) * 5000
    run(store, log, put(b"large", large), put(b"small", b"s"))
    chunks = chunks_of(engine)
    assert [decode_chunk(chunk).number for chunk in chunks] == list(range(len(chunks)))
    assert max(map(content_size, chunks)) == CHUNK_BYTES
    other = MemoryEngine(wal=False)
    importer = import_all(chunks, other)
    assert importer.written > 2 * len(large)
    found = Store(other, GROUP, NEW, NODE).get(b"large")
    assert found is not None
    assert found.value == large


def test_another_group_can_take_it() -> None:
    store, engine = fresh()
    run(store, Log(), put(b"k", b"v"))
    import_all(chunks_of(engine), engine, GroupId(9), Generation(1))
    assert Store.generations(engine) == [(GROUP, GENERATION), (GroupId(9), Generation(1))]
    assert Store(engine, GroupId(9), Generation(1), NODE).get(b"k") == store.get(b"k")


def test_no_view_of_half_an_entry() -> None:
    """Its index would be that of the entry before, and it holds a part of the next."""
    store, engine = fresh(Limits(slice_rows=1))
    log = Log()
    works = [log.work(put(b"a"), put(b"b"))]
    store.apply(works)
    assert store.partial
    with pytest.raises(Unavailable):
        Exporter(engine, GROUP, GENERATION)
    drain(store, works)
    Exporter(engine, GROUP, GENERATION).close()


def test_half_an_import_is_no_state() -> None:
    store, engine = fresh()
    run(store, Log(), put(b"k", b"v"))
    chunks = chunks_of(engine)
    for count in range(len(chunks)):
        other = MemoryEngine(wal=False)
        importer = import_all(chunks[:count], other)
        assert not importer.done
        assert not Store.exists(other, GROUP, NEW)


def test_a_stalled_engine_is_asked_again() -> None:
    store, engine = fresh()
    run(store, Log(), put(b"k", b"v"))
    other = MemoryEngine(wal=False)
    importer = Importer(other, GROUP, NEW)
    for chunk in chunks_of(engine):
        other.fail(Fault.STALL)
        if decode_chunk(chunk).kind is ChunkKind.HEAD:
            importer.feed(chunk)
            continue
        with pytest.raises(WriteStalled):
            importer.feed(chunk)
        importer.feed(chunk)
    assert importer.done
    assert Store(other, GROUP, NEW, NODE).get(b"k") == store.get(b"k")


def test_damage_is_refused() -> None:
    """Every byte of every chunk counts, and so does their order."""
    store, engine = fresh()
    run(store, Log(), put(b"k", b"v"))
    chunks = chunks_of(engine)
    for number, chunk in enumerate(chunks):
        for at in range(len(chunk)):
            damaged = bytearray(chunk)
            damaged[at] ^= 1
            importer = import_all(chunks[:number], MemoryEngine(wal=False))
            with pytest.raises(Corruption):
                importer.feed(bytes(damaged))
            importer.feed(chunk)
    for wrong in ([1], [0, 0], [0, 2], [0, 1, 1]):
        importer = import_all([chunks[number] for number in wrong[:-1]], MemoryEngine(wal=False))
        with pytest.raises(Corruption):
            importer.feed(chunks[wrong[-1]])


@pytest.mark.parametrize("end", [End(1, 2, bytes(16)), End(4, 262, bytes(16))])
def test_the_whole_is_checked(end: End) -> None:
    store, engine = fresh()
    run(store, Log(), put(b"k", b"v"))
    *chunks, last = chunks_of(engine)
    other = MemoryEngine(wal=False)
    importer = import_all(chunks, other)
    data = end.encode()
    with pytest.raises(Corruption, match="were announced"):
        importer.feed(encode_chunk(ChunkKind.END, len(chunks), len(data), data))
    assert not Store.exists(other, GROUP, NEW)
    importer.feed(last)


def test_a_foreign_head_is_refused() -> None:
    """Index, term and configuration come from the view itself (S5)."""
    _, engine = fresh()
    head, *rest = chunks_of(engine)
    content = Head.decode(decode_chunk(head).content)
    for changed in (content._replace(index=9), content._replace(term=9), content._replace(configuration=b"x")):
        data = changed.encode()
        importer = import_all([encode_chunk(ChunkKind.HEAD, 0, len(data), data)], MemoryEngine(wal=False))
        importer.feed(rest[0])
        with pytest.raises(Corruption):
            importer.feed(rest[1])


def test_damage_in_the_view_has_no_end() -> None:
    store, engine = fresh()
    run(store, Log(), put(b"k", b"v"))
    assert isinstance(engine, MemoryEngine)
    engine.flip(store._keys.current + b"k", 3, detected=True)
    with pytest.raises(Corruption):
        chunks_of(engine)


def test_a_closed_export_reads_no_more() -> None:
    _, engine = fresh()
    exporter = Exporter(engine, GROUP, GENERATION)
    exporter.read()
    exporter.close()
    exporter.close()
    with pytest.raises(StoreError):
        exporter.read()


def test_an_export_that_is_given_up_leaves_nothing_to_the_collector() -> None:
    """It had a row and a chunk that was begun: 60 backups whose clients went away kept 100 MiB."""
    store, engine = fresh()
    run(store, Log(), put(b"k", bytes(1 << 20)))
    exporter = Exporter(engine, GROUP, GENERATION)
    assert exporter.read()
    assert exporter.read()
    gc.disable()
    try:
        exporter.close()
        left = weakref.ref(exporter)
        del exporter
        assert left() is None
    finally:
        gc.enable()


def test_no_state_no_export() -> None:
    engine = MemoryEngine(wal=False)
    with pytest.raises(Corruption):
        Exporter(engine, GROUP, GENERATION)


def test_golden_chunks() -> None:
    """docs/formats.md, byte by byte. A change here is a new version, not a new expectation. What zstd makes of the rows
    may differ from release to release, so they are compared unpacked."""
    _, engine = fresh()
    head, rows, end = chunks_of(engine)
    numbers = [7, 0, 0, 1, 0, 0, 0]
    assert head.hex() == "01010000000000000000003d" + "5daabaf9" + b"".join(map(U64.pack, numbers)).hex() + "0000000163"
    state = "01" + "00" * 16 + U64.pack(1).hex() + "00" * 8 + U64.pack(1).hex() + "00" * 52 + "63"
    assert rows[:12].hex() == "010200000000000100000067"
    assert decode_chunk(rows).content.hex() == "000000010000005e" + "41" + state
    assert end.hex() == "010300000000000200000020" + "5ca21e49" + U64.pack(1).hex() + U64.pack(0x67).hex() + (
        "77b034ebc0e64eff94747230ba5ca45b"
    )
    assert reopen(engine).index == 0


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_cleanly(data: bytes) -> None:
    with pytest.raises(Corruption):
        decode_chunk(data)


def test_a_bomb_is_not_unpacked() -> None:
    payload = ZstdCompressor().compress(bytes(MAX_CHUNK_BYTES + 1))
    with pytest.raises(Corruption, match="more than is taken"):
        decode_chunk(encode_chunk(ChunkKind.ROWS, 1, MAX_CHUNK_BYTES + 1, payload))
    with pytest.raises(Corruption, match="another size"):
        decode_chunk(encode_chunk(ChunkKind.ROWS, 1, 5, payload))
    with pytest.raises(Corruption, match="can't be unpacked"):
        decode_chunk(encode_chunk(ChunkKind.ROWS, 1, 5, b"no zstd"))

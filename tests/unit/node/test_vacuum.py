"""What was deleted gives its room back while the disk is short of it: it is flushed, and compacted there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import MethodType

import pytest

from nebuladb.errors import StoreError
from nebuladb.ids import DEFAULT_GROUP, ETCD_GROUP, Generation, GroupId
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.rows import Keys, group_span
from nebuladb.kv.store import Store
from nebuladb.node import node as node_module
from nebuladb.node.disk import Space
from nebuladb.node.vacuum import FAILED_MS, LONGEST_MS, PAUSE_MS, REST, Vacuum
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.storage.memory import MemoryEngine
from nebuladb.storage.rocks import RocksEngine
from nebuladb.storage.spans import MAX_SPANS, Span, Spans, pieces
from tests.unit.node.lone import SECONDS, Lone

GROUP = GroupId(9), Generation(1)
KEYS = Keys(DEFAULT_GROUP, Generation(1))


@pytest.fixture
def vacuum() -> Vacuum:
    return Vacuum(MemoryEngine(wal=False))


def round_of(vacuum: Vacuum, now: int, took: int = 0, *, whole: bool = True) -> list[Span]:
    vacuum.flushed(vacuum.take(Space.LOW, now))
    spans = vacuum.begin(now)
    assert spans
    assert not vacuum.ready
    vacuum.end(now + took, whole=whole)
    return spans


def test_nothing_is_asked_for_without_need(vacuum: Vacuum) -> None:
    assert not vacuum.wants_flush(Space.CRITICAL, 0)
    vacuum.destroy(*GROUP)
    assert not vacuum.wants_flush(Space.PLENTY, 0)
    assert vacuum.take(Space.PLENTY, 0) == []
    assert vacuum.wants_flush(Space.LOW, 0), "it is remembered until there is need"
    assert round_of(vacuum, 0) == [group_span(*GROUP)]
    assert not vacuum.wants_flush(Space.LOW, 1 << 40), "nothing was deleted since"


def test_it_rests_after_each_compaction_longer_after_a_long_one(vacuum: Vacuum) -> None:
    vacuum.destroy(*GROUP)
    round_of(vacuum, 0, 10)
    vacuum.destroy(*GROUP)
    assert not vacuum.wants_flush(Space.LOW, 10 + PAUSE_MS - 1)
    assert vacuum.wants_flush(Space.LOW, 10 + PAUSE_MS)
    round_of(vacuum, 10_000, 60_000)
    vacuum.destroy(*GROUP)
    assert not vacuum.wants_flush(Space.LOW, 70_000 + REST * 60_000 - 1)
    assert vacuum.wants_flush(Space.LOW, 70_000 + REST * 60_000)


def test_what_found_no_room_is_tried_again_ever_later(vacuum: Vacuum) -> None:
    vacuum.destroy(*GROUP)
    now, pauses = 0, []
    for _ in range(8):
        assert round_of(vacuum, now, whole=False) == [group_span(*GROUP)]
        begun = now
        while not vacuum.wants_flush(Space.LOW, now):
            now += FAILED_MS
        pauses.append(now - begun)
    assert pauses[:3] == [FAILED_MS, 2 * FAILED_MS, 4 * FAILED_MS]
    assert pauses[-1] == LONGEST_MS
    round_of(vacuum, now)
    vacuum.destroy(*GROUP)
    assert vacuum.wants_flush(Space.LOW, now + PAUSE_MS)


def test_what_is_deleted_during_a_compaction_waits_for_the_next(vacuum: Vacuum) -> None:
    vacuum.destroy(*GROUP)
    vacuum.flushed(vacuum.take(Space.LOW, 0))
    vacuum.destroy(GroupId(10), Generation(1))
    assert not vacuum.wants_flush(Space.LOW, 0)
    assert vacuum.begin(0) == [group_span(*GROUP)]
    vacuum.end(0, whole=True)
    assert round_of(vacuum, PAUSE_MS) == [group_span(GroupId(10), Generation(1))]


def test_what_was_deleted_before_a_restart_is_remembered(tmp_path: Path) -> None:
    """On a disk that stays full whatever is deleted an operator starts the node again: then nothing was compacted."""
    data = RocksEngine.open_data(tmp_path)
    Store.initialise(data, *GROUP, index=1, term=1, configuration=b"")
    data.flush()
    Vacuum(data).destroy(*GROUP)
    data.close()
    data = RocksEngine.open_data(tmp_path)
    (span,) = round_of(Vacuum(data), 0)
    low, high = group_span(*GROUP)
    assert span[0] <= low < high <= span[1]
    assert data.compact([span], lambda: False)
    assert not Vacuum(data).wants_flush(Space.CRITICAL, 0)
    data.close()


def test_spans_are_one_a_prefix_and_few() -> None:
    spans = Spans(1)
    for low, high in ((b"a5", b"a6"), (b"b1", b"b2"), (b"a3", b"a4")):
        spans.add(low, high)
    assert spans.take() == [(b"a3", b"a6"), (b"b1", b"b2")]
    assert not spans
    wide = Spans(2)
    for number in range(MAX_SPANS + 1):
        wide.add(number.to_bytes(2), number.to_bytes(2) + b"\0")
    assert wide.take() == [(b"\0\0", MAX_SPANS.to_bytes(2) + b"\0")]


def test_a_database_is_compacted_where_there_are_tables_and_piece_by_piece() -> None:
    tables = [(b"a", b"c", 5), (b"d", b"f", 5), (b"g", b"i", 5), (b"x", b"z", 5)]
    assert list(pieces(tables, [(b"b", b"h")], 100)) == [(b"b", b"h")]
    assert list(pieces(tables, [(b"j", b"k")], 100)) == []
    assert list(pieces(tables, [(b"a", b"zz")], 10)) == [(b"a", b"f"), (b"f", b"z"), (b"z", b"zz")]
    assert list(pieces([], [(b"a", b"b")], 1)) == []


class Compactions:
    """Of a lone node's data store."""

    def __init__(self, alone: Lone) -> None:
        self.spans: list[Span] = []
        self.flushes = 0
        self.gate, self.stopped = threading.Event(), False
        self.gate.set()
        self.error: Exception | None = None
        flush = alone.data.flush

        def flushed() -> None:
            self.flushes += 1
            flush()

        def compact(_: MemoryEngine, spans: Sequence[Span], stop: Callable[[], bool]) -> bool:
            self.spans += spans
            assert self.gate.wait(SECONDS)
            self.stopped = stop()
            if self.error:
                raise self.error
            return True

        alone.data.flush = flushed  # type: ignore[method-assign]
        alone.data.compact = MethodType(compact, alone.data)  # type: ignore[method-assign]


async def delete(alone: Lone) -> None:
    """Two keys, one of which is overwritten; then all that is history goes."""
    for key in (b"a", b"b", b"c"):
        await asyncio.wait_for(alone.put(key), SECONDS)
    await asyncio.wait_for(alone.put(b"c"), SECONDS)
    gone = Command(Kind.DELETE, kv_pb2.DeleteRequest(key=b"a", range_end=b"c").SerializeToString())
    await asyncio.wait_for(alone.pump.propose(DEFAULT_GROUP, gone, SECONDS), SECONDS)
    revision = alone.node.groups[DEFAULT_GROUP].store.revision
    compact = Command(Kind.COMPACT, kv_pb2.CompactRequest(revision=revision).SerializeToString())
    await asyncio.wait_for(alone.pump.propose(DEFAULT_GROUP, compact, SECONDS), SECONDS)


async def test_what_a_compaction_deleted_is_flushed_and_compacted_on_a_full_disk(alone: Lone) -> None:
    found = Compactions(alone)
    await delete(alone)
    await alone.until(lambda: not alone.node.background_waits)
    assert not found.spans
    assert found.flushes == 0, "there is room"
    alone.node.space(Space.LOW, "little")
    alone.pump.wake()
    await alone.until(lambda: bool(found.spans))
    assert found.flushes == 1
    last = alone.node.groups[DEFAULT_GROUP].store.revision
    for row in (KEYS.current + b"c", *(KEYS.record_key(last - back, 0) for back in (2, 3, 4))):
        assert any(low <= row < high for low, high in found.spans), "where rows were overwritten, too"
    groups = {group_span(group, Generation(1)) for group in (DEFAULT_GROUP, ETCD_GROUP)}
    assert not groups & set(found.spans), "no more than was deleted"


async def test_many_keys_that_went_are_flushed_whatever_room_there_is(
    alone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue's scans passed over all that went since the last flush: of 8 GiB of memory, half a million keys."""
    monkeypatch.setattr(node_module, "BURIED_KEYS", 2)
    found = Compactions(alone)
    await delete(alone)
    await alone.put(b"d")
    revision = alone.node.groups[DEFAULT_GROUP].store.revision  # above the deletion
    compact = Command(Kind.COMPACT, kv_pb2.CompactRequest(revision=revision).SerializeToString())
    await asyncio.wait_for(alone.pump.propose(DEFAULT_GROUP, compact, SECONDS), SECONDS)
    await alone.until(lambda: found.flushes == 1)
    assert not found.spans
    assert alone.node.unflushed < alone.node.flush_bytes


async def test_a_dropped_shard_is_flushed_and_compacted_on_a_full_disk(alone: Lone) -> None:
    found = Compactions(alone)
    alone.node.space(Space.CRITICAL, "little")
    alone.node.vacuum.destroy(*GROUP)
    alone.pump.wake()
    await alone.until(lambda: found.spans == [group_span(*GROUP)])
    assert found.flushes == 1


async def test_a_stopping_node_breaks_a_compaction_off(alone: Lone) -> None:
    found = Compactions(alone)
    found.gate.clear()
    alone.node.space(Space.CRITICAL, "little")
    alone.node.vacuum.destroy(*GROUP)
    alone.pump.wake()
    await alone.until(lambda: bool(found.spans))
    stopping = asyncio.create_task(alone.pump.stop())
    await alone.until(lambda: alone.pump._tables._stopped)
    assert not stopping.done()
    found.gate.set()
    await asyncio.wait_for(stopping, SECONDS)
    assert found.stopped
    assert not alone.failures


async def test_a_compaction_that_meets_damage_ends_the_node(alone: Lone) -> None:
    found = Compactions(alone)
    found.error = StoreError("IO error")
    alone.node.space(Space.CRITICAL, "little")
    alone.node.vacuum.destroy(*GROUP)
    alone.pump.wake()
    await asyncio.wait_for(alone.failed.wait(), SECONDS)
    assert alone.failures == [found.error]

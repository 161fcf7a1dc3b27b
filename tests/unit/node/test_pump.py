"""The pump over a real node whose disks fail on order: who is told what, and what ends the node (S32, S33)."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any, cast

import pytest

from nebuladb.errors import Corruption, InvariantViolation, NebulaError, StoreError, Unavailable, UnknownOutcome
from nebuladb.ids import DEFAULT_GROUP, ETCD_GROUP
from nebuladb.kv.answer import Answer, DeleteResult
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.machine import DELETION_ROWS
from nebuladb.node import pump
from nebuladb.node.outgoing import Outgoing
from nebuladb.node.turn import Turn
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.storage.memory import ALWAYS, Fault
from tests.unit.node.lone import PUT, SECONDS, Lone


@pytest.mark.parametrize("which", ["log", "data"])
async def test_a_write_stall_is_waited_out(alone: Lone, which: str) -> None:
    getattr(alone, which).fail(Fault.STALL, 3)
    answer = await asyncio.wait_for(alone.put(), SECONDS)
    assert answer.reason == 0
    assert not alone.failures


async def test_a_failed_sync_ends_the_node_and_tells_who_waits(alone: Lone) -> None:
    alone.log.fail(Fault.SYNC)
    write, read = alone.put(), alone.pump.confirm(DEFAULT_GROUP, SECONDS)
    alone.data.fail(Fault.STALL, ALWAYS)  # nothing is applied any more, so the read waits as well
    with pytest.raises(UnknownOutcome):
        await asyncio.wait_for(write, SECONDS)
    assert [type(error) for error in alone.failures] == [StoreError]
    if not read.done() or read.exception() is not None:
        with pytest.raises(Unavailable):
            await read
    with pytest.raises(Unavailable):
        alone.put()
    with pytest.raises(Unavailable):
        alone.pump.store(DEFAULT_GROUP)


@pytest.mark.parametrize("error", [StoreError("IO error"), RuntimeError("can't start new thread")])
async def test_a_failed_flush_of_the_data_ends_the_node(alone: Lone, error: Exception) -> None:
    def flush() -> None:
        raise error

    alone.data.flush = flush  # type: ignore[method-assign]
    alone.node.unflushed = 1 << 40
    with suppress(UnknownOutcome):  # the node may end before the write is decided
        await asyncio.wait_for(alone.put(), SECONDS)
    await asyncio.wait_for(alone.failed.wait(), SECONDS)
    assert alone.failures == [error]


async def test_a_flush_waits_for_no_tick_when_much_was_written(alone: Lone) -> None:
    """RocksDB would begin one by itself soon, at a moment at which nobody has looked for room."""
    alone.pump._tasks[0].cancel()  # the ticks
    flushes: list[int] = []
    told = 0

    def writes() -> None:
        nonlocal told
        told += 1

    def flush() -> None:
        flushes.append(alone.node.unflushed)
        if len(flushes) == 1:
            alone.node.unflushed = alone.node.flush_bytes  # written while it ran

    alone.data.flush = flush  # type: ignore[method-assign]
    alone.pump._tables._writes = writes
    alone.node.flush_bytes = alone.node.unflushed + (1 << 20)
    await asyncio.wait_for(alone.put(), SECONDS)
    assert not flushes, "it isn't due yet"
    alone.node.flush_bytes = alone.node.unflushed + 1
    await asyncio.wait_for(alone.put(), SECONDS)
    await alone.until(lambda: len(flushes) == 2)
    await alone.until(lambda: told == 4)  # each begins, and ends


class HeldFlush:
    """Stands for the flushes of a data store: the first one ends when the gate is opened."""

    def __init__(self, alone: Lone) -> None:
        self.begun, self.gate = threading.Event(), threading.Event()
        self.calls = 0
        self._ended: list[str] = []
        alone.data.flush = self._flush  # type: ignore[method-assign]

    def _flush(self) -> None:
        self.calls += 1
        if self.calls == 1:
            self.begun.set()
            assert self.gate.wait(SECONDS)
            self._ended.append("flush")

    async def ends_before(self, stopping: asyncio.Task[None]) -> None:
        """It is under way; `stopping` must wait for it."""
        stopping.add_done_callback(lambda _: self._ended.append("stop"))
        asyncio.get_running_loop().call_later(0.05, self.gate.set)
        await asyncio.wait_for(stopping, SECONDS)
        await asyncio.sleep(0)
        assert self._ended == ["flush", "stop"]


async def test_stopping_waits_for_a_flush_under_way(alone: Lone) -> None:
    """What comes after it is the end of the engine that the flush is in."""
    flushing = HeldFlush(alone)
    alone.node.unflushed = 1 << 40
    await asyncio.wait_for(alone.put(), SECONDS)
    await alone.until(flushing.begun.is_set)
    await flushing.ends_before(asyncio.create_task(alone.pump.stop()))


async def test_who_alone_votes_waits_for_nobody_to_take_over(alone: Lone) -> None:
    """A node with learners took two seconds longer to stop: none of them can lead."""
    for replica in alone.node.host.replicas.values():
        replica.nodes |= {99: 12}
    # The clock stands still, so that no patience ends.
    await asyncio.wait_for(alone.pump.hand_over(), SECONDS)


async def test_a_stop_that_was_cut_short_is_waited_for_by_the_next(alone: Lone) -> None:
    """A drain has ten seconds; what comes after it closes the engine that the last flush is in."""
    flushing = HeldFlush(alone)
    drain = asyncio.create_task(alone.pump.stop())
    await alone.until(flushing.begun.is_set)
    drain.cancel()
    with suppress(asyncio.CancelledError):
        await drain
    await flushing.ends_before(asyncio.create_task(alone.pump.stop()))
    assert flushing.calls == 1


async def test_a_node_that_stops_takes_no_turn_when_its_threads_have_ended(alone: Lone) -> None:
    """A leader that nobody else could take over from was asked for a snapshot in its last flush: it ended with an
    error, and exit code 1."""
    flushing = HeldFlush(alone)

    def turn(*_: object) -> Turn:
        return Turn([], [], [], more=False, exports=[cast("Outgoing", None)])

    stopping = asyncio.create_task(alone.pump.stop())
    await alone.until(flushing.begun.is_set)
    alone.node.turn = turn  # type: ignore[method-assign,assignment]
    alone.pump.wake()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    flushing.gate.set()
    await asyncio.wait_for(stopping, SECONDS)
    assert not alone.failures


@pytest.mark.parametrize("method", ["tick", "background", "turn"])
async def test_an_error_in_any_callback_ends_the_node(alone: Lone, method: str) -> None:
    error = InvariantViolation("a bug")

    def broken(*_: Any) -> Any:
        raise error

    setattr(alone.node, method, broken)
    alone.pump.work()
    alone.pump.wake()
    await asyncio.wait_for(alone.failed.wait(), SECONDS)
    assert alone.failures == [error]
    assert alone.pump.broken is error


async def test_a_large_command_rests_between_its_slices(alone: Lone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others' writes are served meanwhile."""
    puts = [alone.put(b"%05d" % number) for number in range(2 * DELETION_ROWS)]
    await asyncio.wait_for(asyncio.gather(*puts), SECONDS)
    monkeypatch.setattr(pump, "REST", 1e9)
    delete = Command(Kind.DELETE, kv_pb2.DeleteRequest(key=b"\0", range_end=b"\0").SerializeToString())
    deletion = alone.pump.propose(DEFAULT_GROUP, delete, SECONDS)
    await alone.until(lambda: bool(alone.node._applier.midway))
    elsewhere = alone.pump.propose(ETCD_GROUP, PUT, SECONDS)
    assert isinstance(await asyncio.wait_for(elsewhere, SECONDS), Answer)
    assert not deletion.done()
    monkeypatch.setattr(pump, "REST", 0.0)
    alone.pump._go_on()
    answer = await asyncio.wait_for(deletion, SECONDS)
    assert isinstance(answer.result, DeleteResult)
    assert answer.result.deleted == 2 * DELETION_ROWS + 1


async def test_what_waits_when_the_node_stops_is_told_so(alone: Lone) -> None:
    alone.data.fail(Fault.STALL, ALWAYS)
    write = alone.put()
    await asyncio.sleep(0)
    await alone.pump.stop()
    with pytest.raises(UnknownOutcome):
        await write
    await alone.pump.stop()
    assert not alone.failures


async def test_damage_that_a_read_met_is_an_alarm_and_the_node_goes_on(alone: Lone) -> None:
    alone.pump.request_failed(Unavailable("an ordinary refusal"))
    assert alone.node.alarms() == []
    alone.pump.request_failed(Corruption("block checksum mismatch"))
    [alarm] = alone.node.alarms()
    assert "block checksum mismatch" in alarm
    assert isinstance(await asyncio.wait_for(alone.put(), SECONDS), Answer)


async def test_a_broken_invariant_that_a_read_met_ends_the_node(alone: Lone) -> None:
    error: NebulaError = InvariantViolation("a bug")
    alone.pump.request_failed(error)
    assert alone.failures == [error]


async def test_answers_of_a_turn_are_held_until_all_are_given(alone: Lone) -> None:
    """So that who goes on at once, within the turn, writes once."""
    seen: list[str] = []

    class Face:
        def hold(self) -> None:
            seen.append("hold")

        def flush(self) -> None:
            seen.append("flush")

    alone.pump.answers = Face()
    reads = [alone.pump.confirm(DEFAULT_GROUP, SECONDS) for _ in range(2)]
    for read in reads:
        read.resume = lambda: seen.append("answer")
    await asyncio.wait_for(asyncio.gather(*reads), SECONDS)
    assert seen == ["hold", "answer", "answer", "flush"]

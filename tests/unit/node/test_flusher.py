"""Who makes the log durable: one sync at a time, each for all that was written before it, by the kernel or a thread."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from nebuladb.errors import StoreError
from nebuladb.ids import BatchId, GroupId
from nebuladb.node.flusher import Flusher
from nebuladb.raft import HardState
from nebuladb.raft.entry import NORMAL, encode_entry
from nebuladb.storage.kernel_sync import KernelSync
from nebuladb.storage.log import LogStore
from nebuladb.storage.log_batch import GroupWrite, LogBatch
from nebuladb.storage.rocks import RocksEngine


class Log:
    """A log whose syncs by the engine wait until they are let go."""

    def __init__(self, file: int | None = None) -> None:
        self.file = file
        self.syncs = 0
        self.error: StoreError | None = None
        self.gate = threading.Event()
        self.gate.set()

    def sync(self) -> None:
        assert threading.current_thread() is not threading.main_thread()
        self.gate.wait()
        self.syncs += 1
        if self.error is not None:
            raise self.error

    def sync_file(self) -> int | None:
        return self.file


class Kernel:
    """One that says that a sync is over when it is told to."""

    def __init__(self) -> None:
        self.fileno, self._tell = os.pipe()
        self.begun: list[int] = []
        self.takes = True
        self.error: StoreError | None = None

    def begin(self, file: int) -> bool:
        if self.takes:
            self.begun.append(file)
        return self.takes

    def end(self) -> None:
        os.write(self._tell, b"x")

    def finished(self) -> bool:
        os.read(self.fileno, 1)
        if self.error is not None:
            raise self.error
        return True


class Told:
    def __init__(self) -> None:
        self.durable: list[int] = []
        self.failed: list[BaseException] = []
        self._news = asyncio.Event()

    def done(self, batch: int, seconds: float) -> None:
        assert seconds >= 0
        self.durable.append(batch)
        self._news.set()

    def fails(self, error: BaseException) -> None:
        self.failed.append(error)
        self._news.set()

    async def until(self, what: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not what():
                self._news.clear()
                await self._news.wait()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    file = os.open(tmp_path / "wal", os.O_RDWR | os.O_CREAT)
    yield file
    os.close(file)


def flusher(log: Log, told: Told, kernel: Kernel | None, monkeypatch: pytest.MonkeyPatch) -> Flusher:
    monkeypatch.setattr(KernelSync, "open", lambda: kernel)
    flusher = Flusher(cast(LogStore, log), told.done, told.fails)
    flusher.start()
    return flusher


async def test_the_kernel_syncs_and_what_came_meanwhile_shares_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    log, told, kernel = Log(file=7), Told(), Kernel()
    work = flusher(log, told, kernel, monkeypatch)
    for batch in (1, 2, 3):
        work.sync(batch)
    assert kernel.begun == [7]
    kernel.end()
    await told.until(lambda: told.durable == [1])
    assert kernel.begun == [7, 7]
    kernel.end()
    await told.until(lambda: told.durable == [1, 3])
    await work.stop()
    assert kernel.begun == [7, 7]
    assert log.syncs == 0


async def test_a_real_kernel(file: int) -> None:
    if KernelSync.open() is None:
        pytest.skip("this kernel has no AIO, or a sandbox forbids it")
    log, told = Log(file), Told()
    work = Flusher(cast(LogStore, log), told.done, told.fails)
    work.start()
    for batch in range(1, 201):
        os.write(file, b"x" * 100)
        work.sync(batch)
    await told.until(lambda: told.durable[-1:] == [200])
    await work.stop()
    assert told.durable == sorted(told.durable)
    assert log.syncs == 0


async def test_of_a_real_log_the_engine_syncs_the_first_batch_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if KernelSync.open() is None:
        pytest.skip("this kernel has no AIO, or a sandbox forbids it")
    by_engine = 0
    by_rocksdb = RocksEngine.sync

    def sync(engine: RocksEngine) -> None:
        nonlocal by_engine
        by_engine += 1
        by_rocksdb(engine)

    monkeypatch.setattr(RocksEngine, "sync", sync)
    log, told = LogStore(RocksEngine.open_log(tmp_path / "raft")), Told()
    work = Flusher(log, told.done, told.fails)
    work.start()
    for number in range(1, 101):
        batch = LogBatch(BatchId(number))
        if number == 1:
            batch.create(GroupId(1), 0, 1)
        batch.write(GroupWrite(GroupId(1), HardState(1, 0, 0), [encode_entry(number, 1, NORMAL, b"x" * 1000)]))
        log.write(batch, BatchId(number - 1))
        work.sync(number)
        await told.until(lambda number=number: told.durable[-1:] == [number])  # type: ignore[misc]
    await work.stop()
    assert by_engine == 1
    log.close()
    again = LogStore(RocksEngine.open_log(tmp_path / "raft"))
    assert again.reader(GroupId(1)).last() == (100, 1)
    again.close()


async def test_the_engine_syncs_where_the_kernel_doesnt(monkeypatch: pytest.MonkeyPatch) -> None:
    log, told = Log(), Told()
    work = flusher(log, told, None, monkeypatch)
    log.gate.clear()
    work.sync(1)
    work.sync(2)
    work.sync(3)
    log.gate.set()
    await told.until(lambda: told.durable[-1:] == [3])
    assert told.durable == [1, 3]
    assert log.syncs == 2
    await work.stop()


async def test_the_engine_syncs_after_a_new_file_and_what_the_kernel_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    log, told, kernel = Log(file=None), Told(), Kernel()
    work = flusher(log, told, kernel, monkeypatch)
    work.sync(1)
    await told.until(lambda: told.durable == [1])
    log.file, kernel.takes = 7, False
    work.sync(2)
    await told.until(lambda: told.durable == [1, 2])
    kernel.takes = True
    work.sync(3)
    kernel.end()
    await told.until(lambda: told.durable == [1, 2, 3])
    assert (log.syncs, kernel.begun) == (2, [7])
    await work.stop()


@pytest.mark.parametrize("by_kernel", [True, False])
async def test_after_a_failure_nothing_is_synced_again(monkeypatch: pytest.MonkeyPatch, *, by_kernel: bool) -> None:
    log, told, kernel = Log(file=7 if by_kernel else None), Told(), Kernel()
    work = flusher(log, told, kernel, monkeypatch)
    log.gate.clear()
    log.error = kernel.error = StoreError("IO error")
    work.sync(1)
    work.sync(2)
    log.gate.set()
    if by_kernel:
        kernel.end()
    await told.until(lambda: bool(told.failed))
    log.error = kernel.error = None
    work.sync(3)
    await work.stop()
    assert told.durable == []
    assert len(told.failed) == 1
    assert log.syncs + len(kernel.begun) == 1


async def test_whatever_goes_wrong_is_told_and_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    log, told, kernel = Log(file=7), Told(), Kernel()
    work = flusher(log, told, kernel, monkeypatch)

    def breaks() -> int | None:
        raise OSError("what nobody thought of")

    work.sync(1)
    work.sync(2)
    monkeypatch.setattr(log, "sync_file", breaks)
    kernel.end()
    await told.until(lambda: bool(told.failed))
    await work.stop()

    again = flusher(log, told, kernel, monkeypatch)
    with pytest.raises(OSError, match="nobody thought of"):
        again.sync(1)
    await again.stop()

    monkeypatch.undo()
    third = flusher(log, told, kernel, monkeypatch)
    monkeypatch.setattr(kernel, "finished", breaks)
    third.sync(1)
    kernel.end()
    await told.until(lambda: len(told.failed) == 2)
    await third.stop()


async def test_one_that_never_began_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KernelSync, "open", Kernel)
    work = Flusher(cast(LogStore, Log(file=7)), Told().done, Told().fails)
    work.sync(1)
    await work.stop()


async def test_stop_waits_for_what_is_outstanding(monkeypatch: pytest.MonkeyPatch) -> None:
    log, told, kernel = Log(file=7), Told(), Kernel()
    work = flusher(log, told, kernel, monkeypatch)
    work.sync(1)
    work.sync(2)
    stopping = asyncio.create_task(work.stop())
    kernel.end()
    await told.until(lambda: told.durable == [1])
    assert not stopping.done()
    kernel.end()
    await stopping
    assert told.durable == [1, 2]
    await work.stop()

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nebuladb.errors import InvariantViolation, StoreError
from nebuladb.server.lifecycle import EXIT_FORCED, PidFile, Shutdown


@pytest.fixture(autouse=True)
def terminal() -> Iterator[None]:
    """Whoever runs the tests may ignore its end, as under nohup, and the process would inherit that."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_drains_and_exits_0(number: signal.Signals) -> None:
    drained = []

    async def drain() -> None:
        drained.append(True)

    shutdown = Shutdown()
    with shutdown.signals():
        os.kill(os.getpid(), number)
        async with asyncio.timeout(5):
            assert await shutdown.run(drain) == 0
    assert drained == [True]


async def test_a_terminal_that_closes_says_it_twice_and_that_is_one_request() -> None:
    async def drain() -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        for _ in range(10):  # as a second SIGTERM it would end the process here
            await asyncio.sleep(0)

    shutdown = Shutdown()
    with shutdown.signals():
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(5):
            assert await shutdown.run(drain) == 0


async def test_a_hang_up_that_was_ignored_at_the_start_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        shutdown = Shutdown()
        with shutdown.signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_a_drain_that_hangs_is_cut_short() -> None:
    shutdown = Shutdown()
    shutdown.request("test")
    async with asyncio.timeout(5):
        assert await shutdown.run(asyncio.Event().wait, grace=0.05) == 0  # type: ignore[arg-type]


async def test_a_failure_exits_1_without_a_drain() -> None:
    async def drain() -> None:
        raise AssertionError("a broken node hands nothing over")

    shutdown = Shutdown()
    first = InvariantViolation("committed went back")
    shutdown.fail(first)
    shutdown.fail(InvariantViolation("and then this"))
    assert await shutdown.run(drain) == 1
    assert shutdown.failure is first


async def test_a_failure_while_draining_exits_1() -> None:
    shutdown = Shutdown()

    async def drain() -> None:
        shutdown.fail(InvariantViolation("late"))

    shutdown.request("test")
    assert await shutdown.run(drain) == 1


def test_a_second_signal_exits_at_once() -> None:
    program = """
import asyncio
from nebuladb.server.lifecycle import Shutdown
async def main():
    shutdown = Shutdown()
    async def drain():
        print("draining", flush=True)
        await asyncio.Event().wait()
    with shutdown.signals():
        print("ready", flush=True)
        await shutdown.run(drain)
asyncio.run(main())
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for expected in ("ready", "draining"):
        while (line := process.stdout.readline().strip()) != expected:
            assert process.poll() is None, line
        process.terminate()
    assert process.wait(timeout=10) == EXIT_FORCED
    process.stdout.close()


def test_the_pid_file_is_ours_to_remove_only(tmp_path: Path) -> None:
    file = PidFile(tmp_path)
    assert file.read() is None
    file.write()
    assert (tmp_path / "nebulad.pid").read_text() == f"{os.getpid()}\n"
    assert file.read() == os.getpid()
    assert [path.name for path in tmp_path.iterdir()] == ["nebulad.pid"]
    file.remove()
    assert not file.path.exists()
    file.path.write_text("1\n")
    file.remove()
    assert file.read() == 1


def test_a_pid_file_that_can_not_be_removed_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = PidFile(tmp_path)
    file.write()

    def refused(path: Path, *, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "unlink", refused)
    file.remove()


def test_a_pid_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"can't write .*nebulad.pid"):
        PidFile(tmp_path / "missing").write()

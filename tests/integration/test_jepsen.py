"""A short run of jepsen/, and that a run leaves nothing behind however it ends."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from jepsen import history, namespaces, sockets
from jepsen.loopback import Loopback
from jepsen.partitions import NOBODY
from jepsen.verdict import parse

SEED: Final = 3
PATIENCE: Final = 120.0
NETWORKS: Final = ("namespaces", "proxies")
SHORT: Final = ("5", "30")
"""Seconds of the run that counts: where the machine is so busy that the first proves nothing, the second."""
PROVED_NOTHING: Final = ("verdict=too-little-done", "verdict=no-fault-bit")


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    why = unavailable(name)
    if why is not None:
        pytest.skip(why)
    return name


def unavailable(network: str) -> str | None:
    if network == "namespaces":
        return namespaces.unavailable(netem=False)
    return None if sockets.known() else "the kernel does not tell who calls over loopback"


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "jepsen", f"--folder={folder / 'results'}", f"--seed={SEED}", *arguments]


def environ(folder: Path) -> dict[str, str]:
    scratch = folder / "tmp"
    scratch.mkdir()
    return os.environ | {"TMPDIR": str(scratch)}


def links() -> str:
    """The machine's network interfaces and namespaces."""
    if namespaces.unavailable(netem=False) is not None:
        return ""
    return "".join(
        subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout
        for arguments in (("-br", "link"), ("netns", "list"))
    )


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"  # nobody here is its parent


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@contextmanager
def begun(folder: Path, network: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A long run whose nodes serve, and their pids."""
    flags = ["--network", network, "--seconds", "600", "--nemesis", "partition,pause"]
    with subprocess.Popen(command(folder, *flags), env=environ(folder), stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = next(line for line in process.stderr if line.startswith("cluster ready"))
            yield process, [int(number) for number in re.findall(r"\d+", line.partition("pids")[2])]
        finally:
            process.kill()


def test_a_short_run_is_valid_and_leaves_its_results(tmp_path: Path) -> None:
    if all(map(unavailable, NETWORKS)):
        pytest.skip("neither namespaces nor proxies")
    before = links()
    environment = environ(tmp_path)
    for seconds in SHORT:
        run = command(tmp_path, "--seconds", seconds, "--nemesis", "kill,partition")
        done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE)
        if not any(verdict in done.stdout for verdict in PROVED_NOTHING):
            break
    assert done.returncode == 0, done.stdout + done.stderr
    pairs = parse(done.stdout.splitlines()[-1])
    assert pairs["verdict"] == "valid"
    assert int(pairs["faults"]) >= 2
    results = tmp_path / "results"
    assert {path.name for path in results.iterdir()} == {
        *("history.jsonl", "verdict.txt", "faults.txt", "timeline.html", "n1.log", "n2.log", "n3.log")
    }
    ops = history.read(results / "history.jsonl")
    assert sum(op.outcome is history.Outcome.OK for op in ops) >= int(pairs["ok"]) > 0
    assert list((tmp_path / "tmp").iterdir()) == []
    assert links() == before


def test_after_ctrl_c_nothing_is_left(tmp_path: Path, network: str) -> None:
    before = links()
    with begun(tmp_path, network) as (process, pids):
        assert len(pids) == 3
        assert not any(map(gone, pids))
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    assert all(map(gone, pids))
    assert list((tmp_path / "tmp").iterdir()) == []
    assert links() == before


def test_a_killed_run_takes_its_nodes_and_namespaces_along(tmp_path: Path, network: str) -> None:
    before = links()
    with begun(tmp_path, network) as (process, pids):
        process.kill()
        process.wait()
    assert wait_until(lambda: all(map(gone, pids)))
    assert wait_until(lambda: links() == before)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(100):
        writer.write(data)
    writer.close()


async def test_the_proxy_holds_back_what_is_blocked_and_delivers_it_later() -> None:
    if why := unavailable("proxies"):
        pytest.skip(why)
    network = Loopback(3, random.Random(SEED))
    addresses = await network.open()
    network.watch(lambda node: os.getpid() if node == 0 else None)
    servers = [await asyncio.start_server(echo, "127.0.0.1", int(at.peer.rpartition(":")[2])) for at in addresses]
    ends = [await asyncio.open_connection("127.0.0.1", int(at.advertise_peer.rpartition(":")[2])) for at in addresses]
    try:
        for reader, writer in ends:
            writer.write(b"a")
            assert await reader.readexactly(1) == b"a"
        for pairs in (frozenset({(0, 1)}), frozenset({(1, 0)})):
            await network.block(pairs)
            (blocked, to_blocked), (open_, to_open) = ends[1], ends[2]
            to_blocked.write(b"b")
            answer = asyncio.create_task(blocked.readexactly(1))
            for _ in range(20):  # round trips through the same proxy
                to_open.write(b"c")
                assert await open_.readexactly(1) == b"c"
            assert not answer.done()
            assert await network.block(NOBODY) > 0
            assert await answer == b"b"
    finally:
        for _, writer in ends:
            writer.close()
        for server in servers:
            server.close()
        await network.close()

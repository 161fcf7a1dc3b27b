"""A command under a lock: it runs alone, and neither outlives the other."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Cli
from tests.unit.client.fake import Node, wait_until

Started = Callable[..., AbstractContextManager[subprocess.Popen[str]]]
PATIENT = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.02; done"
"""A command that ends when it is told to, in its own way."""


@pytest.fixture
def started(nodes: list[Node]) -> Started:
    """Runs `nebula-cli lock` in a process of its own, and what `before` says before it."""

    @contextmanager
    def start(*arguments: str, before: str = "") -> Iterator[subprocess.Popen[str]]:
        script = f"{before}\nfrom nebuladb.cli.main import main; main()"
        command = [sys.executable, "-c", script, "lock", *arguments]
        environment = {**os.environ, "NEBULA_ENDPOINTS": nodes[0].address}
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    return start


def test_a_command_runs_under_the_lock_and_says_how_it_ended(cli: Cli, nodes: list[Node], tmp_path: Path) -> None:
    told = tmp_path / "told"
    script = 'echo "$NEBULA_LOCK_TOKEN" "$@" > ' + f"{told}; exit 3"
    assert cli("lock", "job", "sh", "-c", script, "sh", "--wait", "-x").exit_code == 3
    [taken, gone] = nodes[0].store.history[b"job"]
    assert taken.kv is not None
    assert taken.kv.value == f"{socket.gethostname()} {os.getpid()}".encode()
    assert gone.kv is None
    assert told.read_text() == f"{taken.revision} --wait -x\n", "the command's own options are its own"
    assert nodes[0].store.leases == {}


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        (("sh", "-c", "kill -9 $$"), 137, ""),
        (("--", "sh", "-c", "exit 4"), 4, ""),
        (("no-such-command",), 1, "nebula-cli: no-such-command: No such file or directory\n"),
    ],
)
def test_a_command_that_can_not_say_it(
    cli: Cli, nodes: list[Node], command: tuple[str, ...], status: int, message: str
) -> None:
    ended = cli("lock", "--hex", "00ff", *command)
    assert (ended.exit_code, ended.stderr) == (status, message)
    assert len(nodes[0].store.history[b"\x00\xff"]) == 2
    assert nodes[0].store.leases == {}


def test_who_does_not_wait_is_told_who_has_it(cli: Cli) -> None:
    cli("put", "job", "host 7")
    refused = cli("lock", "--wait", "0", "job", "true")
    assert refused.exit_code == 1
    assert "'job' is held by another, whose value is b'host 7'; try again later" in refused.stderr


def test_without_a_command_it_is_held_until_it_is_told_to_end(started: Started, nodes: list[Node]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        with started("job") as process:
            assert process.stdout is not None
            token = int(process.stdout.readline())
            assert nodes[0].store.history[b"job"][-1].revision == token
            process.send_signal(number)
            assert process.wait() == 0
        assert nodes[0].store.leases == {}


@pytest.mark.parametrize("command", [(), ("sh", "-c", PATIENT)], ids=["held", "command"])
def test_a_lock_that_is_lost_is_held_no_more_and_ends_its_command(
    started: Started, nodes: list[Node], command: tuple[str, ...]
) -> None:
    store = nodes[0].store
    with started("--ttl", "2", "job", *command) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == ("ready\n" if command else f"{store.revision}\n")
        with store.lock:
            store.end_lease(*store.leases)
        _, complaint = process.communicate()
        assert process.returncode == 1
        assert "the lock b'job' is not held, or was lost" in complaint


def test_signals_are_the_commands_affair_and_the_lock_is_held_to_its_end(started: Started, nodes: list[Node]) -> None:
    with started("job", "sh", "-c", PATIENT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            process.send_signal(number)
        assert process.wait() == 7
    assert nodes[0].store.leases == {}


def test_who_is_ended_while_it_waits_leaves_nothing(started: Started, nodes: list[Node], cli: Cli) -> None:
    cli("put", "job", "another")
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 1)):
        with started("job", "true") as process:
            seen = nodes[0].count("Watch")
            wait_until(lambda seen=seen: nodes[0].count("Watch") > seen)  # type: ignore[misc]
            process.send_signal(number)
            assert process.wait() == status
        assert nodes[0].store.leases == {}


def test_a_command_that_we_may_not_signal_keeps_the_lock_to_its_end(
    started: Started, nodes: list[Node], tmp_path: Path
) -> None:
    """`sudo`'s, say, which is another user's. The lock was let go of while it ran on."""
    tried = tmp_path / "tried"
    refusing = f"""
import asyncio.subprocess, pathlib
def refuse(*_):
    pathlib.Path({str(tried)!r}).touch()
    raise PermissionError(1, "Operation not permitted")
asyncio.subprocess.Process.send_signal = refuse
"""
    command = f"kill -TERM $PPID; until [ -e {tried} ]; do sleep 0.02; done; exit 7"
    with started("job", "sh", "-c", command, before=refusing) as process:
        assert process.wait() == 7
    assert nodes[0].store.leases == {}


def test_a_signal_that_comes_when_the_command_has_ended_stops_nothing(started: Started, nodes: list[Node]) -> None:
    """The lock was left to its TTL, and the command's exit status lost."""
    late = """
import os, signal
from nebuladb.client import AsyncClient
revoke = AsyncClient.revoke_lease
async def signalled(*given):
    os.kill(os.getpid(), signal.SIGTERM)
    await revoke(*given)
AsyncClient.revoke_lease = signalled
"""
    with started("job", "sh", "-c", "exit 7", before=late) as process:
        assert process.wait() == 7
    assert nodes[0].store.leases == {}


def test_a_signal_that_we_ignore_is_ignored_by_the_command_too(started: Started) -> None:
    """A script's background jobs ignore Ctrl-C, which is not for them: the command was ended by it."""
    for name in ("INT", "TERM"):
        ignore = f"import signal; signal.signal(signal.SIG{name}, signal.SIG_IGN)"
        with started("job", "sh", "-c", f"kill -{name} $$ $PPID; exit 7", before=ignore) as process:
            assert process.wait() == 7, name

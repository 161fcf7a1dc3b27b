"""`nebulad dev` over fake nodes: what a supervisor does needs no database."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nebuladb.errors import ConfigurationError, IdentityError
from nebuladb.node.identity import FOUNDING_FILE
from nebuladb.server.config import load
from nebuladb.server.dev import MAX_NODES, _Alarm, plan, prepare, run
from nebuladb.storage.lock import DirectoryLock
from tests.integration.cluster import Ports

FAKE = Path(__file__).with_name("fake_node.py")
SECONDS = 20
PROGRAM = """
import sys
from pathlib import Path
from nebuladb.server import dev
sys.exit(dev.run(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), (sys.executable, sys.argv[4])))
"""


@pytest.fixture
def base() -> Iterator[int]:
    """A base port whose nodes' ports are free, kept from the clusters of other runs."""
    ports = Ports(3)
    yield ports.base
    ports.close()


@contextmanager
def supervisor(directory: Path, base: int, **environ: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "3", str(directory), str(base), str(FAKE)],
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=SECONDS)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], SECONDS)
    assert readable, "no line came"
    return process.stdout.readline()


def children(process: subprocess.Popen[str]) -> list[int]:
    """Pids of its children, in the order of their start."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    """Wait until nothing runs under `pid`; a zombie of somebody else's counts as gone."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        select.select([], [], [], 0.01)
    return False


def test_the_plan_is_the_contract_s() -> None:
    third = plan(3, Path("/d"), 7379)[2]
    assert third.file == Path("/d/n3/nebulad.toml")
    assert third.config.data_dir == Path("/d/n3")
    assert (third.config.client_addr, third.config.peer_addr, third.config.admin_addr) == (
        "127.0.0.1:7579",
        "127.0.0.1:7580",
        "127.0.0.1:7581",
    )
    assert third.config.initial_cluster == {"n1": "127.0.0.1:7380", "n2": "127.0.0.1:7480", "n3": "127.0.0.1:7580"}


@pytest.mark.parametrize(("nodes", "base"), [(0, 7379), (MAX_NODES + 1, 7379), (3, 0), (3, 65400)])
def test_an_impossible_plan_is_refused(nodes: int, base: int) -> None:
    with pytest.raises(ConfigurationError):
        plan(nodes, Path("/d"), base)


def test_a_second_run_keeps_what_a_person_edited(tmp_path: Path) -> None:
    members = plan(3, tmp_path, 7379)
    prepare(members, tmp_path)
    file = members[1].file
    file.write_text(file.read_text().replace('log-level = "info"', 'log-level = "debug"'))
    prepare(members, tmp_path)
    assert load({}, {}, file).log_level == "debug"


def test_another_shape_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    prepare(plan(3, tmp_path, 7379), tmp_path)
    with pytest.raises(ConfigurationError, match="holds a cluster of 3 nodes; give --nodes 3"):
        prepare(plan(4, tmp_path, 7379), tmp_path)
    with pytest.raises(ConfigurationError, match="same --base-port"):
        prepare(plan(3, tmp_path, 7380), tmp_path)
    assert not (tmp_path / "n4").exists()


def test_a_first_run_that_was_ended_early_is_made_whole(tmp_path: Path) -> None:
    """It said: give --nodes 1; and with that, that the initial cluster is another one."""
    members = plan(3, tmp_path, 7379)
    prepare(members, tmp_path)
    for member in members[1:]:
        member.file.unlink()
    with pytest.raises(ConfigurationError, match="give --nodes 3"):
        prepare(plan(1, tmp_path, 7379), tmp_path)
    assert prepare(members, tmp_path) == members
    assert all(member.file.exists() for member in members)


def test_directories_that_were_restored_are_those_of_a_cluster(tmp_path: Path) -> None:
    """They have no file of `nebulad dev` yet, and neither has one whose file alone is gone."""
    members = plan(3, tmp_path, 7379)
    for member in members:
        member.directory.mkdir()
        (member.directory / FOUNDING_FILE).touch()
    assert prepare(members, tmp_path) == members
    members[1].file.unlink()
    assert prepare(members, tmp_path) == members
    assert members[1].file.exists()


def test_who_could_not_have_a_port_may_try_others_in_the_same_directory(tmp_path: Path, base: int) -> None:
    """It left its files, which then asked for the same ports as before."""
    data_dir = tmp_path / "d"
    with socket.create_server(("127.0.0.1", base + 101)), supervisor(data_dir, base) as process:
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode != 0
    assert f"n2 can't listen at 127.0.0.1:{base + 101}: Address already in use; give another --base-port" in errors
    assert not data_dir.exists()


def test_a_node_whose_directory_was_emptied_is_left_out(tmp_path: Path, base: int) -> None:
    """As operations.md has it done with a removed node's. No number of nodes was right then."""
    members = plan(3, tmp_path, base)
    prepare(members, tmp_path)
    members[0].file.unlink()
    (members[1].directory / FOUNDING_FILE).touch()
    (tmp_path / "n4").mkdir()
    (tmp_path / "n4" / "nebulad.toml").write_text("a person's own")
    with supervisor(tmp_path, base) as process:
        assert line_of(process) == f"cluster ready endpoints=127.0.0.1:{base + 100},127.0.0.1:{base + 200}\n"
        process.terminate()
        _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 0
        assert "going on without n1" in errors
    assert not members[0].file.exists()


def test_it_says_ready_once_and_stops_all(tmp_path: Path, base: int) -> None:
    with supervisor(tmp_path, base, NEBULA_NAME="not-for-children") as process:
        assert line_of(process) == (
            f"cluster ready endpoints=127.0.0.1:{base},127.0.0.1:{base + 100},127.0.0.1:{base + 200}\n"
        )
        nodes = children(process)
        assert len(nodes) == 3
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=SECONDS)
        assert (process.returncode, rest) == (0, "")
        assert "fake n1 started" in errors
        assert all(gone(pid) for pid in nodes)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("redirection", "why"),
    [(">/dev/full", "stdout: No space left on device"), ("", "stdout: Broken pipe"), (">&-", "stdout is closed")],
)
def test_a_line_that_nobody_hears_ends_no_cluster(tmp_path: Path, base: int, redirection: str, why: str) -> None:
    script = f'exec "$@" {redirection}'
    command = [sys.executable, "-c", PROGRAM, "3", str(tmp_path), str(base), str(FAKE)]
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(["sh", "-c", script, "sh", *command], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    late = threading.Timer(SECONDS, process.kill)
    late.start()
    try:
        assert process.stderr is not None
        told = f"nebulad dev: {why}; cluster ready endpoints=127.0.0.1:{base},"
        while not (line := process.stderr.readline()).startswith(told):
            assert line, "nothing was said"
        assert len(children(process)) == 3
    finally:
        process.terminate()
        _, rest = process.communicate(timeout=SECONDS)
        late.cancel()
    assert process.returncode == 0
    assert "stdout" not in rest
    assert "Traceback" not in rest


def test_a_dead_child_stays_dead_and_the_rest_run_on(tmp_path: Path, base: int) -> None:
    with supervisor(tmp_path, base) as process:
        line_of(process)
        nodes = children(process)
        os.kill(nodes[1], signal.SIGKILL)
        assert gone(nodes[1])
        assert process.stderr is not None
        while "n2" not in (line := process.stderr.readline()) or "SIGKILL" not in line:
            assert line, "nothing was said about n2"
        assert children(process) == [nodes[0], nodes[2]]
        process.terminate()
        process.communicate(timeout=SECONDS)
        assert process.returncode == 0


def test_a_node_that_dies_before_ready_ends_it_with_1(tmp_path: Path, base: int) -> None:
    with supervisor(tmp_path, base, FAKE_DIES="n3") as process:
        out, errors = process.communicate(timeout=SECONDS)
        assert (process.returncode, out) == (1, "")
        assert "n3" in errors
        assert "exited with 1" in errors


def test_a_node_that_was_removed_is_left_out(tmp_path: Path, base: int) -> None:
    with supervisor(tmp_path, base, FAKE_REMOVED="n1") as process:
        assert line_of(process) == f"cluster ready endpoints=127.0.0.1:{base + 100},127.0.0.1:{base + 200}\n"
        process.terminate()
        _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 0
        assert "exited with 3: it was removed from the cluster; going on without it" in errors


def test_somebody_else_s_answer_is_not_readiness(tmp_path: Path, base: int) -> None:
    with supervisor(tmp_path, base, FAKE_PID="1") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for _ in range(3):
            process.stderr.readline()
        assert not select.select([process.stdout], [], [], 0.5)[0]


def test_a_second_supervisor_of_a_directory_is_refused_before_it_starts_a_node(tmp_path: Path, base: int) -> None:
    """Also where a child of the first has died, whose place the second one's would take for a while."""
    with supervisor(tmp_path, base) as process:
        line_of(process)
        os.kill(children(process)[1], signal.SIGKILL)
        with pytest.raises(IdentityError, match=rf"{tmp_path} is in use by another nebulad \(process {process.pid}\)"):
            run(3, tmp_path, base, ("false",))
        process.kill()
        process.wait()
    assert run(3, tmp_path, base, ("false",)) == 1  # `false` is a node that dies


def test_a_node_of_a_killed_supervisor_that_still_stops_is_waited_for(tmp_path: Path, base: int) -> None:
    """Its successor found the directory taken, and died; so did the cluster."""
    (tmp_path / "n2").mkdir()
    stopping = DirectoryLock(tmp_path / "n2")
    with supervisor(tmp_path, base) as process:
        assert process.stderr is not None
        assert f"{tmp_path / 'n2'} is in use by another nebulad" in process.stderr.readline()
        assert children(process) == []
        stopping.release()
        assert line_of(process).startswith("cluster ready")


def test_a_signal_ends_the_wait_for_a_node_that_still_stops(tmp_path: Path, base: int) -> None:
    (tmp_path / "n2").mkdir()
    stopping = DirectoryLock(tmp_path / "n2")
    with supervisor(tmp_path, base) as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.terminate()
        assert process.wait(SECONDS / 4) == 0
    stopping.release()


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_nodes_go_when_the_supervisor_is_killed(tmp_path: Path, base: int) -> None:
    with supervisor(tmp_path, base) as process:
        line_of(process)
        nodes = children(process)
        process.kill()
        assert all(gone(pid) for pid in nodes)


def test_a_hang_up_that_nohup_had_ignored_stays_so() -> None:
    numbers = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
    before = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a script's "&" has it
    try:
        with _Alarm() as alarm:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) == alarm._ring
            assert signal.getsignal(signal.SIGINT) == alarm._ring
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""`nebulad verify` on a real node's directory: whole, and with a byte flipped here and there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nebuladb.client import Client
from nebuladb.errors import StoreError
from nebuladb.ids import DEFAULT_GROUP, Generation, GroupId
from nebuladb.kv.rows import Keys
from nebuladb.kv.state import State
from nebuladb.node.identity import Identity
from nebuladb.node.memory import plan
from nebuladb.server.directory import DataDirectory
from nebuladb.server.recover import recover
from nebuladb.server.verify import report, verify
from nebuladb.storage.engine import Batch
from nebuladb.storage.rocks import RocksEngine, RocksMemory
from nebuladb.storage.wal import Found
from tests.integration.cluster import Cluster

KEYS = 200
ROW = Keys(GroupId(DEFAULT_GROUP), Generation(1))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a node that was stopped in order."""
    directory = tmp_path_factory.mktemp("verify")
    with Cluster(directory, nodes=1) as cluster:
        cluster.start()
        cluster.wait_ready()
        with Client(cluster.endpoints) as client:
            lease = client.grant_lease(1_000).id
            for number in range(KEYS):
                client.put(b"k%d" % number, b"v" * 100)
            client.put(b"leased", b"v", lease=lease)
            client.delete(b"k1")
            assert command(cluster.data_dir(0))[0] == 2, "a node runs on it"
        assert cluster.stop() == [0]
        ordered = shutil.copytree(cluster.data_dir(0), directory / "ordered")
        cluster.start()
        cluster.wait_ready()
        with Client(cluster.endpoints) as client:
            for number in range(KEYS):
                client.put(b"k%d" % number, b"w" * 100)
        cluster.kill(0)
        return ordered


@pytest.fixture
def killed(stopped: Path, tmp_path: Path) -> Path:
    """The directory of the same node, which was started again and killed: its log is in its WAL."""
    return shutil.copytree(stopped.parent / "n1", tmp_path / "killed")


@pytest.fixture
def copy(stopped: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stopped, tmp_path / "copy")


def command(directory: Path) -> tuple[int, str]:
    """Exit code and output of the command itself."""
    arguments = [sys.executable, "-m", "nebuladb.server.main", "verify", "--data-dir", str(directory)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def problems(directory: Path) -> list[str]:
    return [f"{finding.part}: {finding.problem}" for finding in verify(directory) if finding.problem]


def flip_log(directory: Path) -> Path:
    """Flip a bit in the middle of the log's records; the file that has them."""
    wal = largest(directory / "raft", "*.log")
    flip(wal, len(wal.read_bytes().rstrip(b"\0")) // 2)
    return wal


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x40
    path.write_bytes(data)


def largest(directory: Path, pattern: str) -> Path:
    return max(directory.glob(pattern), key=lambda path: path.stat().st_size)


@contextmanager
def rows(directory: Path) -> Iterator[RocksEngine]:
    engine = RocksEngine.open_data(directory / "data")
    yield engine
    engine.flush()
    engine.close()


def test_a_directory_that_was_left_in_order_is_sound_and_stays_as_it_was(copy: Path) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and path.name != "LOCK"}
    code, text = command(copy)
    assert code == 0, text
    assert f"shard {DEFAULT_GROUP}: {KEYS} keys" in text
    files = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and path.name != "LOCK"}
    changed = {path.name for path in before if files.get(path) != before[path]}
    assert {name for name in changed if not name.startswith("LOG")} == set()


def test_where_a_log_ends_is_told_too(killed: Path) -> None:
    """By what it had applied a killed node was taken for the poorer survivor, with all that its log still had."""
    lines = command(killed)[1].splitlines()
    line = next(line for line in lines if f"shard {DEFAULT_GROUP}: " in line)
    found = re.search(r"applied up to index (\d+); its log ends at index (\d+) of term (\d+)$", line)
    assert found is not None, line
    applied, last, term = map(int, found.groups())
    assert applied < last
    assert term >= 2, "it was started twice"
    told: list[str] = []
    recover(killed, told.append)
    assert any(text.startswith(f"shard {DEFAULT_GROUP}: {last} log entries applied") for text in told), told


def test_a_file_voting_with_which_the_node_would_not_start(copy: Path) -> None:
    assert problems(copy) == []
    for damaged in (b"garbled\n", b"-000000000000001\n", b"00\n"):
        (copy / "voting").write_bytes(damaged)
        assert problems(copy) == ["voting: it is damaged"]
    (copy / "voting").write_bytes(b"")
    assert problems(copy) == []


@pytest.mark.parametrize("name", ["identity.json", "founding.json"])
def test_a_flipped_byte_in_a_document(copy: Path, name: str) -> None:
    flip(copy / name, 20)
    code, text = command(copy)
    assert code == 1
    assert f"PROBLEM  {name}: " in text


def test_a_flipped_byte_in_a_data_table(copy: Path) -> None:
    flip(largest(copy / "data", "*.sst"), 500)
    code, text = command(copy)
    assert code == 1
    assert "PROBLEM" in text
    assert "the log is whole" in text


def test_a_flipped_byte_in_the_middle_of_the_logs_wal(killed: Path) -> None:
    flip_log(killed)
    lines: list[str] = []
    assert not report(killed, lines.append)
    assert any(
        "had been made durable and can't be read" in line and "must not take part" in line and "nebulad recover" in line
        for line in lines
    )


def test_a_torn_end_of_the_wal_is_no_damage(killed: Path) -> None:
    wal = largest(killed / "raft", "*.log")
    with wal.open("ab") as file:
        file.write(b"\x01torn")
    assert problems(killed) == []


def test_rows_that_contradict_each_other(copy: Path) -> None:
    with rows(copy) as engine:
        record = engine.get(ROW.current + b"k5")
        assert record is not None
        batch = Batch()
        batch.put(ROW.current + b"k5", record[:-1] + b"X")
        batch.delete(ROW.current + b"k6")
        for row, _ in engine.scan(ROW.attachment, ROW.lease):
            batch.delete(row)
        engine.write(batch)
    found = problems(copy)
    assert any("b'k5': its newest record" in problem for problem in found)
    assert any("b'k6' was changed" in problem and "has no newest record" in problem for problem in found)
    assert any("b'leased' has lease" in problem for problem in found)
    assert any(f"there are {KEYS - 1} keys" in problem for problem in found)


@pytest.mark.parametrize(("entries", "place", "where"), [(1, 0, "at index {}"), (0, 1, "amid entry {}")])
def test_a_log_that_ends_before_what_was_applied(copy: Path, entries: int, place: int, where: str) -> None:
    """Also amid what was applied: the half of an entry that is gone would be left to the next one."""
    with rows(copy) as engine:
        row = engine.get(ROW.state)
        assert row is not None
        state = State.decode(row)
        last = state.index
        state.index, state.place = last + entries, place
        batch = Batch()
        batch.put(ROW.state, state.encode())
        engine.write(batch)
    lost = f"shard {DEFAULT_GROUP}: its data is {where.format(last + 1)}, its log ends at {last}: the log lost entries"
    assert problems(copy) == [lost]


def test_a_log_of_another_node(copy: Path) -> None:
    """The node doesn't start with it, and verify called it sound."""
    file = copy / "identity.json"
    identity = Identity.decode(file.read_bytes())
    file.write_bytes(identity._replace(node=identity.node ^ 2).encode())
    (problem,) = problems(copy)
    assert problem.startswith(f"raft: raft/ is of node {identity.node:016x}, and this is {identity.node ^ 2:016x}")
    file.write_bytes(b"garbled")
    assert problems(copy) == [
        "identity.json: identity.json is damaged; " + "restore this node as a new member with an empty data directory"
    ]
    file.unlink()
    assert problems(copy) == ["identity.json: it is missing"]


def test_lost_databases(copy: Path) -> None:
    shutil.rmtree(copy / "data")
    assert problems(copy) == ["data: the data's database is missing"]
    shutil.rmtree(copy / "raft")
    assert problems(copy) == ["raft: the log's database is missing"]


def test_a_node_that_waits_to_join_has_lost_nothing(tmp_path: Path) -> None:
    """It was to be replaced, though it only has to be started again."""
    directory = DataDirectory(tmp_path)
    directory.identity("n9")
    directory.close()
    code, text = command(tmp_path)
    assert code == 0
    assert "raft: none yet" in text


def test_what_is_no_directory_of_a_node(tmp_path: Path) -> None:
    code, text = command(tmp_path)
    assert code == 2
    assert "is no data directory" in text


@pytest.mark.parametrize("errno", [5, 24])
@pytest.mark.parametrize("where", ["raft", "data"])
def test_what_can_not_be_read_is_not_called_damaged(
    killed: Path, monkeypatch: pytest.MonkeyPatch, errno: int, where: str
) -> None:
    """To replace the node would be to delete what may be the only survivor."""
    text = f"IO error: While open a file for random read: {killed / where}/000009.sst: {os.strerror(errno)}"
    inspect = RocksEngine.inspect

    def fails(path: Path, found: Found | None = None) -> RocksEngine:
        if path.name == where:
            raise StoreError(text)
        return inspect(path, found)

    monkeypatch.setattr(RocksEngine, "inspect", fails)
    lines: list[str] = []
    with pytest.raises(StoreError, match=f"{os.strerror(errno)}. That says nothing of what is stored: mend the cause"):
        report(killed, lines.append)
    assert not any("must not take part" in line or "PROBLEM" in line for line in lines)
    assert "NOT sound: see above" not in lines


@pytest.mark.parametrize("name", ["identity.json", "voting", "raft"])
def test_what_the_disk_does_not_give_is_not_called_damaged(
    killed: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    read_bytes = Path.read_bytes

    def fails(path: Path) -> bytes:
        if path.name == name or (path.parent.name == name and path.suffix == ".log"):
            raise OSError(5, os.strerror(5), str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(StoreError, match=rf"can't read .*{name}.*: Input/output error\. That says nothing"):
        report(killed, lambda line: None)
    directory = DataDirectory(killed)

    def start() -> None:
        directory.identity("n1")
        directory.life()
        directory.open_log(plan(), RocksMemory(1 << 20, 1 << 20))

    with pytest.raises(StoreError, match=rf"can't read .*{name}.*: Input/output error"):
        start()
    directory.close()


def test_a_missing_part_of_a_database_is_damage(copy: Path) -> None:
    (copy / "raft" / "CURRENT").unlink()
    assert any("must not take part" in finding.advice for finding in verify(copy))

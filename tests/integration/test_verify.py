"""`nebulad verify` on a real node's directory: whole, and with a byte flipped here and there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nebuladb.client import Client
from nebuladb.ids import DEFAULT_GROUP, Generation, GroupId
from nebuladb.kv.rows import Keys
from nebuladb.server.verify import report, verify
from nebuladb.storage.engine import Batch
from nebuladb.storage.rocks import RocksEngine
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
    assert any("had been made durable and can't be read" in line and "must not take part" in line for line in lines)


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


def test_lost_databases(copy: Path) -> None:
    shutil.rmtree(copy / "data")
    assert problems(copy) == ["data: the data's database is missing"]
    shutil.rmtree(copy / "raft")
    assert problems(copy) == ["raft: the log's database is missing"]


def test_what_is_no_directory_of_a_node(tmp_path: Path) -> None:
    code, text = command(tmp_path)
    assert code == 2
    assert "is no data directory" in text

"""The data directory: who it says the node is, whatever happened to it (S14, S15, S18)."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nebuladb.errors import Corruption, DiskFull, IdentityError, StoreError
from nebuladb.ids import META_GROUP, BatchId, GroupId
from nebuladb.node.identity import Founder, Founding, Identity
from nebuladb.node.joined import Joined
from nebuladb.node.memory import plan
from nebuladb.node.meta import meta_shard
from nebuladb.node.registry import first_row
from nebuladb.server.directory import DAMAGED, VOTING, DataDirectory, life_in
from nebuladb.server.space import BALLAST_FILE
from nebuladb.server.verify import verify
from nebuladb.storage.engine import Batch
from nebuladb.storage.files import write_durably
from nebuladb.storage.log import LogStore
from nebuladb.storage.log_batch import LogBatch
from nebuladb.storage.rocks import RocksMemory


@contextmanager
def opened(path: Path) -> Iterator[DataDirectory]:
    directory = DataDirectory(path)
    try:
        yield directory
    finally:
        directory.close()


def founding_of(identity: Identity, cluster: int = 99) -> Founding:
    return Founding(cluster, (Founder(identity.name, identity.node, "a:1"),))


def founded(path: Path) -> Identity:
    """A directory of a node that belongs to a cluster."""
    with opened(path) as directory:
        identity = directory.identity("n1")
        return directory.found(identity, founding_of(identity))


def test_a_fresh_directory_draws_an_id_once(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as directory:
        first = directory.identity("n1")
        assert directory.founding() is None
    with opened(tmp_path / "a") as directory:
        assert directory.identity("n1") == first
    with opened(tmp_path / "b") as directory:
        assert directory.identity("n1").node != first.node
    assert first.cluster == 0
    assert first.node != 0


def test_an_id_is_kept_where_it_stays_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory's name was synced behind it: after a failure the next start didn't try again."""

    def fail(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with opened(tmp_path / "a") as directory:
        monkeypatch.setattr("nebuladb.storage.files.sync_directory", fail)
        for _ in range(2):
            with pytest.raises(StoreError, match=r"can't write .*identity\.json: Input/output error"):
                directory.identity("n1")
        monkeypatch.undo()
        assert directory.identity("n1").name == "n1"


def test_a_founded_directory_knows_its_cluster(tmp_path: Path) -> None:
    identity = founded(tmp_path)
    with opened(tmp_path) as directory:
        assert directory.identity("n1") == identity
        assert directory.founding() == founding_of(identity)
        assert identity.cluster == 99


def test_a_crash_between_the_two_documents_is_made_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node would introduce itself with cluster 0 for ever, and every peer would refuse it."""
    with opened(tmp_path) as directory:
        identity = directory.identity("n1")

        def crash_at_identity(path: Path, data: bytes) -> None:
            if path.name == "identity.json":
                raise KeyboardInterrupt
            write_durably(path, data)

        monkeypatch.setattr("nebuladb.server.directory.write_durably", crash_at_identity)
        with pytest.raises(KeyboardInterrupt):
            directory.found(identity, founding_of(identity))
        monkeypatch.undo()
    for _ in range(2):
        with opened(tmp_path) as directory:
            assert directory.identity("n1") == identity._replace(cluster=99)
            assert directory.founding() == founding_of(identity)


def test_a_second_founding_document_is_refused(tmp_path: Path) -> None:
    identity = founded(tmp_path)
    with opened(tmp_path) as directory, pytest.raises(IdentityError, match="another founding document"):
        directory.found(identity, founding_of(identity, 100))


def test_a_directory_that_lost_its_founding_document_joins_no_other_cluster(tmp_path: Path) -> None:
    identity = founded(tmp_path)
    (tmp_path / "founding.json").unlink()
    with opened(tmp_path) as directory:
        with pytest.raises(IdentityError, match="belongs to cluster 0000000000000063"):
            directory.found(identity, founding_of(identity, 100))
        with pytest.raises(IdentityError, match=r"lost founding.json.*copy it.*joined.json.*member replace n1"):
            directory.identity("n1")
    (tmp_path / "founding.json").write_bytes(founding_of(identity).encode())
    with opened(tmp_path) as directory:
        assert directory.identity("n1") == identity


def test_a_founding_document_of_another_cluster_is_refused(tmp_path: Path) -> None:
    identity = founded(tmp_path)
    (tmp_path / "founding.json").write_bytes(founding_of(identity, 100).encode())
    with opened(tmp_path) as directory, pytest.raises(IdentityError, match="belongs to cluster 0000000000000063"):
        directory.identity("n1")


def test_another_nodes_directory_is_refused(tmp_path: Path) -> None:
    founded(tmp_path)
    with opened(tmp_path) as directory, pytest.raises(IdentityError, match="belongs to node 'n1', not 'n2'"):
        directory.identity("n2")


@pytest.mark.parametrize("left", ["raft", "data", "founding.json"])
def test_data_without_identity_is_refused(tmp_path: Path, left: str) -> None:
    (tmp_path / left).mkdir()
    with opened(tmp_path) as directory, pytest.raises(IdentityError, match="no identity"):
        directory.identity("n1")


@pytest.mark.parametrize("left", ["raft", "data", VOTING])
def test_a_node_that_lost_its_document_was_founded_all_the_same(tmp_path: Path, left: str) -> None:
    with opened(tmp_path) as directory:
        assert not directory.founded
        (tmp_path / left).mkdir()
        assert directory.founded


def test_data_without_its_log_is_refused_because_the_votes_were_in_it(tmp_path: Path) -> None:
    founded(tmp_path)
    (tmp_path / "data").mkdir()
    with opened(tmp_path) as directory, pytest.raises(IdentityError, match=r"log .* is gone.*member replace n1"):
        directory.identity("n1")


@pytest.mark.parametrize("left", [True, False], ids=["empty", "gone"])
def test_a_log_that_was_in_use_and_is_empty_is_refused(tmp_path: Path, left: bool) -> None:
    """The documents alone don't make a node fresh: it may have voted, and acknowledged (S14, S15)."""
    founded(tmp_path)
    with opened(tmp_path) as directory:
        log_of(directory).close()
        assert not (tmp_path / VOTING).exists()
        log_of(directory).close()  # a crash before its first replica: it is as fresh as before
        log = log_of(directory)
        register(log)
        directory.mark_voting()
        directory.mark_voting()
        log.close()
        log_of(directory).close()
    shutil.rmtree(tmp_path / "raft")
    if left:
        with opened(tmp_path) as directory, pytest.raises(IdentityError, match=r"forgot its votes.*member replace"):
            log_of(directory)
    else:
        with opened(tmp_path) as directory, pytest.raises(IdentityError, match=r"log .* is gone.*member replace n1"):
            directory.identity("n1")
    assert [one.problem for one in verify(tmp_path) if one.part.startswith("raft") and one.problem]


def test_a_log_in_use_is_noted_where_a_crash_came_before_or_an_older_build_had_it(tmp_path: Path) -> None:
    founded(tmp_path)
    with opened(tmp_path) as directory:
        log = log_of(directory)
        register(log)
        log.close()
        assert not (tmp_path / VOTING).exists()
        log_of(directory).close()
    assert (tmp_path / VOTING).read_bytes() == b""


@pytest.mark.parametrize(
    ("text", "life"),
    [
        (b"", 0),
        (b"00000000000000ab\n", 0xAB),  # of a build that wrote no checksum
        (b"00000000000000ab a25468bc\n", 0xAB),
        (b"00000000000000aa a25468bc\n", None),
        (b"00000000000000ab a25468bd\n", None),
        (b"00000000000000ab a25468bc", None),
        (b"ab\n", None),
    ],
)
def test_a_life_that_is_damaged_is_not_believed(text: bytes, life: int | None) -> None:
    """Of 16 hexadecimal digits any is as good as another: the node took itself for one of another life, and its peers
    told it to have its directory emptied."""
    assert life_in(text) == life


def log_of(directory: DataDirectory) -> LogStore:
    return directory.open_log(plan(), RocksMemory(1 << 20, 1 << 20))


def register(log: LogStore) -> None:
    batch = LogBatch(BatchId(1))
    batch.register(GroupId(META_GROUP), first_row(1, {1: 1}, (1, 1)).encode())
    log.write(batch, BatchId(0))
    log.sync()


def test_a_joining_document_is_verified(tmp_path: Path) -> None:
    identity = founded(tmp_path)
    (tmp_path / "founding.json").unlink()
    assert any("both are missing" in one.problem for one in verify(tmp_path))
    joined = Joined(founding_of(identity), identity.node, meta_shard(founding_of(identity)), ())
    (tmp_path / "joined.json").write_bytes(joined.encode())
    sound = [one.part.partition(":")[0] for one in verify(tmp_path) if not one.problem]
    assert sound == ["identity.json", "joined.json", "raft"]
    (tmp_path / "joined.json").write_bytes(joined.encode()[:-20])
    assert any(one.part == "joined.json" and "damaged" in one.problem for one in verify(tmp_path))


def test_the_ballast_makes_room_for_a_start_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ballast = tmp_path / BALLAST_FILE
    ballast.write_bytes(b"x")
    written = Path.write_text

    def full(path: Path, text: str, encoding: str) -> int:
        if ballast.exists() or not text:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(path, text, encoding=encoding)

    monkeypatch.setattr(Path, "write_text", full)
    with opened(tmp_path):
        assert not ballast.exists()
        assert (tmp_path / "nebulad.pid").exists()
    monkeypatch.setattr(Path, "write_text", lambda path, text, encoding: full(path, "", encoding))
    for _ in range(2):  # the first one leaves no lock behind
        with pytest.raises(DiskFull, match=r"can't write .*nebulad.pid"):
            DataDirectory(tmp_path)


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(IdentityError):
        DataDirectory(tmp_path)


def test_a_data_store_that_cannot_be_opened_is_put_aside(tmp_path: Path) -> None:
    """The log is whole: the node's replicas get their data from their leaders (S15)."""
    for number in range(2):
        with_data(tmp_path, b"%d" % number)
        for file in (tmp_path / "d" / "data").glob("MANIFEST-*"):
            file.write_bytes(b"damaged")
        directory = DataDirectory(tmp_path / "d")
        engine = directory.open_data(plan(), RocksMemory(1 << 20, 1 << 20))
        assert engine.get(b"k") is None
        engine.close()
        directory.close()
        assert (tmp_path / "d" / DAMAGED).is_dir(), "the last one is kept"


@pytest.mark.parametrize("part", ["CURRENT", "MANIFEST-*", "*.sst"])
def test_a_data_store_of_which_a_part_is_gone_is_put_aside(tmp_path: Path, part: str) -> None:
    """Without its MANIFEST, as a repair of the file system may leave it, the node didn't start."""
    with_data(tmp_path, b"v")
    for file in (tmp_path / "d" / "data").glob(part):
        file.unlink()
    with opened(tmp_path / "d") as directory:
        engine = directory.open_data(plan(), RocksMemory(1 << 20, 1 << 20))
        assert engine.get(b"k") is None
        engine.close()
    assert (tmp_path / "d" / DAMAGED).is_dir()


def test_a_data_store_whose_disk_fails_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RocksDB calls it corruption that it can't look at a table. Alone, a node had nobody to get its data from."""
    with_data(tmp_path, b"v")

    def fail(*_: object, **__: object) -> None:
        raise Exception(
            "Corruption: Can't access /000008.sst: IO error: while stat a file for size: "
            "/d/data/000008.sst: Input/output error\n"
        )

    with opened(tmp_path / "d") as directory:
        monkeypatch.setattr("nebuladb.storage.rocks.Rdict", fail)
        with pytest.raises(StoreError, match=r"Can't access .*Input/output error") as raised:
            directory.open_data(plan(), RocksMemory(1 << 20, 1 << 20))
        assert not isinstance(raised.value, Corruption)
        monkeypatch.undo()
        engine = directory.open_data(plan(), RocksMemory(1 << 20, 1 << 20))
        assert engine.get(b"k") == b"v"
        engine.close()


def test_a_data_store_that_can_not_be_put_aside_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there from an earlier time was in the way, where it could not be removed: each start had a traceback."""
    with_data(tmp_path, b"v")
    (tmp_path / "d" / "data" / "CURRENT").write_bytes(b"damaged")
    older = tmp_path / "d" / DAMAGED / "000009.sst"
    older.parent.mkdir()
    older.touch()

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(older))

    monkeypatch.setattr(os, "unlink", fail)
    with opened(tmp_path / "d") as directory:
        with pytest.raises(StoreError, match=r"can't be put aside as .*damaged.*Input/output error.*move both"):
            directory.open_data(plan(), RocksMemory(1 << 20, 1 << 20))
        monkeypatch.undo()
        older.unlink()
        older.parent.rmdir()
        older.parent.symlink_to(tmp_path)
        engine = directory.open_data(plan(), RocksMemory(1 << 20, 1 << 20))
        assert engine.get(b"k") is None
        engine.close()


def with_data(tmp_path: Path, value: bytes) -> None:
    directory = DataDirectory(tmp_path / "d")
    engine = directory.open_data(plan(), RocksMemory(1 << 20, 1 << 20))
    batch = Batch()
    batch.put(b"k", value)
    engine.write(batch)
    engine.flush()
    engine.close()
    directory.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("what", ["LOCK", "identity", "founding", "joined", "voting"])
def test_a_first_start_on_a_full_disk_is_one_that_can_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, number: int
) -> None:
    """`DiskFull` is what the process waits for room after; anything else ended it, some with a traceback."""

    def full(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    if what == "LOCK":
        monkeypatch.setattr(os, "pwrite", full)
        for _ in range(2):  # the first one leaves no lock behind
            with pytest.raises(DiskFull, match=f"can't write {tmp_path}"):
                DataDirectory(tmp_path)
        return
    with opened(tmp_path) as directory:
        identity = Identity(11, "n1") if what == "identity" else directory.identity("n1")
        joined = Joined(founding_of(identity), 12, meta_shard(founding_of(identity)), ())
        monkeypatch.setattr("nebuladb.server.directory.write_durably", full)
        acts: dict[str, Callable[[], object]] = {
            "identity": lambda: directory.identity("n1"),
            "founding": lambda: directory.found(identity, founding_of(identity)),
            "joined": lambda: directory.join(identity, joined),
            "voting": directory.mark_voting,
        }
        with pytest.raises(DiskFull, match="can't write"):
            acts[what]()
    monkeypatch.undo()
    with opened(tmp_path) as directory:
        assert directory.identity("n1").name == "n1", "nothing is left that keeps the next start"


def test_what_cannot_be_looked_at_is_not_taken_for_gone(tmp_path: Path) -> None:
    """`Path.exists` says no: the node would have been told that its log is gone, and to be replaced."""
    with opened(tmp_path) as directory:
        directory.identity("n1")
        directory.mark_voting()
        (tmp_path / "raft").symlink_to(tmp_path / "raft")
        with pytest.raises(StoreError, match=r"can't look at .*raft"):
            directory.identity("n1")

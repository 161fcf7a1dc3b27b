"""The data directory: who it says the node is, whatever happened to it (S14, S15, S18)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nebuladb.errors import IdentityError
from nebuladb.node.identity import Founder, Founding, Identity
from nebuladb.node.memory import plan
from nebuladb.server.directory import DAMAGED, DataDirectory
from nebuladb.storage.engine import Batch
from nebuladb.storage.files import write_durably
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
            directory.found(directory.identity("n1"), founding_of(identity, 100))
        assert directory.found(directory.identity("n1"), founding_of(identity)) == identity


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


def test_data_without_its_log_is_refused_because_the_votes_were_in_it(tmp_path: Path) -> None:
    founded(tmp_path)
    (tmp_path / "data").mkdir()
    with opened(tmp_path) as directory, pytest.raises(IdentityError, match=r"log .* is gone.*member replace n1"):
        directory.identity("n1")


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


def with_data(tmp_path: Path, value: bytes) -> None:
    directory = DataDirectory(tmp_path / "d")
    engine = directory.open_data(plan(), RocksMemory(1 << 20, 1 << 20))
    batch = Batch()
    batch.put(b"k", value)
    engine.write(batch)
    engine.flush()
    engine.close()
    directory.close()

"""S34: what of a WAL is believed, by whom it was written (records made by hand, and logs stored as values)."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from nebuladb.errors import Corruption
from nebuladb.ids import BatchId, GroupId
from nebuladb.raft.entry import NORMAL, encode_entry
from nebuladb.raft.ready import HardState
from nebuladb.storage.log import LogStore
from nebuladb.storage.log_batch import GroupWrite, LogBatch
from nebuladb.storage.log_keys import STAMP_KEY, Stamp, encode_pair, encode_stamp
from nebuladb.storage.rocks import RocksEngine
from nebuladb.storage.wal import crc32c, examine, masked, wal_files
from tests.unit.storage.test_wal import BATCHES, as_killed, flip, live, opened, write

IDENTITY = b"identity"


def record(batch: int, flushed: int, identity: bytes = IDENTITY) -> bytes:
    stamp = encode_stamp(batch, flushed, identity) if identity else encode_pair(batch, flushed)
    row = bytes([1, 1, *STAMP_KEY, len(stamp)]) + stamp
    body = b"\x01" + struct.pack("<QI", batch, 1) + row
    return struct.pack("<IH", masked(crc32c(body)), len(body) - 1) + body


def test_records_behind_the_end_count_for_what_they_say_was_flushed_only(tmp_path: Path) -> None:
    file = tmp_path / "000004.log"
    file.write_bytes(b"".join(record(batch, batch - 1) for batch in range(1, 6)))
    assert examine([file], Stamp(), IDENTITY) == (5, 4, [(file, file.stat().st_size)], [])
    assert examine([file], Stamp(BatchId(7)), IDENTITY).kept == 7
    end = file.stat().st_size
    with file.open("ab") as later:
        later.write(bytes(100) + record(7, 5))
    assert examine([file], Stamp(), IDENTITY) == (5, 5, [(file, end)], [])
    late = tmp_path / "000005.log"
    late.write_bytes(record(9, 3))
    assert examine([file, late], Stamp(), IDENTITY) == (5, 5, [(file, end)], [late])
    flip(file, end - 30)
    assert examine([file], Stamp(), IDENTITY).missing == "log batches 5 to 5 had been made durable and can't be read"


def test_a_jump_amid_sound_records_is_damage(tmp_path: Path) -> None:
    file = tmp_path / "000004.log"
    file.write_bytes(record(1, 0) + record(3, 0))
    with pytest.raises(Corruption, match="lacks log batches 2 to 2"):
        examine([file], Stamp(), IDENTITY)


@pytest.mark.parametrize("kind", [5, 8, 9, 130])
def test_records_of_other_types_are_an_end(kind: int, tmp_path: Path) -> None:
    """As RocksDB writes them into files that it recycles, compresses or marks."""
    file = tmp_path / "000004.log"
    other = bytearray(record(2, 1))
    other[6] = kind
    other[:4] = struct.pack("<I", masked(crc32c(bytes(other[6:]))))
    file.write_bytes(record(1, 0) + other)
    assert examine([file], Stamp(), IDENTITY)[:2] == (1, 0)


def test_a_stamp_counts_only_with_the_databases_identity(tmp_path: Path) -> None:
    """Whatever a client stores: behind the end lies what it likes, with right checksums."""
    file = tmp_path / "000004.log"
    sound = b"".join(record(batch, batch - 1) for batch in range(1, 4))
    forged = [record(9, 8, b"stranger"), record(9, 8, b"")]
    for claim in forged:
        file.write_bytes(sound + bytes(50) + claim)
        assert examine([file], Stamp(), IDENTITY)[:2] == (3, 2)
        file.write_bytes(bytes(50) + claim)  # not even where the file's first page is lost
        assert examine([file], Stamp(BatchId(3), BatchId(2), IDENTITY), IDENTITY)[:2] == (3, 0)
    file.write_bytes(sound + bytes(50) + record(9, 8))
    assert examine([file], Stamp(), IDENTITY)[:2] == (3, 8)


def test_an_older_builds_stamps_count(tmp_path: Path) -> None:
    file = tmp_path / "000004.log"
    old = b"".join(record(batch, batch - 1, b"") for batch in range(1, 4))
    for stored in (Stamp(), Stamp(BatchId(1), BatchId(0))):
        file.write_bytes(old + bytes(50) + record(9, 8, b""))
        assert examine([file], stored, IDENTITY)[:2] == (3, 8)


def test_another_databases_log_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "000004.log"
    file.write_bytes(record(1, 0) + record(2, 1, b"stranger"))
    with pytest.raises(Corruption, match="another database"):
        examine([file], Stamp(), IDENTITY)


@pytest.mark.parametrize("seed", range(10))
def test_a_value_that_is_a_log_stops_nobody(seed: int, tmp_path: Path) -> None:
    """Another node's log, stored as a value: the batch is torn anywhere, or a page of it is lost."""
    rng = random.Random(seed)
    write(tmp_path / "other", BATCHES, 39)
    (other,) = live(tmp_path / "other")
    path = tmp_path / "raft"
    engine = RocksEngine.open_log(path)
    store = LogStore(engine)
    batch = LogBatch(BatchId(1))
    batch.create(GroupId(1), 0, 1)
    batch.write(GroupWrite(GroupId(1), HardState(1, 0, 0), [encode_entry(1, 1, NORMAL, b"1" * 100)]))
    store.write(batch, BatchId(0))
    engine.sync()
    (file,) = wal_files(path)
    synced = file.read_bytes().rstrip(b"\0")
    batch = LogBatch(BatchId(2))
    batch.write(GroupWrite(GroupId(1), HardState(1, 0, 0), [encode_entry(2, 1, NORMAL, other.read_bytes())]))
    store.write(batch, BatchId(1))
    killed = as_killed(path)
    store.close()
    data = bytearray((killed / file.name).read_bytes().rstrip(b"\0"))
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(synced), len(data))
        data[at : at + 4096] = bytes(min(4096, len(data) - at))
    if rng.random() < 0.5:
        del data[rng.randrange(len(synced), len(data)) :]
    (killed / file.name).write_bytes(data)
    assert opened(killed) == 1

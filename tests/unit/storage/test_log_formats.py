"""Golden bytes of ``docs/formats.md``, "Rows of raft/". A change here is a change of the disk format."""

from __future__ import annotations

import pytest

from nebuladb.errors import Corruption
from nebuladb.ids import BatchId, GroupId
from nebuladb.raft.entry import encode_entry
from nebuladb.raft.ready import HardState
from nebuladb.storage import log_keys
from nebuladb.storage.log import LogStore
from nebuladb.storage.log_batch import GroupWrite, LogBatch
from nebuladb.storage.memory import MemoryEngine


def test_rows() -> None:
    engine = MemoryEngine(wal=True)
    store = LogStore(engine)
    group = GroupId(0x0102030405060708)
    batch = LogBatch(BatchId(1))
    batch.create(group, 0x11, 0x12)
    batch.register(group, b"opaque")
    batch.write(GroupWrite(group, HardState(0x21, 0x22, 0x12), [encode_entry(0x12, 0x13, 0, b"payload")]))
    store.write(batch, BatchId(0))
    store.write(LogBatch(BatchId(2)), BatchId(1))
    assert {key.hex(" "): value.hex(" ") for key, value in engine.scan(b"", b"\xff")} == {
        "62": "02 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00 00",
        "65 01 02 03 04 05 06 07 08 00 00 00 00 00 00 00 12": (
            "01 00 00 00 00 00 00 00 00 00 00 13 00 00 00 00 00 00 00 12 5a c7 40 a3 70 61 79 6c 6f 61 64"
        ),
        "68 01 02 03 04 05 06 07 08": ("01 00 00 00 00 00 00 00 21 00 00 00 00 00 00 00 22 00 00 00 00 00 00 00 12"),
        "72 01 02 03 04 05 06 07 08": "6f 70 61 71 75 65",
        "73 01 02 03 04 05 06 07 08": "01 00 00 00 00 00 00 00 11 00 00 00 00 00 00 00 12",
    }


def test_unknown_version_or_length_is_corruption() -> None:
    good = log_keys.encode_pair(1, 2)
    assert log_keys.decode_start(good) == (1, 2)
    assert log_keys.decode_stamp(good) == (1, 2, b"")  # version 1
    stamp = log_keys.Stamp(BatchId(1), BatchId(2), b"identity")
    encoded = log_keys.encode_stamp(*stamp)
    assert log_keys.decode_stamp(encoded) == stamp
    assert log_keys.decode_stamp(None) == (0, 0, b"")
    for bad in (b"", good[:-1], good + b"\0", b"\x02" + good[1:], b"\x03" + encoded[1:], encoded[:-1]):
        for decode in (log_keys.decode_stamp, log_keys.decode_start, log_keys.decode_hard_state):
            with pytest.raises(Corruption):
                decode(bad)
    with pytest.raises(Corruption):
        log_keys.group_of(b"h")


@pytest.mark.parametrize("more", [b"", b"12345678"])
def test_a_stamp_of_a_newer_build_is_called_so_whatever_its_size(more: bytes) -> None:
    stamp = b"\x03" + log_keys.encode_stamp(1, 2, b"identity")[1:]
    with pytest.raises(Corruption, match="format version 3, this build knows 2: a newer build"):
        log_keys.decode_stamp(stamp + more)


def test_keys_of_a_group_are_contiguous() -> None:
    for group in (0, 1, 255, 1 << 63, (1 << 64) - 1):
        end = log_keys.entries_end(group)
        assert log_keys.entry_key(group, 0) < log_keys.entry_key(group, (1 << 64) - 1) < end
        if group < (1 << 64) - 1:
            assert end < log_keys.entry_key(group + 1, 0)
        assert end < log_keys.rows_of(log_keys.ENTRY_ROW)[1]

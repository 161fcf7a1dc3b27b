"""`nebulad recover` where the survivor's log is damaged: what can be read is not lost for what can't."""

from __future__ import annotations

from pathlib import Path

import pytest

from nebuladb.errors import Corruption, StoreError
from nebuladb.server.recover import ASIDE, recover
from nebuladb.server.verify import report
from nebuladb.storage.rocks import RocksEngine, examine_log
from tests.integration.test_verify import KEYS, ROW, flip_log, killed, stopped

__all__ = ["killed", "stopped"]  # fixtures


def test_a_survivor_with_a_damaged_log_becomes_a_cluster_of_what_it_has(killed: Path) -> None:
    wal = flip_log(killed)
    damaged = wal.read_bytes()
    with pytest.raises(Corruption, match="had been made durable"):
        RocksEngine.open_log(killed / "raft")
    lines: list[str] = []
    recover(killed, lines.append)
    assert any("what they held is LOST" in line for line in lines)
    assert (killed / f"raft-wal{ASIDE}" / wal.name).read_bytes() == damaged
    assert report(killed, lambda _: None)
    engine = RocksEngine.open_data(killed / "data")
    records = [engine.get(ROW.current + b"k%d" % number) for number in range(2, KEYS)]
    assert all(record is not None and record.endswith((b"v" * 100, b"w" * 100)) for record in records)
    changed = sum(record is not None and record.endswith(b"w" * 100) for record in records)
    assert 0 < changed < KEYS - 2  # those before the damage, at least
    engine.close()


def test_a_recovery_that_was_broken_off_after_the_damage_was_cut_goes_on(killed: Path) -> None:
    wal = flip_log(killed)
    damaged = wal.read_bytes()
    (killed / "data").rename(killed / "elsewhere")
    (killed / "data").write_text("no database")
    with pytest.raises(StoreError, match="exists"):
        recover(killed, lambda _: None)
    found = examine_log(killed / "raft")
    assert found is None or not found.missing
    (killed / "data").unlink()
    (killed / "elsewhere").rename(killed / "data")
    recover(killed, lambda _: None)
    assert (killed / f"raft-wal{ASIDE}" / wal.name).read_bytes() == damaged
    assert report(killed, lambda _: None)

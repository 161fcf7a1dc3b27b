"""What we lean on in rocksdict and RocksDB, by experiment. Look here first when the version moves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rocksdict import Options, Rdict, WriteBatch, WriteOptions

from nebuladb.errors import Corruption, DiskFull, StoreError, WriteStalled
from nebuladb.storage import rocks
from nebuladb.storage.engine import Batch
from nebuladb.storage.rocks import RocksEngine
from nebuladb.storage.rocks_errors import background_problem, classify
from nebuladb.storage.spans import pieces


def batch_of(*rows: tuple[bytes, bytes]) -> Batch:
    batch = Batch()
    for key, value in rows:
        batch.put(key, value)
    return batch


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def test_version() -> None:
    """The facts below were found with this one."""
    from importlib.metadata import version

    assert version("rocksdict") == "0.3.29"


def test_errors_are_classified_by_their_first_words() -> None:
    for text, kind in {
        "Result incomplete: Write stall": WriteStalled,
        "IO error: No space left on device: While appending to file: 000004.log: No space left on device": DiskFull,
        "IO error: DB::Open() failed --- Unable to persist Options file: IO error: Unable to persist options.: "
        "IO error: No space left on device: While appending to file: OPTIONS-7: No space left on device": DiskFull,
        "No space left on device (os error 28)": DiskFull,
        "IO error: While appending to file: /d/000004.log: Disk quota exceeded": DiskFull,
        "IO error: DB::Open() failed --- Unable to persist Options file: IO error: Unable to persist options.: "
        "IO error: While appending to file: OPTIONS-7: Disk quota exceeded": DiskFull,
        "Disk quota exceeded (os error 122)": DiskFull,
        "Corruption: block checksum mismatch: stored = 1, computed = 2": Corruption,
        "Corruption: Can't access /000008.sst: IO error: No such file or directory: while stat a file for size: "
        "/d/000008.sst: No such file or directory\n": Corruption,
        "Corruption: Can't access /000008.sst: IO error: while stat a file for size: "
        "/d/000008.sst: Input/output error\n": StoreError,  # of the disk, and it may pass
        "IO error: While fsync: Input/output error": StoreError,
        "Result incomplete: Too many internal keys skipped": StoreError,
        "something new": StoreError,
        "": StoreError,
    }.items():
        assert type(classify(Exception(text))) is kind, text
    assert classify(Exception("")).message


def test_a_database_that_cannot_be_opened_is_not_told_of_options() -> None:
    """Which are what RocksDB blames."""
    why = "IO error: While open a file for random read: /data/CURRENT: Input/output error"
    found = classify(Exception(f"Invalid argument: Found options incompatible with filesystem: {why}"))
    assert (type(found), found.message) == (StoreError, why)
    found = classify(Exception("Invalid argument: Direct I/O is not supported by the specified DB."))
    assert type(found) is StoreError
    assert "CURRENT failed" in found.message


@pytest.mark.parametrize("call", ["sync", "flush"])
def test_interpreter_runs_during(call: str, tmp_path: Path) -> None:
    """`flush_wal` and `flush` release the interpreter's lock: this thread works on while they run."""
    engine = RocksEngine.open_log(tmp_path)
    done = threading.Event()

    def work() -> None:
        getattr(engine, call)()
        done.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # so that a thread that doesn't release the lock keeps it until it ends
    try:
        value = os.urandom(1 << 16)
        for turn in range(100):
            for row in range(20):
                engine.write(batch_of((b"%d %d" % (turn, row), value)))
            done.clear()
            thread = threading.Thread(target=work)
            thread.start()  # gives the lock away until the thread runs, and gets it back when the call releases it
            alive = not done.is_set()
            thread.join()
            if alive:
                break
        assert alive
    finally:
        sys.setswitchinterval(interval)
        engine.close()


def test_a_compaction_takes_no_more_room_at_a_time_than_a_part_of_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither do those that RocksDB finds due behind it: a disk that was to get room was filled to the last byte."""
    free = 8 << 20
    steps: list[int] = []

    def counted(tables: Any, spans: Any, most: int) -> Any:
        steps.append(most)
        return pieces(tables, spans, most)

    monkeypatch.setattr(rocks, "pieces", counted)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    engine = RocksEngine.open_data(tmp_path)
    engine.write(batch_of((b"a", b"v")))
    engine.flush()
    assert engine.compact([(b"a", b"b")], lambda: False)
    free = 1 << 50
    assert engine.compact([(b"a", b"b")], lambda: False)
    assert steps == [2 << 20, rocks.COMPACTION_BYTES]
    said = [line for line in (tmp_path / "LOG").read_text().splitlines() if "] max_compaction_bytes: " in line]
    assert [int(line.rsplit(" ", 1)[1].rstrip(";")) for line in said] == steps
    engine.close()


def test_interpreter_runs_during_a_compaction_which_gives_back_what_was_deleted(tmp_path: Path) -> None:
    """A few bytes of deletions, flushed, leave tables as they are: RocksDB compacts when there are four such."""
    engine = RocksEngine.open_data(tmp_path)
    value = os.urandom(1 << 20)
    for row in range(40):
        engine.write(batch_of((b"%02d" % row, value)))
    engine.flush()
    gone = Batch()
    gone.delete_range(b"00", b"30")
    engine.write(gone)
    engine.flush()

    def size() -> int:
        return sum(file.stat().st_size for file in tmp_path.glob("*.sst")) >> 20

    assert size() == 40
    done, whole = threading.Event(), list[bool]()

    def work() -> None:
        whole.append(engine.compact([(b"00", b"30")], lambda: False))
        done.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        alive = not done.is_set()
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert alive
    assert whole == [True]
    assert size() == 10
    assert not engine.compact([(b"00", b"99")], lambda: True), "it was to stop before its first step"
    assert len(list(engine.scan(b"", b"x"))) == 10
    engine.close()


def test_tables_tell_where_rows_were_deleted(tmp_path: Path) -> None:
    """After a restart nothing else does."""
    engine = RocksEngine.open_data(tmp_path)
    engine.write(batch_of(*((b"%02d" % number, b"v") for number in range(30))))
    engine.flush()
    engine.compact([(b"", b"x")], lambda: False)
    assert engine.deleted() == []
    gone = Batch()
    gone.delete(b"03")
    gone.delete(b"05")
    engine.write(gone)
    engine.flush()
    gone = Batch()
    gone.delete_range(b"10", b"20")
    engine.write(gone)
    engine.close()
    engine = RocksEngine.open_data(tmp_path)
    assert sorted(engine.deleted()) == [(b"03", b"05\0"), (b"10", b"20\0")]
    engine.compact(engine.deleted(), lambda: False)
    assert engine.deleted() == []
    engine.close()


def test_stall_consumes_nothing_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`no_slowdown` refuses instead of blocking; RocksDB's batch is gone then, ours can be written again."""
    monkeypatch.setattr("nebuladb.storage.rocks.LOG_MEMTABLE_BYTES", 1 << 16)
    engine = RocksEngine.open_log(tmp_path)
    stalls = 0
    value = os.urandom(20_000)
    written = 0
    while written < 3000 and not (stalls and written > 50):
        batch = batch_of((b"%06d" % written, value), (b"%06d'" % written, value))
        before = list(batch.operations)
        while True:
            try:
                engine.write(batch)
                break
            except WriteStalled:
                stalls += 1
                assert engine.get(b"%06d" % written) is None
                assert batch.operations == before
                engine.flush()
        written += 1
    assert stalls
    assert [key for key, _ in engine.scan(b"", b"\xff")] == [
        b"%06d%s" % (number, end) for number in range(written) for end in (b"", b"'")
    ]
    engine.close()


@pytest.mark.parametrize("patient", [False, True])
def test_a_patient_engine_waits_for_the_disk(patient: bool, tmp_path: Path) -> None:
    """A restore of more than the memtables hold failed on a disk that is slower than it reads."""
    engine = RocksEngine.open_data(tmp_path, memtable_bytes=1 << 16, patient=patient)
    value, stalls = os.urandom(20_000), 0
    for number in range(1_000):
        try:
            engine.write(batch_of((b"%06d" % number, value)))
        except WriteStalled:
            stalls += 1
            break
    assert bool(stalls) is not patient
    engine.close()


def test_consumed_batch_cannot_be_written_again(tmp_path: Path) -> None:
    db = Rdict(str(tmp_path), Options(raw_mode=True))
    rows = WriteBatch(raw_mode=True)
    rows.put(b"a", b"1")
    db.write(rows)
    with pytest.raises(Exception, match="consumed"):
        db.write(rows)
    db.close()


def test_inverted_range_would_break_the_database(tmp_path: Path) -> None:
    """Why `RocksEngine.write` leaves out empty and inverted ranges."""
    db = Rdict(str(tmp_path), Options(raw_mode=True))
    rows = WriteBatch(raw_mode=True)
    rows.delete_range(b"b", b"a")
    with pytest.raises(Exception, match="Invalid argument"):
        db.write(rows)
    rows = WriteBatch(raw_mode=True)
    rows.put(b"a", b"1")
    with pytest.raises(Exception, match="Invalid argument"):
        db.write(rows)


def test_snapshot_iterators_of_rocksdict_see_later_writes(tmp_path: Path) -> None:
    """Why `RocksSnapshot` scans with an iterator of its own age. If this fails, they have been mended."""
    db = Rdict(str(tmp_path), Options(raw_mode=True))
    db.put(b"a", b"old")
    snapshot = db.snapshot()
    db.put(b"a", b"new")
    assert snapshot[b"a"] == b"old"
    assert list(snapshot.items()) == [(b"a", b"new")]
    del snapshot
    db.close()


def test_write_options_are_properties(tmp_path: Path) -> None:
    options = WriteOptions()
    options.no_slowdown = True
    options.disable_wal = True  # type: ignore[method-assign, assignment]
    db = Rdict(str(tmp_path), Options(raw_mode=True))
    db.put(b"a", b"1", options)
    assert all(file.stat().st_size == 0 for file in tmp_path.glob("*.log"))
    db.close()


@pytest.fixture
def damaged(tmp_path: Path) -> RocksEngine:
    """A database of 20,000 keys with one byte flipped in the middle of its table."""
    engine = RocksEngine.open_data(tmp_path)
    engine.write(batch_of(*((b"%06d" % number, os.urandom(100)) for number in range(20_000))))
    engine.flush()
    engine.close()
    (table,) = tmp_path.glob("*.sst")
    flip(table, table.stat().st_size // 2)
    return RocksEngine.open_data(tmp_path)


def test_damaged_block_is_not_silence(damaged: RocksEngine) -> None:
    """Iterators merely end there; the status tells, and every scan asks for it."""
    assert 0 < len(list(damaged._db.keys())) < 20_000
    snapshot = damaged.snapshot()
    for view in (damaged, snapshot):
        for reverse in (False, True):
            seen: list[bytes] = []
            scan = view.scan(b"", b"\xff", reverse=reverse)
            with pytest.raises(Corruption):
                seen.extend(key for key, _ in scan)
            assert 0 < len(seen) < 20_000
    hit = 0
    for number in range(20_000):
        try:
            assert damaged.get(b"%06d" % number) is not None
        except Corruption:
            hit += 1
            with pytest.raises(Corruption):
                snapshot.get(b"%06d" % number)
    assert hit
    snapshot.close()
    damaged.close()


WRITER = """
import os, pathlib, sys
from nebuladb.errors import WriteStalled
from nebuladb.storage.engine import Batch
from nebuladb.storage.rocks import RocksEngine
engine = RocksEngine.open_data(pathlib.Path(sys.argv[1]), memtable_bytes=int(sys.argv[2]))
number = 0
while True:
    batch = Batch()
    batch.put(b"a%09d" % number, os.urandom(200))
    batch.put(b"z%09d" % number, b"")
    while True:
        try:
            engine.write(batch)
            break
        except WriteStalled:
            pass
    number += 1
    if number == 500:
        engine.flush()
        print("flushed", flush=True)
    if number == 3000:
        print("enough", flush=True)
"""


@pytest.mark.parametrize("memtable", [256 << 20, 1 << 16])
def test_without_wal_a_kill_leaves_an_exact_prefix(memtable: int, tmp_path: Path) -> None:
    """Whole batches, in order, up to some point at or after the last flush; also if RocksDB flushed by itself."""
    command = [sys.executable, "-c", WRITER, str(tmp_path), str(memtable)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert [writer.stdout.readline() for _ in range(2)] == [b"flushed\n", b"enough\n"]
        writer.send_signal(signal.SIGKILL)
    engine = RocksEngine.open_data(tmp_path)
    first, second = ([key[1:] for key, _ in engine.scan(row, row + b"\xff")] for row in (b"a", b"z"))
    assert first == second == [b"%09d" % number for number in range(len(first))]
    assert len(first) == 500 if memtable > 1 << 20 else len(first) >= 500
    engine.close()


def test_what_background_work_met_stands_in_the_info_log_only(tmp_path: Path) -> None:
    log = tmp_path / "LOG"
    assert background_problem(log) == ""
    log.write_text("2026/11/27 [INFO] nothing\n")
    assert background_problem(log) == ""
    full = "IO error: No space left on device: While appending to file: /d/43.sst: No space left on device"
    log.write_text(
        f"… [WARN] [db/error_handler.cc:393] Background IO error {full}\n"
        f"… [ERROR] [db/db_impl.cc:3455] Waiting after background compaction error: {full}, Accumulated background "
        "error counts: 1\n"
        "… [ERROR] [db/db_impl.cc:3455] Waiting after background compaction error: Compaction too large: , Accumulated "
        "background error counts: 2\n"
        "… more\n"
    )
    assert background_problem(log) == full
    engine = RocksEngine.open_data(tmp_path / "data")
    assert engine.trouble() == ""
    engine.close()

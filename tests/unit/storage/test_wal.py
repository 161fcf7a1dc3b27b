"""S34 with real RocksDB: what a power cut may do to the WAL is survived, anything else is refused."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nebuladb.errors import Corruption
from nebuladb.ids import BatchId
from nebuladb.raft.entry import encode_entry
from nebuladb.storage.engine import Batch
from nebuladb.storage.log import LogStore
from nebuladb.storage.log_keys import STAMP_KEY, decode_stamp, encode_stamp
from nebuladb.storage.rocks import RocksEngine, examine_log
from nebuladb.storage.wal import BLOCK, crc32c, wal_files

BATCHES = 400
WRITER = """
import os, pathlib, signal, sys
import nebuladb.storage.preallocation as preallocation
import nebuladb.storage.rocks as rocks
from nebuladb.raft.entry import encode_entry
from nebuladb.raft.ready import HardState
from nebuladb.storage.engine import Batch
from nebuladb.storage.log import LogStore
from nebuladb.storage.log_batch import GroupWrite, LogBatch
from nebuladb.storage.log_keys import STAMP_KEY, encode_pair
path, kind, (last, every, memtable) = pathlib.Path(sys.argv[1]), sys.argv[2], map(int, sys.argv[3:])
rocks.LOG_MEMTABLE_BYTES = memtable
preallocation.ZEROS = bytes(0 if kind == "grown" else 6000)
if memtable < 1 << 20:  # small memtables that are not written to tables, so that several WAL files are needed
    options_of = rocks._options
    def patched(size, _):
        options = options_of(size, rocks.RocksMemory(1 << 20, 1 << 30))
        options.set_max_write_buffer_number(100)
        options.set_min_write_buffer_number_to_merge(99)
        return options
    rocks._options = patched
engine = rocks.RocksEngine.open_log(path)
store = LogStore(engine)
flushed = store.last_batch
for number in range(flushed + 1, last + 1):
    batch = LogBatch(number)
    if number == 1:
        batch.create(1, 0, 1)
    batch.write(GroupWrite(1, HardState(1, 0, 0), [encode_entry(number, 1, 0, b"%d" % number * 100)]))
    store.write(batch, flushed)
    if number % every == 0:
        store.sync()
        flushed = number
os.kill(os.getpid(), signal.SIGKILL)
"""


def write(path: Path, last: int, every: int, memtable: int = 64 << 20, kind: str = "zeros") -> None:
    """Batches up to `last`, flushed `every` so many, then SIGKILL: the last flush is told by the batches after it.

    `kind`: `zeros`, with zeros ahead of what is written; `grown`, without, as where the disk was full.
    """
    command = [sys.executable, "-c", WRITER, str(path), kind, str(last), str(every), str(memtable)]
    assert subprocess.run(command, check=False).returncode == -9


def as_killed(path: Path) -> Path:
    """A copy of an open database as SIGKILL would leave it now; RocksDB may be removing what it needs no more."""

    def copy(source: str, target: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.copy2(source, target)

    return shutil.copytree(path, path.with_name("killed"), copy_function=copy)


@pytest.fixture(scope="module", params=["grown", "zeros"])
def one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One WAL file of 400 batches; 390 flushed, which 391 to 400 say."""
    path = tmp_path_factory.mktemp("one") / "raft"
    write(path, BATCHES, 39, kind=request.param)
    (file,) = live(path)
    assert padded(file) == (request.param == "zeros")
    return path


@pytest.fixture(scope="module", params=["grown", "zeros"])
def many(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several WAL files, nothing ever flushed."""
    path = tmp_path_factory.mktemp("many") / "raft"
    write(path, BATCHES, BATCHES + 1, 1 << 16, request.param)
    files = live(path)
    assert len(files) > 2
    assert [padded(file) for file in files[:2]] == [request.param == "zeros"] * 2
    return path


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    def copied(source: Path) -> Path:
        return shutil.copytree(source, tmp_path / "raft")

    return copied


def padded(file: Path) -> bool:
    """Whether zeros lie behind the last record."""
    return file.stat().st_size > records(file)[-1][1]


def live(path: Path) -> list[Path]:
    """The WAL files that have batches of the log."""
    return [file for file in wal_files(path) if records(file)]


def records(path: Path) -> list[tuple[int, int]]:
    """(begin, end) of the records of a WAL file that are of batches, by its lengths alone."""
    data, at, found, begin = path.read_bytes(), 0, [], 0
    while at + 7 <= len(data):
        room = BLOCK - at % BLOCK
        if room < 7:
            at += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if not kind:
            break
        if kind in (1, 2):
            begin = at
        at += 7 + length
        if kind in (1, 4):
            found.append((begin, at))
    return found


def tear(file: Path, at: int) -> None:
    """What was written from there on never reached the disk."""
    data = file.read_bytes()
    file.write_bytes(data[:at] + bytes(len(data) - at if padded(file) else 0))


def flip(path: Path, position: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= mask
    path.write_bytes(data)


def opened(path: Path) -> int:
    """Opens the log and goes on with it; returns its last batch. All entries must be there up to it."""
    store = LogStore(RocksEngine.open_log(path))
    last = int(store.last_batch)
    if last:
        assert store.reader(store.groups()[0]).last() == (last, 1)
        entries = store.reader(store.groups()[0]).entries(1, last + 1, 1 << 30)
        assert entries == [encode_entry(number, 1, 0, b"%d" % number * 100) for number in range(1, last + 1)]
    store.close()
    return last


def refused(path: Path) -> None:
    """It is refused twice, with a text that says what to do, and the directory stays as it was."""
    before = {file.name: file.read_bytes() for file in path.glob("*.log")}
    for _ in range(2):
        with pytest.raises(Corruption, match="restore the node as a new member"):
            RocksEngine.open_log(path)
    assert before == {file.name: file.read_bytes() for file in path.glob("*.log")}


def test_crc32c() -> None:
    assert crc32c(b"123456789") == 0xE3069283


def test_clean(one: Path, many: Path, copy: Callable[[Path], Path]) -> None:
    path = copy(one)
    assert opened(path) == BATCHES
    assert opened(path) == BATCHES
    shutil.rmtree(path)
    assert opened(copy(many)) == BATCHES


def test_new(tmp_path: Path) -> None:
    assert opened(tmp_path / "new") == 0
    assert opened(tmp_path / "new") == 0


def test_torn_last_record(one: Path, copy: Callable[[Path], Path]) -> None:
    path = copy(one)
    (file,) = live(path)
    tear(file, records(file)[-1][1] - 100)
    assert opened(path) == BATCHES - 1
    write(path, BATCHES + 10, 3)  # and it lives on, with the lost batch's number used again
    assert opened(path) == BATCHES + 10


@pytest.mark.parametrize("lost", [1, 5, 10])
def test_truncated_at_a_record_boundary(lost: int, one: Path, copy: Callable[[Path], Path]) -> None:
    path = copy(one)
    (file,) = live(path)
    tear(file, records(file)[-lost][0])
    assert opened(path) == BATCHES - lost


@pytest.mark.parametrize("batch", [1, 2, 200, 389, 390])
@pytest.mark.parametrize("where", [0, 4, 5, 6, 7, 30, -1])
def test_flipped_byte_in_what_was_flushed(batch: int, where: int, one: Path, copy: Callable[[Path], Path]) -> None:
    """Checksum, length, type, log number, stamp and data: every batch up to 390 is known to have been flushed."""
    path = copy(one)
    (file,) = live(path)
    begin, end = records(file)[batch - 1]
    flip(file, begin + where if where >= 0 else end + where)
    refused(path)


@pytest.mark.parametrize("batch", [391, 399, 400])
@pytest.mark.parametrize("where", [0, 4, 5, 6, 7, 30, -1])
def test_flipped_byte_in_what_was_not(batch: int, where: int, one: Path, copy: Callable[[Path], Path]) -> None:
    """Nobody was told of these: a power cut may have written the later pages and not the earlier."""
    path = copy(one)
    (file,) = live(path)
    begin, end = records(file)[batch - 1]
    flip(file, begin + where if where >= 0 else end + where)
    assert opened(path) == batch - 1


def test_page_of_zeros(one: Path, copy: Callable[[Path], Path]) -> None:
    """A page that never reached the disk, in the flushed part and behind it."""
    for batch in (200, 395):
        path = copy(one)
        (file,) = live(path)
        data = bytearray(file.read_bytes())
        begin, _ = records(file)[batch - 1]
        data[begin : begin + 100] = bytes(100)
        file.write_bytes(data)
        if batch == 200:
            refused(path)
        else:
            assert opened(path) == batch - 1
        shutil.rmtree(path)


@pytest.mark.parametrize("tail", [b"garbage" * 10, bytes(5000), b"\xff" * 40_000])
def test_garbage_tail(tail: bytes, one: Path, copy: Callable[[Path], Path]) -> None:
    path = copy(one)
    (file,) = live(path)
    with file.open("ab") as end:
        end.write(tail)
    assert opened(path) == BATCHES


def test_an_inspection_sees_what_the_next_start_keeps(tmp_path: Path) -> None:
    """Of zeros RocksDB passes over the rest of the block, and goes on where a record begins with the next."""

    def filled(path: Path, *fillings: int) -> RocksEngine:
        engine = RocksEngine.open_log(path)
        for number, filling in enumerate(fillings, 1):
            rows = Batch()
            rows.put(STAMP_KEY, encode_stamp(number, 0, engine.identity))
            rows.put(b"f", b"x" * filling)
            engine.write(rows)
        return engine

    trial = filled(tmp_path / "trial", 20_000, 12_000)
    _, (_, end) = records(wal_files(tmp_path / "trial")[0])
    trial.close()
    path = tmp_path / "raft"
    engine = filled(path, 20_000, 12_000 + BLOCK - end, 100)  # the third begins with a block
    killed = as_killed(path)
    engine.close()
    (file,) = wal_files(killed)
    data = bytearray(file.read_bytes())
    (_, end), (begin, _) = records(file)[0], records(file)[2]
    assert begin == BLOCK
    data[end:begin] = bytes(begin - end)
    file.write_bytes(data)
    inspected = RocksEngine.inspect(killed, examine_log(killed))
    assert decode_stamp(inspected.get(STAMP_KEY)).batch == 1
    inspected.close()
    assert file.read_bytes() == data
    reopened = RocksEngine.open_log(killed)
    assert decode_stamp(reopened.get(STAMP_KEY)).batch == 1
    reopened.close()


def test_everything_after_a_flush_is_garbage(one: Path, copy: Callable[[Path], Path]) -> None:
    path = copy(one)
    (file,) = live(path)
    begin, _ = records(file)[390]
    data = bytearray(file.read_bytes())
    data[begin:] = os.urandom(len(data) - begin)
    file.write_bytes(data)
    assert opened(path) == 390


@pytest.mark.parametrize("damage", ["boundary", "torn", "empty", "flipped"])
def test_missing_end_of_an_older_file(damage: str, many: Path, copy: Callable[[Path], Path]) -> None:
    """RocksDB opens over the hole in silence, with the newer file's batches on top: entries 1 to 40 and 60 to 99."""
    path = copy(many)
    first, file = live(path)[:2]
    ends, before = records(file), len(records(first))
    if damage == "flipped":
        flip(file, ends[5][0] + 50)
    else:
        tear(file, {"boundary": ends[4][1], "torn": ends[4][1] + 9, "empty": 0}[damage])
    assert opened(path) == before + (0 if damage == "empty" else 5)
    assert opened(path) == before + (0 if damage == "empty" else 5)


def test_missing_first_file(many: Path, copy: Callable[[Path], Path]) -> None:
    path = copy(many)
    live(path)[0].unlink()
    assert opened(path) == 0


@pytest.mark.parametrize("kind", ["grown", "zeros"])
@pytest.mark.parametrize("damage", ["torn", "flipped"])
def test_hole_in_what_was_flushed(kind: str, damage: str, tmp_path: Path) -> None:
    path = tmp_path / "raft"
    write(path, BATCHES, 50, 1 << 16, kind)
    file = live(path)[1]
    assert len(live(path)) > 2
    if damage == "torn":
        tear(file, records(file)[4][1])
    else:
        flip(file, records(file)[5][0] + 50)
    refused(path)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_nothing_that_was_flushed_is_missed(
    seed: int, one: Path, copy: Callable[[Path], Path]
) -> None:
    """Bits flip, pages are lost, the end is torn: either all that is known to be flushed is there, or it is refused."""
    rng = random.Random(seed)
    path = copy(one)
    (file,) = live(path)
    ends = records(file)
    safe = ends[389][1]
    begin = rng.choice([0, safe])
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(begin, min(ends[-1][1], file.stat().st_size))
        if rng.random() < 0.4:
            flip(file, at, 1 << rng.randrange(8))
        elif rng.random() < 0.5:
            data = file.read_bytes()
            file.write_bytes(data[:at] + bytes(min(512, len(data) - at)) + data[at + 512 :])
        else:
            tear(file, max(at, safe + 1))
    try:
        last = opened(path)
    except Corruption:
        assert begin < safe
    else:
        assert last >= 390


@pytest.mark.parametrize("kind", ["grown", "zeros"])
def test_one_kill_after_another_is_survived(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "raft"
    for last in range(100, 500, 100):
        write(path, last, 7, 1 << 16, kind)
    assert opened(path) == 400


def test_batches_in_tables_are_not_missed(tmp_path: Path) -> None:
    """A WAL that begins after batch 1 is no hole where the tables hold what is before it."""
    path = tmp_path / "raft"
    write(path, 100, 10)
    assert opened(path) == 100  # recovery wrote a table
    write(path, 130, 10)
    assert opened(path) == 130
    write(path, 133, 10)
    (file,) = live(path)
    flip(file, records(file)[0][1] - 1)
    assert opened(path) == 130
    write(path, 145, 10)
    (file,) = live(path)
    flip(file, records(file)[5][1] - 1)
    refused(path)


def test_a_log_without_its_wal_is_not_a_new_one(tmp_path: Path) -> None:
    """The tables hold a part of the log, so that it had a WAL, as every database that is there."""
    path = tmp_path / "raft"
    write(path, 100, 10)
    assert opened(path) == 100  # recovery wrote a table
    write(path, 130, 10)
    for file in wal_files(path):
        file.unlink()
    refused(path)
    found = examine_log(path)
    assert found is not None
    assert (found.kept, found.missing) == (
        100,
        "the files of its WAL (*.log) are gone, with the log batches after 100",
    )
    engine = RocksEngine.open_log(path, lossy=True)
    assert LogStore(engine).last_batch == 100
    engine.close()
    assert opened(path) == 100


def test_scanner_alone(one: Path) -> None:
    found = examine_log(one)
    assert found is not None
    assert (found.kept, found.flushed, found.behind) == (400, 390, [])


@pytest.mark.parametrize("size", [7, 8, 18, 19, 22, 23, 30, 47, 48])
def test_stamp_cut_by_the_end_of_a_block(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of RocksDB's own, of which one begins `size` bytes before a block's end, or where no header fits."""
    monkeypatch.setattr("nebuladb.storage.preallocation.ZEROS", b"")
    whole = size == 48
    path = tmp_path / "raft"
    engine = RocksEngine.open_log(path)

    def put(batch: int, filling: int) -> int:
        rows = Batch()
        rows.put(STAMP_KEY, encode_stamp(batch, batch - 1, engine.identity))
        rows.put(b"f", bytes(filling))
        engine.write(rows)
        engine.sync()
        return wal_files(path)[0].stat().st_size

    overhead = put(1, 0)
    assert put(2, BLOCK - size - 2 * overhead - 2) == BLOCK - size  # two bytes more for the length of the filling
    put(3, 10)
    kill = as_killed(path)
    engine.close()
    files = wal_files(kill)

    def found() -> tuple[BatchId, BatchId]:
        judged = examine_log(kill)
        assert judged is not None
        return judged.kept, judged.flushed

    assert found() == (3, 2)
    flip(files[0], 100)
    assert found() == (1, 2)
    with pytest.raises(Corruption, match="2 to 2"):
        RocksEngine.open_log(kill)
    flip(files[0], 100)
    flip(files[0], BLOCK + 20)
    # Where it lies whole in the first block the stamp is believed, though its record is not.
    assert found() == (2, 2 if whole else 1)
    flip(files[0], 100)
    assert found() == (1, 2 if whole else 0)


@pytest.mark.parametrize("lost", ["identity", "another"])
def test_the_identity_is_missed(lost: str, one: Path, copy: Callable[[Path], Path]) -> None:
    path = copy(one)
    (path / "IDENTITY").unlink()
    if lost == "another":
        (path / "IDENTITY").write_text("another")
    with pytest.raises(Corruption, match=r"identity|IDENTITY"):
        RocksEngine.open_log(path)

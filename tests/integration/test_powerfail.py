"""The power-cut tool itself: what was synced stays, what wasn't goes; and what RocksDB asks the disk for is seen."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nebuladb.raft.entry import encode_entry
from nebuladb.storage.kernel_sync import KernelSync
from nebuladb.storage.log import LogStore
from nebuladb.storage.rocks import RocksEngine
from tests.integration import powerfail

PRELUDE = """
import os, pathlib, signal, sys
data = pathlib.Path(sys.argv[1])
def sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
def append(name, text):
    with open(data / name, "a") as file:
        file.write(text)
def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = powerfail.build(tmp_path_factory.mktemp("syncspy"))
    if library is None:
        pytest.skip("no C compiler: the power-cut tests can't run")
    return library


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return tmp_path / "records"


def run(program: str, data: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PRELUDE + program, str(data)]
    done = subprocess.run(command, env=os.environ | environment, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done


def files(data: Path) -> dict[str, str]:
    return {str(path.relative_to(data)): path.read_text() for path in data.rglob("*") if path.is_file()}


def test_lengths(library: Path, data: Path, records: Path) -> None:
    program = """
for name in ("full", "part", "never", "data"): append(name, "synced")
sync(data / "full"); sync(data / "part"); sync(data)
append("part", " and not")
with open(data / "data", "a") as file: os.fdatasync(file.fileno())
append("nameless", "synced"); sync(data / "nameless")
die()
"""
    run(program, data, powerfail.environ(library, records, data))
    assert (data / "part").read_text() == "synced and not"
    report = powerfail.cut(data, records)
    assert files(data) == {"full": "synced", "part": "synced", "never": "", "data": "synced"}
    assert report.shortened == {"part": (14, 6), "never": (6, 0)}
    assert (report.removed, report.restored, report.lost) == (["nameless"], [], 14)
    assert powerfail.cut(data, records) == powerfail.Report()  # what is left is durable


def test_overwriting(library: Path, data: Path, records: Path) -> None:
    """What was overwritten is again what it was when the last sync began, whoever wrote it."""
    data.mkdir()
    for name in ("synced", "not", "both", "grown", "cut"):
        (data / name).write_text("0123456789")
    program = """
def over(name, at, text):
    descriptor = os.open(data / name, os.O_WRONLY)
    os.lseek(descriptor, at, os.SEEK_SET)
    os.write(descriptor, text)
    os.close(descriptor)
over("synced", 2, b"ab"); sync(data / "synced")
over("not", 2, b"ab"); over("not", 3, b"cd")
over("both", 0, b"abc"); sync(data / "both"); over("both", 1, b"xyz")
over("grown", 8, b"abcd"); sync(data / "grown"); over("grown", 10, b"xyz")
over("cut", 4, b"abcd"); os.truncate(data / "cut", 6)
with open(data / "at", "w+b", buffering=0) as file:
    file.write(b"0123456789"); os.fsync(file.fileno()); os.pwrite(file.fileno(), b"ab", 5)
sync(data)
die()
"""
    run(program, data, powerfail.environ(library, records, data))
    report = powerfail.cut(data, records)
    assert files(data) == {
        "synced": "01ab456789",
        "not": "0123456789",
        "both": "abc3456789",
        "grown": "01234567abcd",
        "cut": "012345",
        "at": "0123456789",
    }
    assert (report.reverted, report.shortened) == (2 + 2 + 3 + 2 + 2 + 2, {"grown": (13, 12)})
    assert powerfail.cut(data, records) == powerfail.Report()


def test_pages_that_had_reached_the_disk(library: Path, data: Path, records: Path) -> None:
    """Each page is as it was, or as it is, whichever writes went to it; a synced one is as it is."""
    data.mkdir()
    pages = 40
    (data / "file").write_bytes(b"o" * powerfail.PAGE * pages)
    program = f"""
descriptor = os.open(data / "file", os.O_WRONLY)
os.pwrite(descriptor, b"s" * {powerfail.PAGE}, 0)
os.fsync(descriptor)
for page in range({pages} - 1): os.pwrite(descriptor, b"n" * {powerfail.PAGE}, page * {powerfail.PAGE} + 100)
os.pwrite(descriptor, b"w", 5 * {powerfail.PAGE} + 200)
die()
"""
    run(program, data, powerfail.environ(library, records, data))
    report = powerfail.cut(data, records, random.Random(1))
    found = (data / "file").read_bytes()
    kinds = []
    for page in range(1, pages - 1):
        part = found[page * powerfail.PAGE : (page + 1) * powerfail.PAGE].replace(b"w", b"n")
        assert part in (b"o" * powerfail.PAGE, b"n" * powerfail.PAGE)
        kinds.append(part[:1])
    assert kinds.count(b"o") > 5
    assert kinds.count(b"n") > 5
    assert found[:100] == b"s" * 100
    assert len(found) == powerfail.PAGE * pages
    assert report.reverted >= kinds.count(b"o") * powerfail.PAGE


def test_a_sync_covers_what_was_written_before_it_began(library: Path, data: Path, records: Path) -> None:
    data.mkdir()
    (data / "file").write_text("0123456789")
    program = """
descriptor = os.open(data / "file", os.O_WRONLY)
os.pwrite(descriptor, b"ab", 0)
os.fsync(descriptor)
os.pwrite(descriptor, b"cd", 5)
die()
"""
    run(program, data, powerfail.environ(library, records, data))
    # The second write, as if it had come while the sync was under way.
    lines = (records / "records").read_text().splitlines()
    late = next(line for line in lines if line.startswith("W ") and " 5 " in line)
    lines.remove(late)
    lines.insert(next(at for at, line in enumerate(lines) if line.startswith("S ")) + 1, late)
    (records / "records").write_text("\n".join(lines) + "\n")
    powerfail.cut(data, records)
    assert (data / "file").read_text() == "ab23456789"


def test_names(library: Path, data: Path, records: Path) -> None:
    """Renames, replacements, removals and new directories last from the fsync of their directory on."""
    data.mkdir()
    (data / "old").write_text("old")
    (data / "gone").write_text("gone")
    program = """
for name in ("one", "two"):
    append(name, name); sync(data / name)
sync(data)
os.replace(data / "one", data / "old")     # lost
os.rename(data / "two", data / "three")    # lost
os.unlink(data / "gone")                   # lost
for name in ("kept", "lost"): os.mkdir(data / name)
append("kept/file", "x"); sync(data / "kept/file"); sync(data / "kept")
"""
    run(program + "die()", data, powerfail.environ(library, records, data))
    report = powerfail.cut(data, records)
    assert files(data) == {"old": "old", "gone": "gone", "one": "one", "two": "two"}
    assert not (data / "kept").exists()
    assert report.removed == ["kept", "lost", "three"]
    assert report.restored == ["gone", "old", "one", "two"]
    run(program.replace('("one", "two")', "()") + "sync(data); die()", data, powerfail.environ(library, records, data))
    powerfail.cut(data, records)
    assert files(data) == {"old": "one", "three": "two", "kept/file": "x"}
    assert (data / "lost").is_dir()


def test_truncation_and_reuse(library: Path, data: Path, records: Path) -> None:
    """Bytes behind a truncation are new ones, and a new file owes nothing to an old one's inode."""
    program = """
for name in ("a", "b", "c"): append(name, "0123456789"); sync(data / name)
sync(data)
os.truncate(data / "a", 4); append("a", "new bytes")
with open(data / "b", "w") as file: file.write("new bytes, as many")
os.unlink(data / "c"); append("c", "another"); sync(data)
die()
"""
    run(program, data, powerfail.environ(library, records, data))
    powerfail.cut(data, records)
    assert files(data) == {"a": "0123", "b": "", "c": ""}


def test_dropped_syncs_are_believed_and_lost(library: Path, data: Path, records: Path) -> None:
    program = 'append("a", "x"); sync(data / "a"); sync(data); die()'
    run(program, data, powerfail.environ(library, records, data, drop=True))
    powerfail.cut(data, records)
    assert files(data) == {}


def test_cut_line_counts_for_nothing(library: Path, data: Path, records: Path) -> None:
    program = 'append("a", "0123456789"); sync(data / "a"); sync(data); die()'
    run(program, data, powerfail.environ(library, records, data))
    status = (data / "a").stat()
    with (records / "records").open("a") as record:
        record.write(f"\nF {status.st_dev} {status.st_ino} 1\nD {data.stat().st_dev} {data.stat().st_ino} f1 x/")
    powerfail.cut(data, records)
    assert files(data) == {"a": "0123456789"}


def test_ordered_errors(library: Path, data: Path, records: Path) -> None:
    program = """
append("good", "x"); append("bad", "x")
sync(data / "good")
try:
    sync(data / "bad")
except OSError as error:
    append("good", str(error.errno)); sync(data / "good")
sync(data); die()
"""
    environment = powerfail.environ(library, records, data)
    powerfail.control(records, error=28, match="/bad")
    run(program, data, environment)
    powerfail.cut(data, records)
    assert files(data) == {"good": "x28", "bad": ""}


STORE = """
from nebuladb.raft.entry import encode_entry
from nebuladb.storage.kernel_sync import KernelSync
from nebuladb.raft.ready import HardState
from nebuladb.storage.log import LogStore
from nebuladb.storage.log_batch import GroupWrite, LogBatch
from nebuladb.storage.rocks import RocksEngine
import nebuladb.storage.rocks as rocks
store = LogStore(RocksEngine.open_log(data / "raft"))
def write(count, synced=True):
    for number in range(store.last_batch + 1, store.last_batch + 1 + count):
        batch = LogBatch(number)
        if number == 1: batch.create(1, 0, 1)
        batch.write(GroupWrite(1, HardState(1, 0, 0), [encode_entry(number, 1, 0, b"%d" % number * 50)]))
        store.write(batch, number - 1 if synced else 0)
        if synced: store.sync()
"""


def opened(data: Path) -> int:
    """Opens the log and checks all of it; returns its last batch."""
    store = LogStore(RocksEngine.open_log(data / "raft"))
    last = int(store.last_batch)
    if last:
        reader = store.reader(store.groups()[0])
        want = [encode_entry(number, 1, 0, b"%d" % number * 50) for number in range(1, last + 1)]
        assert reader.entries(1, last + 1, 1 << 30) == want
    store.close()
    return last


def test_zeros_ahead_keep_what_was_flushed(library: Path, data: Path, records: Path, tmp_path: Path) -> None:
    """Where batches were not synced their pages are zeros again, or not, each for itself."""
    small = "import nebuladb.storage.rocks as rocks\nrocks.LOG_MEMTABLE_BYTES = 1 << 20\n"
    rng = random.Random(5)
    reverted, last, more = 0, 0, 0
    for unsynced in (1, 40, 400, 60, 300):
        program = small + STORE + f"write(700); write({unsynced}, False); die()"
        run(program, data, powerfail.environ(library, records, data))
        reverted += powerfail.cut(data, records, rng).reverted
        found = opened(shutil.copytree(data, tmp_path / f"after {last}"))  # what this process makes durable is unseen
        assert last + 700 <= found <= last + 700 + unsynced
        more += found - last - 700
        last = found
    assert reverted > 0
    assert more > 0  # a page that reached the disk ahead of a later one


def test_rocksdb_keeps_what_was_flushed(library: Path, data: Path, records: Path) -> None:
    """Its own library's calls are caught; what it says is durable is, through cuts, tables and recoveries."""
    run(STORE + "write(100); write(20, False); die()", data, powerfail.environ(library, records, data))
    assert powerfail.cut(data, records).lost > 0
    run(STORE + "write(50); store._engine.flush(); write(10); die()", data, powerfail.environ(library, records, data))
    powerfail.cut(data, records)
    assert opened(data) == 160


def test_opening_makes_durable_what_it_found(library: Path, data: Path, records: Path) -> None:
    """After a mere SIGKILL the page cache holds batches that were never flushed. The node goes on from them as if they
    were, so they must be, as soon as the log is open."""
    environment = powerfail.environ(library, records, data)
    run(STORE + "write(3); write(97, False); die()", data, environment)
    run(STORE + "die()", data, environment)
    powerfail.cut(data, records)
    assert opened(data) == 100


def test_rocksdb_with_dropped_syncs_loses(library: Path, data: Path, records: Path) -> None:
    """The test of the test."""
    run(STORE + "write(10); die()", data, powerfail.environ(library, records, data))
    powerfail.cut(data, records)
    run(STORE + "write(90); die()", data, powerfail.environ(library, records, data, drop=True))
    powerfail.cut(data, records)
    assert opened(data) < 100


def test_data_store_keeps_what_was_flushed(library: Path, data: Path, records: Path) -> None:
    program = """
from nebuladb.storage.engine import Batch
from nebuladb.storage.rocks import RocksEngine
engine = RocksEngine.open_data(data / "data")
for number in range(300):
    batch = Batch()
    batch.put(b"%03d" % number, bytes(100))
    engine.write(batch)
    if number in (99, 199): engine.flush()
die()
"""
    run(program, data, powerfail.environ(library, records, data))
    powerfail.cut(data, records)
    engine = RocksEngine.open_data(data / "data")
    assert [key for key, _ in engine.scan(b"", b"\xff")] == [b"%03d" % number for number in range(200)]
    engine.close()


@pytest.mark.parametrize(("number", "kind"), [(errno.EIO, "StoreError"), (errno.ENOSPC, "DiskFull")])
def test_failing_disk(number: int, kind: str, library: Path, data: Path, records: Path) -> None:
    """A failed fdatasync reaches us, classified, and the WAL writer stays broken when the disk has recovered (S33).

    But RocksDB looks every 5 s whether a full disk has room again, and goes on by itself then: on a busy machine that
    may come before the second write, or amid it, and what was refused is durable then. (The daemon never writes a
    second time.)
    """
    program = (
        STORE
        + f"""
from nebuladb.errors import StoreError
from tests.integration import powerfail
write(5)
here = pathlib.Path(os.environ["SYNCSPY_DIR"])
powerfail.control(here, error={number}, match=".log")
for _ in range(2):
    try:
        write(1)
        print("written")
    except StoreError as error:
        print(type(error).__name__, flush=True)
    powerfail.control(here)
die()
"""
    )
    first, second = run(program, data, powerfail.environ(library, records, data)).stdout.split()
    assert first == kind
    powerfail.cut(data, records)
    if number == errno.ENOSPC:
        assert opened(data) >= 5
    else:
        assert second != "written"
        assert opened(data) == 5


def test_loop_goes_on_while_the_disk_hangs(library: Path, data: Path, records: Path) -> None:
    """`sync` in a thread hangs with the disk; writes to the log and reads go on, and are durable when it is back."""
    program = (
        STORE
        + """
import threading
from tests.integration import powerfail
here = pathlib.Path(os.environ["SYNCSPY_DIR"])
write(1)
powerfail.control(here, hang=1, match=".log")
write(1, False)
done = threading.Event()
thread = threading.Thread(target=lambda: (store.sync(), done.set()))
thread.start()
write(500, False)
assert store.reader(1).last() == (502, 1) and not done.is_set()
powerfail.control(here)
thread.join()
store.sync()
die()
"""
    )
    run(program, data, powerfail.environ(library, records, data))
    powerfail.cut(data, records)
    assert opened(data) == 502


KERNEL = (
    STORE
    + """
import select, time
from nebuladb.errors import StoreError
from nebuladb.storage.kernel_sync import KernelSync
from tests.integration import powerfail
here = pathlib.Path(os.environ["SYNCSPY_DIR"])
kernel = KernelSync.open()
def begin():
    write(1, False)
    file = store.sync_file()
    assert file is not None and kernel.begin(file)
def over(seconds):
    ready, _, _ = select.select([kernel.fileno], [], [], seconds)
    return bool(ready) and kernel.finished()
write(5)
"""
)
"""The log, synced by the kernel."""

needs_aio = pytest.mark.skipif(KernelSync.open() is None, reason="this kernel has no AIO, or a sandbox forbids it")


@needs_aio
@pytest.mark.parametrize("dropped", [False, True])
def test_syncs_by_the_kernel_are_seen(library: Path, data: Path, records: Path, *, dropped: bool) -> None:
    """What it made durable stays, what was written later goes; of dropped ones nothing stays."""
    program = KERNEL + f"powerfail.control(here, drop={int(dropped)}, match='.log')\nfor _ in range(50):\n    begin()\n"
    program += "    assert over(60)\nwrite(3, False)\ndie()\n"
    run(program, data, powerfail.environ(library, records, data))
    powerfail.cut(data, records)
    assert opened(data) == (5 if dropped else 55)


@needs_aio
def test_the_loop_goes_on_while_the_kernel_hangs(library: Path, data: Path, records: Path) -> None:
    program = (
        KERNEL
        + """
powerfail.control(here, hang=1, match=".log")
begin()
write(500, False)
assert store.reader(1).last() == (506, 1) and not over(0.2)
powerfail.control(here)
assert over(60)
die()
"""
    )
    run(program, data, powerfail.environ(library, records, data))
    powerfail.cut(data, records)
    assert opened(data) == 6  # those behind it came after it had been asked for


@needs_aio
@pytest.mark.parametrize(("number", "kind"), [(errno.EIO, "StoreError"), (errno.ENOSPC, "DiskFull")])
def test_a_failing_sync_by_the_kernel(number: int, kind: str, library: Path, data: Path, records: Path) -> None:
    program = (
        KERNEL
        + f"""
powerfail.control(here, error={number}, match=".log")
begin()
try:
    print(over(60))
except StoreError as error:
    print(type(error).__name__, flush=True)
die()
"""
    )
    assert run(program, data, powerfail.environ(library, records, data)).stdout.split() == [kind]
    powerfail.cut(data, records)
    assert opened(data) == 5

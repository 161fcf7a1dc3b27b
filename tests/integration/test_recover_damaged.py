"""`nebulad recover` where the survivor's log is damaged: what can be read is not lost for what can't."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from nebuladb.errors import ConfigurationError, Corruption, StoreError
from nebuladb.ids import DEFAULT_GROUP, META_GROUP, BatchId, Generation, GroupId, NodeId
from nebuladb.kv.command import Command, Kind, Work
from nebuladb.kv.limits import Limits
from nebuladb.kv.store import Store
from nebuladb.node.declared import Declared, DeclaredAlarm
from nebuladb.node.entry import decode_payload, encode_command, encode_payload
from nebuladb.node.keyspaces import transaction
from nebuladb.node.meta import read_meta
from nebuladb.node.registry import GroupState, RegistryRow
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.raft.entry import ENTRY_HEADER, Entry, EntryKind, encode_entry
from nebuladb.server.recover import ASIDE, recover
from nebuladb.server.site import apply_all
from nebuladb.server.verify import report
from nebuladb.storage.files import write_durably
from nebuladb.storage.log import LogStore
from nebuladb.storage.log_batch import GroupWrite, LogBatch
from nebuladb.storage.rocks import RocksEngine, examine_log
from nebuladb.storage.wal import wal_files
from tests.integration.test_verify import KEYS, ROW, copy, flip_log, killed, stopped

__all__ = ["copy", "killed", "stopped"]  # fixtures


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


def test_a_survivor_whose_log_lost_its_files_keeps_none_of_them(killed: Path) -> None:
    engine = RocksEngine.open_log(killed / "raft")
    engine.flush()
    engine.close()
    for wal in wal_files(killed / "raft"):
        wal.unlink()
    lines: list[str] = []
    recover(killed, lines.append)
    (said,) = [line for line in lines if "LOST" in line]
    assert said.endswith("what they held is LOST")
    assert not (killed / f"raft-wal{ASIDE}").exists()
    assert report(killed, lambda _: None)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_report_that_nobody_gets_does_not_end_it_half_way(copy: Path) -> None:
    """It was unfinished, for want of space on the device, it said."""
    words = ["recover", "--data-dir", str(copy), "--i-accept-data-loss"]
    program = [sys.executable, "-u", "-m", "nebuladb.server.main", *words]
    with open("/dev/full", "w") as full:
        done = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "nebulad: stdout: No space left on device\n")
    assert report(copy, lambda _: None)


def test_what_was_applied_is_not_said_to_be_in_doubt(copy: Path) -> None:
    """Of a node that had been stopped in order the last entry of each shard was: its commit index is the one before."""
    lines: list[str] = []
    recover(copy, lines.append)
    assert len(lines) == 4
    assert not any("not known to be committed" in line for line in lines)


def test_alarms_that_were_declared_stand_until_somebody_takes_them_back(killed: Path) -> None:
    """As in etcd, with --force-new-cluster: writes that CORRUPT forbade were taken again, and nobody had said so."""
    alarms = [DeclaredAlarm(Declared.CORRUPT, 7), DeclaredAlarm(Declared.NO_SPACE, 8)]
    log, group = LogStore(RocksEngine.open_log(killed / "raft")), GroupId(META_GROUP)
    last, term = log.reader(group).last()
    command = Command(Kind.TXN, transaction({}, {alarm.key: alarm.encode() for alarm in alarms}))
    entry = encode_entry(last + 1, term, EntryKind.NORMAL, encode_payload(0, [encode_command(command)]))
    batch = LogBatch(BatchId(log.last_batch + 1))
    batch.write(GroupWrite(group, None, [entry]))
    log.write(batch, BatchId(log.last_batch))
    log.sync()
    log.close()
    recover(killed, lambda _: None)
    data = RocksEngine.open_data(killed / "data")
    store = Store(data, group, dict(Store.generations(data))[group], NodeId(0))
    assert read_meta(store).declared == alarms
    store.close()
    data.close()


def test_half_of_a_command_whose_rest_is_lost_with_the_log_is_nobodys(killed: Path) -> None:
    """Else the next deletion would go on where that one stopped."""
    log, data = LogStore(RocksEngine.open_log(killed / "raft")), RocksEngine.open_data(killed / "data")
    group = GroupId(DEFAULT_GROUP)
    last, term = log.reader(group).last()
    store = Store(data, group, Generation(1), NodeId(0))
    while store.index < last:
        apply_all(store, [_work(entry) for entry in log.reader(group).entries(store.index + 1, last + 1, 1 << 20)])
    store.close()
    store = Store(data, group, Generation(1), NodeId(0), Limits(slice_rows=4, long_rows=4))
    body = kv_pb2.DeleteRequest(key=b"k", range_end=b"l").SerializeToString()
    while not store.partial:
        done = store.apply([Work(last + 1, term, 0, [Command(Kind.DELETE, body)])])
        store.supply(done.wanted, store.fetch(done.wanted))
    revision = store.revision
    store.close()
    data.flush()
    data.close()
    log.close()
    recover(killed, lambda _: None)
    data = RocksEngine.open_data(killed / "data")
    store = Store(data, group, dict(Store.generations(data))[group], NodeId(0))
    assert not store.partial
    assert store.revision > revision
    store.close()
    data.close()


def _work(entry: Entry) -> Work:
    clock, commands = decode_payload(entry.record, ENTRY_HEADER) if entry.kind == EntryKind.NORMAL else (0, [])
    return Work(entry.index, entry.term, clock, commands)


def failing(*_: object, **__: object) -> None:
    raise StoreError("no")


def test_a_recovery_that_was_broken_off_after_the_damage_was_cut_goes_on(
    killed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wal = flip_log(killed)
    damaged = wal.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(RocksEngine, "open_data", failing)
        with pytest.raises(StoreError, match=r"no\. .* unfinished: repeat it; .* must not come back"):
            recover(killed, lambda _: None)
    found = examine_log(killed / "raft")
    assert found is None or not found.missing
    recover(killed, lambda _: None)
    assert (killed / f"raft-wal{ASIDE}" / wal.name).read_bytes() == damaged
    assert report(killed, lambda _: None)


def without_meta(path: Path) -> None:
    bury(path, META_GROUP)


def without_a_shard(path: Path) -> None:
    bury(path, DEFAULT_GROUP)


def bury(path: Path, group: int) -> None:
    """Leave a tombstone where the replica of `group` was."""
    log = LogStore(RocksEngine.open_log(path / "raft"))
    row = RegistryRow.decode(log.registry()[GroupId(group)])
    batch = LogBatch(BatchId(log.last_batch + 1))
    batch.register(GroupId(group), row._replace(state=GroupState.TOMBSTONE).encode())
    log.write(batch, BatchId(log.last_batch))
    log.sync()
    log.close()


def no_database(path: Path) -> None:
    shutil.rmtree(path / "data")
    (path / "data").write_text("no database")


def no_log(path: Path) -> None:
    shutil.rmtree(path / "raft")


@pytest.mark.parametrize("spoil", [without_meta, without_a_shard, no_database, no_log])
def test_a_recovery_that_is_refused_has_touched_nothing(killed: Path, spoil: Callable[[Path], None]) -> None:
    spoil(killed)
    before = contents(killed)
    with pytest.raises((Corruption, StoreError)) as refused:
        recover(killed, lambda _: None)
    assert "unfinished" not in str(refused.value)
    assert contents(killed) == before


def contents(path: Path) -> dict[str, bytes]:
    """All but what every opening writes."""
    files = {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_file()}
    return {
        name: file.read_bytes() for name, file in files.items() if name != "nebulad.pid" and not name.startswith("LOCK")
    }


def test_a_recovery_that_is_killed_anywhere_is_repeated(killed: Path, tmp_path: Path) -> None:
    """At each rename, and before each document."""
    for place in count():
        path = shutil.copytree(killed, tmp_path / f"killed-{place}")
        with pytest.MonkeyPatch.context() as patched:
            steps = killed_at(place, patched)
            try:
                recover(path, lambda _: None)
            except KeyboardInterrupt:
                assert not (path / "identity.json").exists() or not list(path.glob(f"*{ASIDE}"))
            else:
                assert next(steps) <= place
                assert place > 5
                return
        recover(path, lambda _: None)
        assert report(path, lambda _: None)
        assert (path / "voting").exists()
        assert (path / f"raft{ASIDE}").is_dir()
        with pytest.raises(ConfigurationError, match="recovered already"):
            recover(path, lambda _: None)
        shutil.rmtree(path)


def killed_at(place: int, patched: pytest.MonkeyPatch) -> Iterator[int]:
    """Let the renaming, or the writing, of that number be the last that is begun."""
    steps = count()
    rename, write = Path.replace, write_durably

    def replace(path: Path, target: Path) -> Path:
        if not path.name.endswith((".tmp", ".new")) or path.name == "raft.new":
            step()
        return rename(path, target)

    def written(path: Path, data: bytes) -> None:
        step()
        write(path, data)

    def step() -> None:
        if next(steps) == place:
            raise KeyboardInterrupt

    patched.setattr(Path, "replace", replace)
    patched.setattr("nebuladb.server.recover.write_durably", written)
    return steps


def test_a_recovery_that_fails_half_way_says_how_to_have_the_node_back(
    killed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(killed)
    with monkeypatch.context() as patched:
        patched.setattr(RocksEngine, "open_data", failing)
        text = (
            rf"no\. .* unfinished: repeat it; .*move data/ .*rename founding.json{ASIDE} .*, identity.json{ASIDE} to id"
        )
        with pytest.raises(StoreError, match=text):
            recover(killed, lambda _: None)
    for name in ("founding.json", "identity.json"):
        (killed / f"{name}{ASIDE}").rename(killed / name)
    after = contents(killed)
    assert {name: after[name] for name in before if name.endswith(".json")} == {
        name: before[name] for name in before if name.endswith(".json")
    }
    recover(killed, lambda _: None)


def test_a_second_disaster_never_replays_the_log_of_the_first(killed: Path) -> None:
    recover(killed, lambda _: None)
    (killed / f"identity.json{ASIDE}").unlink()
    (killed / f"founding.json{ASIDE}").unlink()
    with pytest.raises(ConfigurationError, match=rf"raft{ASIDE} is what was there before.*move it out"):
        recover(killed, lambda _: None)
    shutil.rmtree(killed / f"raft{ASIDE}")
    recover(killed, lambda _: None)
    assert report(killed, lambda _: None)

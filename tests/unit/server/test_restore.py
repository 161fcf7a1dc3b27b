"""What `snapshot restore` makes of a backup for the nodes of a new cluster, and of what clients remember of the old."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from nebuladb.cli.main import main
from nebuladb.errors import ConfigurationError, Corruption, IdentityError
from nebuladb.ids import ETCD_GROUP, META_GROUP, GroupId, NodeId
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.rows import Keys, LeaseRow, decode_lease
from nebuladb.kv.state import State
from nebuladb.kv.store import Store
from nebuladb.node.declared import Declared, DeclaredAlarm
from nebuladb.node.identity import Identity
from nebuladb.node.keyspaces import transaction
from nebuladb.node.meta import Meta, read_meta
from nebuladb.pb.nebula.v1 import lease_pb2
from nebuladb.server.restore import SKIPPED_GROUPS, Wanted, restore
from nebuladb.server.site import FIRST_GENERATION
from nebuladb.storage.rocks import RocksEngine
from tests.unit.api.etcd.faced import Faced
from tests.unit.node.lone import SECONDS

MEMBERS = {"n1": "h1:7380", "n2": "h2:7380"}
TTL = 30
LEASES = (7, -1)
"""An id of the last row but one, and of the last."""
HELD_MS = 20_000
ALARMS = [DeclaredAlarm(Declared.CORRUPT, 7), DeclaredAlarm(Declared.NO_SPACE, 8)]
LATER = "b.snap"
"""A whole one that was made later, when alarms were declared."""
NEXT = 8
"""Of the source: its keyspace had the groups 4 to 7, and is dropped."""


@pytest.fixture
async def backup(tmp_path: Path) -> AsyncIterator[Path]:
    """Of a node with leases that were granted a while ago, and whose only keyspace is gone."""
    faced = Faced()
    await asyncio.wait_for(faced.open(), SECONDS)
    file = tmp_path / "a.snap"

    async def cli(*words: object) -> None:
        arguments = ["--endpoints", faced.address, *map(str, words)]
        result = await asyncio.to_thread(CliRunner().invoke, main, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.stderr

    for lease in LEASES:
        request = lease_pb2.LeaseGrantRequest(id=lease, ttl=TTL)
        await faced.pump.propose(ETCD_GROUP, Command(Kind.LEASE_GRANT, request.SerializeToString()), SECONDS)
    faced.clock.time += HELD_MS
    await faced.set(b"k")
    await cli("keyspace", "create", "late", "--shards", NEXT - 4)
    await cli("keyspace", "drop", "late")
    await cli("snapshot", "save", file)
    await faced.set(b"k")
    step = transaction({}, {alarm.key: alarm.encode() for alarm in ALARMS})
    await faced.pump.propose(META_GROUP, Command(Kind.TXN, step), SECONDS)
    await cli("snapshot", "save", file.with_name(LATER))
    yield file
    await faced.close()


def identity(directory: Path) -> Identity:
    return Identity.decode((directory / "identity.json").read_bytes())


def leases(directory: Path) -> tuple[int, dict[int, LeaseRow]]:
    """The clock of `etcd`, and its leases."""
    data, keys = RocksEngine.open_data(directory / "data"), Keys(ETCD_GROUP, FIRST_GENERATION)
    state, rows = data.get(keys.state), {lease: data.get(keys.lease_key(lease)) for lease in LEASES}
    data.close()
    assert state is not None
    return State.decode(state).clock, {lease: decode_lease(row) for lease, row in rows.items() if row is not None}


def meta(directory: Path) -> Meta:
    data = RocksEngine.open_data(directory / "data")
    store = Store(data, GroupId(META_GROUP), FIRST_GENERATION, NodeId(0))
    found = read_meta(store)
    store.close()
    data.close()
    return found


async def test_nodes_with_other_states_are_not_of_one_cluster(backup: Path, tmp_path: Path) -> None:
    """Two with `--bump-revision`, and one without, would serve other revisions of the same keys, and nobody tell."""
    flags = ((0, False), (1_000, False), (1_000, True), (0, True), (10, False))
    wanted = [Wanted("n1", MEMBERS, "", bump, mark) for bump, mark in flags]
    assert len({one.cluster("backup") for one in wanted}) == len(flags)
    found = []
    for place, (name, bump) in enumerate((("n1", 1_000), ("n2", 1_000), ("n2", 0))):
        await asyncio.to_thread(restore, [backup], tmp_path / str(place), Wanted(name, MEMBERS, "", bump))
        found.append(identity(tmp_path / str(place)).cluster)
    assert found[0] == found[1] != found[2]


async def test_a_lease_begins_anew_for_its_renewals_since_the_backup_are_forgotten(
    backup: Path, tmp_path: Path
) -> None:
    """Its holder may have been told, a moment before the restore, that it has the lock for a whole TTL."""
    found = []
    for name in MEMBERS:
        await asyncio.to_thread(restore, [backup], tmp_path / name, Wanted(name, MEMBERS))
        found.append(leases(tmp_path / name))
    clock, rows = found[0]
    assert {lease: row.expires - clock for lease, row in rows.items()} == dict.fromkeys(LEASES, TTL * 1_000)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("bump", "mark", "skipped"), [(0, False, 0), (1_000, False, SKIPPED_GROUPS), (0, True, SKIPPED_GROUPS)]
)
async def test_the_id_of_a_group_is_not_issued_again(
    backup: Path, tmp_path: Path, bump: int, mark: bool, skipped: int
) -> None:
    """Else a position in a watch of the keyspace that was dropped is one in that of the next keyspace."""
    await asyncio.to_thread(restore, [backup], tmp_path / "n1", Wanted("n1", MEMBERS, "", bump, mark))
    assert meta(tmp_path / "n1").next_group == NEXT + skipped


async def test_alarms_that_were_declared_stand_until_somebody_takes_them_back(backup: Path, tmp_path: Path) -> None:
    """As in etcd: writes that CORRUPT forbade were taken again, and nobody had said so."""
    for name, file, declared in (("n1", backup.with_name(LATER), ALARMS), ("n2", backup, [])):
        await asyncio.to_thread(restore, [file], tmp_path / name, Wanted(name, MEMBERS))
        assert meta(tmp_path / name).declared == declared


async def test_a_backup_on_top_of_a_later_one_is_refused(backup: Path, tmp_path: Path) -> None:
    """Both are whole, so that neither builds on the other: what came between them was gone, and nobody told."""
    later, directory = backup.with_name(LATER), tmp_path / "n1"
    with pytest.raises(Corruption, match=r"a\.snap: it is older than the file before it; name all, the oldest first"):
        await asyncio.to_thread(restore, [later, backup], directory, Wanted("n1", MEMBERS))
    assert not directory.exists()
    parts = await asyncio.to_thread(restore, [backup, later], directory, Wanted("n1", MEMBERS))
    assert {part.descriptor.group: part.revision for part in parts}[ETCD_GROUP] == 3


@pytest.mark.parametrize("fails", [True, False])
async def test_one_at_a_time_makes_a_directory(backup: Path, tmp_path: Path, fails: bool) -> None:
    """The second one began too, failed, and removed what the first had made."""
    directory, wanted = tmp_path / "n1", Wanted("n1", MEMBERS)
    refused: list[str] = []

    def second(_: int) -> None:
        if not refused:
            with pytest.raises(IdentityError) as caught:
                restore([backup], directory, wanted)
            refused.append(caught.value.message)
            if fails:
                raise OSError("no more")

    if fails:
        with pytest.raises(OSError, match="no more"):
            await asyncio.to_thread(restore, [backup], directory, wanted, second)
        assert not directory.exists()
    else:
        await asyncio.to_thread(restore, [backup], directory, wanted, second)
        assert identity(directory).name == "n1"
    assert "is in use by another nebulad" in refused[0]


async def test_what_it_did_not_make_stays(backup: Path, tmp_path: Path) -> None:
    directory, wanted = tmp_path / "n1", Wanted("n1", MEMBERS)
    directory.mkdir()

    def other(_: int) -> None:
        (directory / "other").mkdir(exist_ok=True)
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        await asyncio.to_thread(restore, [backup], directory, wanted, other)
    assert sorted(entry.name for entry in directory.iterdir()) == ["LOCK", "other"]


@pytest.mark.parametrize(
    "before",
    [
        {"other": b"1"},
        {"LOCK": b"under the mat"},
        {"other": b"1", "LOCK": b""},
        {"data": b"", "LOCK": b"1\n"},
    ],
    ids=["file", "lock", "both", "restore"],
)
def test_what_is_refused_stays_as_it_was(tmp_path: Path, before: dict[str, bytes]) -> None:
    """Its pid was in LOCK then, which was somebody's file."""
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match="empty"):
        restore([], tmp_path, Wanted("n1", MEMBERS))
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kind", ["pipe", "link", "directory"])
def test_a_lock_is_a_file(tmp_path: Path, kind: str) -> None:
    directory, lock = tmp_path / "n1", tmp_path / "n1" / "LOCK"
    directory.mkdir()
    if kind == "pipe":
        os.mkfifo(lock)
    elif kind == "link":
        lock.symlink_to(tmp_path / "elsewhere")
    else:
        lock.mkdir()
    with pytest.raises(ConfigurationError, match="is not empty"):
        restore([], directory, Wanted("n1", MEMBERS))
    assert os.listdir(tmp_path) == ["n1"]


@pytest.mark.parametrize("content", [b"", b"123\n"])
async def test_a_lock_that_was_left_is_no_hindrance(backup: Path, tmp_path: Path, content: bytes) -> None:
    directory = tmp_path / "n1"
    directory.mkdir()
    (directory / "LOCK").write_bytes(content)
    await asyncio.to_thread(restore, [backup], directory, Wanted("n1", MEMBERS))
    assert identity(directory).name == "n1"


async def test_a_file_system_may_begin_there(backup: Path, tmp_path: Path) -> None:
    """Its lost+found made the directory one that is not empty."""
    directory = tmp_path / "n1"
    (directory / "lost+found").mkdir(parents=True)
    await asyncio.to_thread(restore, [backup], directory, Wanted("n1", MEMBERS))
    assert identity(directory).name == "n1"
    assert (directory / "lost+found").exists()

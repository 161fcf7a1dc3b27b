"""Small disks that fill up, on one node and on all three; then there is room again (S33)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nebuladb.client import AsyncClient, Client
from nebuladb.errors import NebulaError, NoSpace
from nebuladb.ids import DEFAULT_GROUP
from tests.integration.cluster import Cluster

DISK_MIB = 320
LOW_MIB = 40
SECONDS = 30.0
"""Within which everything is served again once there is room."""
ENVIRON = {"NEBULA_MEMORY": "64MiB", "NEBULA_MIN_FREE_SPACE": f"{LOW_MIB}MiB", "NEBULA_BALLAST": "8MiB"}
VALUE = os.urandom(64 << 10)


@contextmanager
def small_disks(directory: Path, nodes: int, options: str = "") -> Iterator[None]:
    """A small file system of its own for each node's directory. Skips where none can be mounted."""
    mounted: list[Path] = []
    try:
        for node in range(nodes):
            path = directory / f"n{node + 1}"
            path.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m{options}", "tmpfs", str(path)]
            if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
                pytest.skip("no file system can be mounted here (it takes root), so no disk can fill up")
            mounted.append(path)
        yield
    finally:
        for path in mounted:
            subprocess.run(["umount", "-l", str(path)], check=False)


def filler(cluster: Cluster, node: int) -> Path:
    return cluster.data_dir(node) / "filler"


def fill(cluster: Cluster, node: int, leave_mib: int) -> None:
    """Somebody else fills the disk up, but for so much."""
    found = os.statvfs(cluster.data_dir(node))
    free = found.f_bavail * found.f_frsize - (leave_mib << 20)
    with filler(cluster, node).open("wb", buffering=0) as file:
        if leave_mib:
            os.posix_fallocate(file.fileno(), 0, free)
            return
        with contextlib.suppress(OSError):
            while True:
                file.write(VALUE)


def alarmed(cluster: Cluster, node: int) -> bool:
    return any("are free on the disk" in alarm for alarm in (cluster.status(node) or {"alarms": []})["alarms"])


def puts(client: Client, name: str, count: int, done: list[bytes] | None = None) -> list[bytes]:
    """Put so many keys; those that were acknowledged go into `done`."""
    done = [] if done is None else done
    for number in range(count):
        key = f"{name}/{number}".encode()
        client.put(key, VALUE)
        done.append(key)
    return done


def whole(client: Client, keys: list[bytes]) -> None:
    for key in keys:
        found = client.get(key)
        assert found is not None, key
        assert found.value == VALUE


def hashes_agree(cluster: Cluster) -> None:
    async def ask() -> set[bytes]:
        async with AsyncClient(cluster.endpoints, timeout=SECONDS) as client:
            made = await client.state_hash(DEFAULT_GROUP)
            return {(await client.state_hash(DEFAULT_GROUP, made.index, one)).hash for one in cluster.endpoints}

    assert len(asyncio.run(ask())) == 1


def compact(cluster: Cluster, revision: int) -> None:
    async def ask() -> None:
        async with AsyncClient(cluster.endpoints) as client:
            await client.compact(revision)

    asyncio.run(ask())


def test_one_full_disk_costs_that_node_its_leadership_and_nobody_a_write(tmp_path: Path) -> None:
    with small_disks(tmp_path, 3), Cluster(tmp_path, environ=ENVIRON) as cluster:
        cluster.start()
        cluster.wait_ready()
        full = cluster.leader()
        others = [endpoint for node, endpoint in enumerate(cluster.endpoints) if node != full]
        with Client(cluster.endpoints) as client, Client(others) as elsewhere:
            keys = puts(client, "before", 20)
            fill(cluster, full, LOW_MIB - 2)
            cluster.wait_for(lambda: alarmed(cluster, full), "an alarm")
            cluster.wait_for(lambda: cluster.leader() != full, "leadership is elsewhere", SECONDS)
            with Client([cluster.endpoints[full]], timeout=2.0) as here:
                with pytest.raises(NoSpace):
                    here.put(b"k", b"v")
                whole(here, keys)
                assert here.delete(b"before/0").deleted == 1
            keys = keys[1:] + puts(elsewhere, "meanwhile", 600)  # 37 MiB: more than the full one has room for
            assert cluster.running == [0, 1, 2]
            filler(cluster, full).unlink()
            began = time.monotonic()
            cluster.wait_for(lambda: not alarmed(cluster, full), "no alarm", SECONDS)
            with Client([cluster.endpoints[full]], timeout=10.0) as here:
                keys += puts(here, "after", 5)
                whole(here, keys)
            hashes_agree(cluster)
            assert time.monotonic() - began < SECONDS
            assert cluster.running == [0, 1, 2]


def test_all_disks_full_and_then_room_again_needs_no_operator(tmp_path: Path) -> None:
    with small_disks(tmp_path, 3), Cluster(tmp_path, environ=ENVIRON) as cluster:
        cluster.start()
        cluster.wait_ready()
        with Client(cluster.endpoints, timeout=5.0) as client:
            keys = puts(client, "before", 20)
            for node in cluster.all:
                fill(cluster, node, LOW_MIB + 20)
            with pytest.raises(NoSpace):
                puts(client, "filling", 2_000, keys)  # the database itself fills the rest
            cluster.wait_for(lambda: all(alarmed(cluster, node) for node in cluster.all), "alarms")
            whole(client, keys)
            assert client.delete(b"before/0").deleted == 1
            keys.remove(b"before/0")
            newest = client.get(keys[-1])
            assert newest is not None
            compact(cluster, newest.mod_revision)
            assert cluster.running == [0, 1, 2]
            for node in cluster.all:
                filler(cluster, node).unlink()
            began = time.monotonic()

            def served() -> bool:
                try:
                    client.put(b"again", b"v")
                except NebulaError:
                    return False
                return True

            cluster.wait_for(served, "writes are taken again", SECONDS)
            assert time.monotonic() - began < SECONDS
            whole(client, keys)
            hashes_agree(cluster)


@pytest.mark.parametrize("how", ["compact", "drop"])
def test_what_is_deleted_on_a_full_disk_gives_its_room_back(tmp_path: Path, how: str) -> None:
    """Large values, of which a few KiB of deletions, in no table yet, are the end: for lack of another write nothing
    ever flushed them."""
    with small_disks(tmp_path, 1), Cluster(tmp_path, 1, ENVIRON) as cluster:
        cluster.start()
        cluster.wait_ready()

        async def change(*, made: bool) -> None:
            async with AsyncClient(cluster.endpoints) as client:
                await (client.create_keyspace("big", "range") if made else client.drop_keyspace("big"))

        asyncio.run(change(made=True))
        fill(cluster, 0, LOW_MIB + 100)
        with Client(cluster.endpoints, timeout=SECONDS, keyspace="big" if how == "drop" else "default") as client:
            with pytest.raises(NoSpace):
                puts(client, "filling", 2_000)
            cluster.wait_for(lambda: alarmed(cluster, 0), "an alarm")
            if how == "drop":
                asyncio.run(change(made=False))
            else:
                compact(cluster, client.delete(b"filling/", b"filling0").revision)
        cluster.wait_for(lambda: not alarmed(cluster, 0), "no alarm", SECONDS)
        with Client(cluster.endpoints, timeout=SECONDS) as client:
            client.put(b"again", VALUE)


def test_a_node_that_met_the_end_of_its_disk_comes_back_by_itself(tmp_path: Path) -> None:
    """Somebody takes all of the disk at once: the log's error stops the node, and it waits for room to start again."""
    with small_disks(tmp_path, 3), Cluster(tmp_path, environ={**ENVIRON, "NEBULA_BALLAST": "0"}) as cluster:
        cluster.start()
        cluster.wait_ready()
        victim = cluster.leader()
        with Client(cluster.endpoints, timeout=10.0) as client:
            keys = puts(client, "before", 20)
            fill(cluster, victim, 0)
            keys += [key for number in range(20) for key in acknowledged(client, f"meanwhile{number}")]
            cluster.wait_for(lambda: cluster.leader() != victim, "another leads", SECONDS)
            filler(cluster, victim).unlink()
            cluster.wait_ready(victim, seconds=SECONDS)
            whole(client, keys)
            hashes_agree(cluster)


def test_a_disk_without_inodes_is_a_full_disk(tmp_path: Path) -> None:
    with small_disks(tmp_path, 1, ",nr_inodes=400"), Cluster(tmp_path, 1, ENVIRON) as cluster:
        cluster.start()
        cluster.wait_ready()
        with Client(cluster.endpoints, timeout=10.0) as client:
            keys = puts(client, "before", 20)
            others = cluster.data_dir(0) / "others"
            others.mkdir()
            with contextlib.suppress(OSError):
                for number in range(400):
                    (others / str(number)).touch()
            cluster.wait_for(lambda: alarmed(cluster, 0), "an alarm")
            assert "inodes" in (cluster.status(0) or {"alarms": []})["alarms"][0]
            with pytest.raises(NoSpace):
                client.put(b"k", b"v")
            shutil.rmtree(others)
            cluster.wait_for(lambda: not alarmed(cluster, 0), "no alarm", SECONDS)
            whole(client, keys + puts(client, "after", 5))


def acknowledged(client: Client, name: str) -> list[bytes]:
    """A put's key, if it was acknowledged."""
    try:
        return puts(client, name, 1)
    except NebulaError:
        return []

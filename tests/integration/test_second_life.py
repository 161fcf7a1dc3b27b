"""Clusters that begin with what another one left, a survivor or a backup, take part in everything again: nodes join."""

from __future__ import annotations

import asyncio
from pathlib import Path

from nebuladb.client import AsyncClient, Client
from nebuladb.ids import DEFAULT_GROUP
from nebuladb.server.verify import verify
from tests.integration.cluster import Cluster
from tests.integration.members import Growing
from tests.integration.test_backup import nebulad

KEYS = 300


def write(endpoints: list[str], name: bytes) -> None:
    async def work() -> None:
        async with AsyncClient(endpoints) as client:
            await client.batch({b"%b/%d" % (name, number): b"v" * 100 for number in range(KEYS)})

    asyncio.run(work())


def held(endpoint: str) -> dict[bytes, bytes]:
    with Client([endpoint]) as client:
        return {kv.key: kv.value for kv in client.scan()}


def move(source: Path, cluster: Cluster, node: int) -> None:
    for path in source.iterdir():
        path.rename(cluster.data_dir(node) / path.name)


def joined_by_another(cluster: Growing, place: int) -> None:
    """A node joins the one that is there, and has all it has; both serve."""
    door = cluster.running[0]
    cluster.add(place)
    cluster.same_everywhere()
    assert held(cluster.endpoints[place]) == held(cluster.endpoints[door])
    status = cluster.status(place)
    assert status is not None
    assert {group["group"] for group in status["groups"]} >= {1, int(DEFAULT_GROUP), 3}
    write([cluster.endpoints[place]], b"later")
    assert len(held(cluster.endpoints[door])) == len(held(cluster.endpoints[place])) > KEYS


def test_a_survivor_whose_cluster_had_changed_its_members_recovers_and_is_joined(tmp_path: Path) -> None:
    """The survivor itself joined later, and the meta group's descriptor is not the founding's any more."""
    with Growing(tmp_path, founders=3, places=5) as cluster:
        cluster.start(0, 1, 2)
        cluster.wait_ready(0, 1, 2)
        write(cluster.endpoints[:3], b"before")
        cluster.add(3)
        cluster.done("member", "remove", "n1")
        assert cluster.wait_exit(0) == 3
        write(cluster.endpoints[1:4], b"after")
        content = held(cluster.endpoints[3])
        cluster.kill(*cluster.running)
        done = nebulad("recover", "--data-dir", cluster.data_dir(3), "--i-accept-data-loss")
        assert done.returncode == 0, done.stderr
        assert [finding for finding in verify(cluster.data_dir(3)) if finding.problem] == []
        cluster.start(3)
        cluster.wait_ready(3)
        assert held(cluster.endpoints[3]) == content
        assert list(cluster.listed()) == ["n4"]
        joined_by_another(cluster, 4)
        # It is restarted with what it knows now.
        assert cluster.stop(3) == [0]
        cluster.start(3)
        cluster.wait_ready(3, 4)


def test_a_restored_cluster_is_joined(tmp_path: Path) -> None:
    with Growing(tmp_path / "cluster", founders=1, places=2) as cluster:
        file, restored = tmp_path / "all.snap", tmp_path / "restored"
        cluster.start(0)
        cluster.wait_ready(0)
        cluster.done("keyspace", "create", "users", "--shards", "2")
        write(cluster.endpoints[:1], b"before")
        cluster.done("snapshot", "save", str(file))
        assert cluster.stop(0) == [0]
        cluster.wipe(0)
        where = f"n1={cluster.members[0].config.peer_addr}"
        arguments = ("--data-dir", str(restored), "--name", "n1", "--initial-cluster", where)
        cluster.done("snapshot", "restore", str(file), *arguments, "--bump-revision", "1000")
        move(restored, cluster, 0)
        cluster.start(0)
        cluster.wait_ready(0)
        assert len(held(cluster.endpoints[0])) == KEYS
        joined_by_another(cluster, 1)

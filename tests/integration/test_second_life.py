"""Clusters that begin with what another one left, a survivor or a backup, take part in everything again: nodes join."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from nebuladb.client import AsyncClient, Client
from nebuladb.ids import DEFAULT_GROUP
from nebuladb.node.backup import check
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


def restored(cluster: Growing, places: Sequence[int], *files: Path) -> None:
    """Each of these nodes as it was in the backup; always the same cluster, of the founders."""
    founders = cluster.members[: cluster.founders]
    where = ",".join(f"{member.config.name}={member.config.peer_addr}" for member in founders)
    for place in places:
        made = files[0].with_name(f"made-{place}")
        arguments = ("--data-dir", str(made), "--name", cluster.name(place), "--initial-cluster", where)
        cluster.done("snapshot", "restore", *map(str, files), *arguments, through=place)
        cluster.wipe(place)
        move(made, cluster, place)
        made.rmdir()


def put(cluster: Growing, *keys: bytes, value: bytes) -> None:
    with Client([cluster.endpoints[place] for place in cluster.running]) as client:
        for key in keys:
            client.put(key, value)


def named(cluster: Growing, file: Path) -> int:
    """Save a backup that knows which life it is of: the first leader of meta has named it within a second."""

    def saved() -> bool:
        cluster.done("snapshot", "save", str(file))
        return bool(check(file)[0].manifest.life)

    cluster.wait_for(saved, "the cluster's life has a name")
    return check(file)[0].manifest.life


def test_a_backup_of_another_life_is_no_base(tmp_path: Path) -> None:
    """Twice the same backup gives the same cluster twice, at the same revisions, with other data."""
    with Growing(tmp_path / "cluster", founders=1, places=1) as cluster:
        base, first, second = (tmp_path / f"{name}.snap" for name in ("base", "first", "second"))
        cluster.start(0)
        cluster.wait_ready(0)
        put(cluster, b"base", value=b"v")
        lives = [named(cluster, base)]
        for file, life in ((first, b"first"), (second, b"second")):
            cluster.kill(0)
            restored(cluster, [0], base)
            cluster.start(0)
            cluster.wait_ready(0)
            put(cluster, *(b"%b/%d" % (life, number) for number in range(5)), b"shared", value=life)
            lives.append(named(cluster, file))
            if file is second:
                cluster.done("snapshot", "save", str(file), "--since", str(first))
                assert check(file)[0].manifest.since == "", "it stands alone"
        assert len(set(lives)) == 3
        later = tmp_path / "later.snap"
        cluster.done("snapshot", "save", str(later), "--since", str(second))
        assert check(later)[0].manifest.since == check(second)[0].name, "in one life one builds on the other"
        content = held(cluster.endpoints[0])
        cluster.kill(0)
        restored(cluster, [0], base, first, second, later)
        cluster.start(0)
        cluster.wait_ready(0)
        assert held(cluster.endpoints[0]) == content
        assert b"first/0" not in content


def test_a_node_of_another_life_is_refused_and_told_what_to_do(tmp_path: Path) -> None:
    """It would take the log of the second life for that of its own, whose entries have the same indexes and terms."""
    with Growing(tmp_path / "cluster", founders=3, places=3) as cluster:
        base = tmp_path / "base.snap"
        cluster.start()
        cluster.wait_ready()
        put(cluster, b"base", value=b"v")
        cluster.done("snapshot", "save", str(base))
        cluster.kill(0, 1, 2)
        restored(cluster, [0, 1, 2], base)
        cluster.start()
        cluster.wait_ready()
        put(cluster, b"p0", b"p1", value=b"first")
        named(cluster, tmp_path / "first.snap")
        cluster.kill(0, 1, 2)
        restored(cluster, [0, 1], base)
        cluster.start(0, 1)
        cluster.wait_ready(0, 1)
        put(cluster, b"q0", b"q1", value=b"second")
        named(cluster, tmp_path / "second.snap")
        cluster.start(2)
        cluster.wait_for(lambda: "another life" in cluster.log_file(0).read_text(), "the stranger is refused")
        assert not cluster.ready(2)
        assert sorted(held(cluster.endpoints[0])) == sorted(held(cluster.endpoints[1])) == [b"base", b"q0", b"q1"]
        cluster.kill(2)
        restored(cluster, [2], base)
        cluster.start(2)
        cluster.wait_ready()
        cluster.same_everywhere()


def test_a_node_that_forgot_this_life_is_not_let_in_again(tmp_path: Path) -> None:
    """Restored once more from the same file it voted, with one that was away, for the loss of what it acknowledged."""
    with Growing(tmp_path / "cluster", founders=3, places=4) as cluster:
        base = tmp_path / "base.snap"
        cluster.start(0, 1, 2)
        cluster.wait_ready(0, 1, 2)
        cluster.done("snapshot", "save", str(base))
        cluster.kill(0, 1, 2)
        restored(cluster, [0, 1, 2], base)
        cluster.start(0, 1, 2)
        cluster.wait_ready(0, 1, 2)
        cluster.kill(2)  # who is ready is known, and knows which life it is
        put(cluster, b"k", value=b"acknowledged")
        cluster.kill(0, 1)
        restored(cluster, [1], base)
        cluster.start(1, 2)
        cluster.wait_for(lambda: "forgotten its votes" in cluster.log_file(2).read_text(), "it is refused")
        assert not cluster.ready(2)
        cluster.start(0)
        cluster.wait_ready(0, 2)
        assert held(cluster.endpoints[2])[b"k"] == b"acknowledged"
        cluster.kill(1)
        peer = cluster.members[3].config.peer_addr
        cluster.done("member", "replace", "n2", cluster.name(3), "--peer-address", peer, through=0)
        cluster.enter(3, door=0)
        cluster.wait_for(lambda: set(cluster.listed(0)) == {"n1", "n3", "n4"}, "the node is replaced")
        cluster.wait_ready(3)
        assert held(cluster.endpoints[3])[b"k"] == b"acknowledged"

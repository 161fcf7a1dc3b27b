"""Who a node is: refusals that name what to do, and founding in any order (S14, S16, S18)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import pytest

from nebuladb.client import AsyncClient
from nebuladb.rpc.engine import ENGINES
from nebuladb.server.dev import plan
from tests.integration.cluster import Cluster


def start(cluster: Cluster, node: int, *flags: str) -> subprocess.CompletedProcess[str]:
    """A start of node `node` with other flags, which is expected to be refused."""
    command = [sys.executable, "-m", "nebuladb.server.main", "start", "--config", str(cluster.members[node].file)]
    return subprocess.run([*command, *flags], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes that were founded and are stopped. It keeps their ports."""
    with Cluster(tmp_path_factory.mktemp("pattern")) as cluster:
        cluster.start()
        cluster.wait_ready()
        assert cluster.stop() == [0, 0, 0]
        yield cluster


@pytest.fixture
def founded(pattern: Cluster, tmp_path: Path) -> Cluster:
    """The same, of a test's own."""
    directory = tmp_path / "founded"
    port = pattern.endpoints[0].rpartition(":")[2]
    cluster = Cluster(directory, members=plan(3, directory, int(port)))
    for node in cluster.all:
        without = shutil.ignore_patterns(cluster.members[node].file.name)
        shutil.copytree(pattern.data_dir(node), cluster.data_dir(node), ignore=without, dirs_exist_ok=True)
    return cluster


def test_a_wiped_node_is_refused_and_told_what_to_do(founded: Cluster) -> None:
    with founded as cluster:
        shutil.rmtree(cluster.data_dir(0) / "raft")
        shutil.rmtree(cluster.data_dir(0) / "data")
        for name in ("identity.json", "founding.json", "voting"):
            (cluster.data_dir(0) / name).unlink()
        cluster.start(1, 2)
        cluster.wait_ready(1, 2)
        refused = start(cluster, 0)
        assert refused.returncode == 1
        assert "member replace n1" in refused.stderr
        assert cluster.running == [1, 2]


@pytest.mark.parametrize("lost", ["raft", "WAL"])
async def test_a_node_that_forgot_its_votes_is_refused_whatever_else_it_has(tmp_path: Path, lost: str) -> None:
    """With it the one that was away would be a majority, and what the two others acknowledged would be gone (S15)."""
    with Cluster(tmp_path) as cluster:
        cluster.start()
        cluster.wait_ready()
        cluster.stop(2)
        async with AsyncClient(cluster.endpoints[:2]) as client:
            await client.put(b"acked", b"1")
        cluster.kill(0, 1)
        directory = cluster.data_dir(1)
        if lost == "raft":
            shutil.rmtree(directory / "raft")
            shutil.rmtree(directory / "data")
        else:
            for file in (directory / "raft").glob("*.log"):
                file.unlink()
        cluster.start(2)
        refused = start(cluster, 1)
        assert refused.returncode == 1
        assert "member replace" in refused.stderr
        cluster.start(0)
        cluster.wait_ready(0, 2)
        async with AsyncClient([cluster.endpoints[0], cluster.endpoints[2]]) as client:
            found = await client.get(b"acked")
            assert found is not None
            assert found.value == b"1"


def test_a_node_that_lost_its_identity_only_is_refused(founded: Cluster) -> None:
    with founded as cluster:
        (cluster.data_dir(0) / "identity.json").unlink()
        refused = start(cluster, 0)
        assert refused.returncode == 1
        assert "identity.json" in refused.stderr


def test_another_nodes_directory_is_refused(founded: Cluster) -> None:
    with founded as cluster:
        refused = start(cluster, 1, "--data-dir", str(cluster.data_dir(0)))
        assert refused.returncode == 1
        assert "belongs to node 'n1', not 'n2'" in refused.stderr


def test_a_directory_in_use_is_refused(cluster: Cluster) -> None:
    refused = start(cluster, 0)
    assert refused.returncode == 1
    assert f"process {cluster.pid(0)}" in refused.stderr
    assert str(cluster.data_dir(0)) in refused.stderr
    assert "Traceback" not in refused.stderr
    assert cluster.ready(0)
    assert (cluster.data_dir(0) / "nebulad.pid").read_text() == f"{cluster.pid(0)}\n"


@pytest.mark.parametrize("which", ["client-addr", "peer-addr", "admin-addr"])
def test_a_port_in_use_is_refused(cluster: Cluster, tmp_path: Path, which: str) -> None:
    taken = getattr(cluster.members[0].config, which.replace("-", "_"))
    with Cluster(tmp_path, nodes=1) as other:
        for engine in ENGINES:
            refused = start(other, 0, f"--{which}", taken, "--rpc-engine", engine)
            assert refused.returncode == 1
            last = refused.stderr.splitlines()[-1]
            assert last == f"nebulad: {which}: can't listen at {taken}: Address already in use"
        assert not (other.data_dir(0) / "founding.json").exists(), "nobody counts on a node that can't serve"
    assert cluster.ready(0)


async def test_another_clusters_peer_is_refused(founded: Cluster, tmp_path: Path) -> None:
    with founded as cluster, Cluster(tmp_path / "other", nodes=2) as other:
        cluster.start()
        cluster.wait_ready()
        peer = cluster.members[0].config.peer_addr
        mine = other.members[1].config.peer_addr
        refused = start(other, 1, "--initial-cluster", f"n1={peer},n2={mine}")
        assert refused.returncode == 1
        assert "member replace n2" in refused.stderr or "belongs to cluster" in refused.stderr
        stranger = start(
            other, 1, "--name", "n9", "--initial-cluster", f"n1={peer},n9={mine}", "--data-dir", str(tmp_path / "n9")
        )
        assert stranger.returncode == 1
        assert "belongs to cluster" in stranger.stderr
        async with AsyncClient(cluster.endpoints) as client:
            await client.put(b"still", b"here")


def test_a_founded_node_does_not_link_to_another_cluster(founded: Cluster, tmp_path: Path) -> None:
    """A node of one cluster comes back at the address at which another cluster expects a node of its own."""
    with founded as cluster, Cluster(tmp_path / "other") as other:
        other.start()
        other.wait_ready()
        # The node with the greatest id is the one that the others dial.
        place = max(other.all, key=lambda node: (other.status(node) or {})["node_id"])
        rest = [node for node in other.all if node != place]
        other.stop(place)
        theirs = other.members[place].config.peer_addr
        file = cluster.members[place].file
        file.write_text(file.read_text().replace(cluster.members[place].config.peer_addr, theirs))
        cluster.start(place)
        # A refusal of its first start ("is starting") may stand in the log already; this one gives the reason.
        cluster.wait_for(lambda: "belongs to cluster" in cluster.log_file(place).read_text(), "it refuses the stranger")
        other.wait_ready(*rest)


def test_a_founder_with_an_address_that_is_not_in_the_list_is_refused_and_a_founded_node_is_not(
    founded: Cluster, tmp_path: Path
) -> None:
    """Three that all say they were n1's address would found a cluster that no node's death may come to."""
    with founded as cluster, Cluster(tmp_path / "other") as other:
        theirs = other.members[0].config.peer_addr
        refused = start(other, 1, "--advertise-peer-addr", theirs)
        assert refused.returncode == 2
        mine = other.members[1].config.peer_addr
        assert f"initial-cluster says n2={mine}, but this node's peers would be told {theirs}" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert not (other.data_dir(1) / "identity.json").exists()
        file, listed = cluster.members[1].file, f"n2={cluster.members[1].config.peer_addr}"
        assert listed in file.read_text()
        file.write_text(file.read_text().replace(listed, "n2=127.0.0.1:1"))
        cluster.start()
        cluster.wait_ready()


def test_nodes_that_are_ready_at_another_address_are_found_there(founded: Cluster, tmp_path: Path) -> None:
    """Two of three move, one after the other, while the third is away: nobody else can tell them where both are."""
    with founded as cluster, Cluster(tmp_path / "other") as other:
        cluster.start(0, 1)
        cluster.wait_ready(0, 1)
        for node in (0, 1):
            cluster.stop(node)
            file = cluster.members[node].file
            here, there = (one.members[node].config.peer_addr for one in (cluster, other))
            file.write_text(file.read_text().replace(here, there))
            cluster.start(node)
            cluster.wait_ready(node)
        cluster.start(2)
        cluster.wait_ready()


@pytest.mark.parametrize("order", list(permutations(range(3)))[::2], ids=str)
def test_fresh_nodes_found_one_cluster_in_any_order(tmp_path: Path, order: tuple[int, ...]) -> None:
    """Each starts only once the one before waits for it: how long it waits doesn't matter."""
    with Cluster(tmp_path) as cluster:
        for node in order[:-1]:
            cluster.start(node)
            cluster.wait_for(lambda node=node: "waiting for" in cluster.log_file(node).read_text(), "it waits")  # type: ignore[misc]
            assert not cluster.ready(node)
        cluster.start(order[-1])
        cluster.wait_ready()
        ids = {(cluster.status(node) or {})["cluster_id"] for node in cluster.all}
        assert len(ids) == 1


@pytest.mark.parametrize("victim", range(3))
def test_a_crash_while_founding_repeats_it(tmp_path: Path, victim: int) -> None:
    with Cluster(tmp_path) as cluster:
        others = [node for node in cluster.all if node != victim]
        cluster.start(victim, others[0])
        cluster.wait_for(lambda: "waiting for" in cluster.log_file(victim).read_text(), "it waits")
        cluster.kill(victim)
        cluster.start(victim, others[1])
        cluster.wait_ready()

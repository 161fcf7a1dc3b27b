"""A node that was away too long catches up by snapshot, while clients write; and it may be killed while it does."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nebuladb.client import AsyncClient, Client
from nebuladb.errors import NebulaError
from nebuladb.ids import DEFAULT_GROUP
from tests.integration.cluster import Cluster

KEYS = 600
VALUE = 3_000
KILLS = 3
KILL_SECONDS = 0.4
"""After it answers, its snapshots have begun by then, or are over."""
ENVIRON = {
    "NEBULA_LOG_KEEP_ENTRIES": "50",
    "NEBULA_LOG_KEEP_SIZE": "64KiB",
    "NEBULA_CONSISTENCY_CHECK_INTERVAL": "1s",
    "NEBULA_MEMORY": "64MiB",
}


class Writer:
    """Writes on, and remembers what was acknowledged."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._stopping = threading.Event()
        self.known: dict[bytes, bytes] = {}
        self.maybe: set[bytes] = set()
        """Keys under writes whose outcome is unknown."""

    def run(self) -> None:
        number = 0
        with Client(self._cluster.endpoints) as client:
            while not self._stopping.is_set():
                number += 1
                key, value = b"live/%d" % (number % 200), b"%d" % number
                try:
                    client.put(key, value)
                    self.known[key] = value
                    self.maybe.discard(key)
                except NebulaError:
                    self.maybe.add(key)

    @contextmanager
    def writing(self) -> Iterator[None]:
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            thread.join()


def fill(cluster: Cluster, prefix: bytes) -> dict[bytes, bytes]:
    """More than the log keeps."""
    written = {prefix + b"%06d" % number: random.Random(number).randbytes(VALUE) for number in range(KEYS)}
    with Client(cluster.endpoints) as client:
        for key, value in written.items():
            client.put(key, value)
    return written


def sample(cluster: Cluster, node: int, name: str) -> float:
    """The first sample whose line begins so; 0 if there is none."""
    lines = [line for line in cluster.admin(node, "/metrics")[1].splitlines() if line.startswith(name)]
    return float(lines[0].split()[-1]) if lines else 0.0


def log_start(cluster: Cluster, node: int) -> float:
    return sample(cluster, node, f'nebula_raft_log_start{{group="{DEFAULT_GROUP}"')


def received(cluster: Cluster, node: int) -> float:
    return sample(cluster, node, 'nebula_snapshots_total{end="received"')


def applied(cluster: Cluster, node: int) -> int:
    status = cluster.status(node) or {"groups": []}
    return next((int(group["applied"]) for group in status["groups"] if group["group"] == DEFAULT_GROUP), 0)


def holds(cluster: Cluster, node: int, written: dict[bytes, bytes], maybe: set[bytes]) -> None:
    """Its own state has what was acknowledged."""
    with Client([cluster.endpoints[node]]) as client:
        found = {kv.key: kv.value for kv in client.scan()}
    missing = {key for key, value in written.items() if found.get(key) != value and key not in maybe}
    assert not missing, sorted(missing)[:5]


@contextmanager
def running(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, environ=ENVIRON) as cluster:
        cluster.start()
        cluster.wait_ready()
        yield cluster


def leave(cluster: Cluster, node: int, prefix: bytes) -> dict[bytes, bytes]:
    """`node` is killed; what is written then, until the others have cut their logs."""
    before = applied(cluster, node)
    cluster.kill(node)
    written = fill(cluster, prefix)
    others = [other for other in cluster.all if other != node]
    cluster.wait_for(lambda: all(log_start(cluster, other) > before + 1 for other in others), "the logs are cut")
    return written


def test_a_node_that_was_away_catches_up_by_snapshot_under_load(tmp_path: Path) -> None:
    with running(tmp_path) as cluster:
        node = (cluster.leader() + 1) % 3
        written = leave(cluster, node, b"key/")
        writer = Writer(cluster)
        with writer.writing():
            cluster.start(node)
            cluster.wait_for(lambda: received(cluster, node) >= 1, "a snapshot is in")
        last = max(applied(cluster, other) for other in cluster.all)
        cluster.wait_for(lambda: applied(cluster, node) >= last, "it has caught up")
        written |= writer.known
        holds(cluster, node, written, writer.maybe)
        same_hash(cluster)


def same_hash(cluster: Cluster) -> None:
    """All replicas have the same state at one index (S28)."""

    async def ask() -> set[bytes]:
        async with AsyncClient(cluster.endpoints) as client:
            first = await client.state_hash(DEFAULT_GROUP)
            others = [await client.state_hash(DEFAULT_GROUP, first.index, endpoint) for endpoint in cluster.endpoints]
            return {first.hash, *(other.hash for other in others)}

    assert len(asyncio.run(ask())) == 1


def test_it_is_ready_when_it_has_caught_up_in_a_users_keyspace_too(tmp_path: Path) -> None:
    """Else who restarts nodes one by one, as they are ready, stops one of the two that have it all: of three the others
    commit nothing while the snapshot comes, however long that takes."""
    with running(tmp_path) as cluster, Client(cluster.endpoints, keyspace="users") as client:
        client.create_keyspace("users", "single")
        cluster.kill(0)
        for number in range(KEYS):
            client.put(b"%06d" % number, random.Random(number).randbytes(VALUE))

        def cut() -> bool:
            return all(sample(cluster, node, 'nebula_raft_log_start{group="4"') > 1 for node in (1, 2))

        cluster.wait_for(cut, "the logs are cut")
        cluster.start(0)
        cluster.wait_ready(0)
        status = cluster.status(0)
        assert status is not None
        applied = {group["group"]: group["applied"] for group in status["groups"]}
        assert applied[4] >= KEYS


def test_killed_at_any_point_of_the_install_it_comes_back_right(tmp_path: Path) -> None:
    rng = random.Random(8)
    with running(tmp_path) as cluster:
        node = (cluster.leader() + 1) % 3
        written: dict[bytes, bytes] = {}
        for number in range(KILLS):
            written |= leave(cluster, node, b"%d/" % number)
            cluster.start(node)
            cluster.wait_for(lambda: cluster.admin(node, "/livez")[0] == 200, "it lives")
            deadline = time.monotonic() + rng.random() * KILL_SECONDS
            while time.monotonic() < deadline:
                pass
            cluster.kill(node)
            cluster.start(node)
            cluster.wait_ready(node)
            last = max(applied(cluster, other) for other in cluster.all)
            cluster.wait_for(lambda last=last: applied(cluster, node) >= last, "it has caught up")  # type: ignore[misc]
            holds(cluster, node, written, set())
        same_hash(cluster)


def test_damaged_tables_are_never_served_and_are_replaced_by_a_snapshot(tmp_path: Path) -> None:
    """Bytes flip in every table of a node's data store; its log is whole, so it keeps its vote (S15)."""
    with running(tmp_path) as cluster:
        node = (cluster.leader() + 1) % 3
        written = fill(cluster, b"key/")
        cluster.wait_for(lambda: log_start(cluster, node) > 100, "its log is cut")
        assert cluster.stop(node) == [0]
        for table in (cluster.data_dir(node) / "data").glob("*.sst"):
            content = bytearray(table.read_bytes())
            for at in range(100, len(content) // 2, 1_000):
                content[at] ^= 1
            table.write_bytes(content)
        cluster.start(node)
        with Client([cluster.endpoints[node]]) as client:

            def right() -> bool:
                """Nothing wrong comes, and in the end everything does."""
                try:
                    found = {key: client.get(key, serializable=True) for key in sorted(written)[::50]}
                except NebulaError:
                    return False
                assert all(kv is not None and kv.value == written[key] for key, kv in found.items())
                return received(cluster, node) >= 1

            cluster.wait_for(right, "its data is whole again")
        cluster.wait_for(lambda: not (cluster.status(node) or {"alarms": [1]})["alarms"], "no alarm is left")
        same_hash(cluster)


def test_without_its_data_directory_a_node_gets_snapshots(tmp_path: Path) -> None:
    with running(tmp_path) as cluster:
        node = (cluster.leader() + 1) % 3
        written = fill(cluster, b"key/")
        cluster.wait_for(lambda: log_start(cluster, node) > 100, "its log is cut")
        cluster.kill(node)
        for file in (cluster.data_dir(node) / "data").glob("MANIFEST-*"):
            file.write_bytes(b"no manifest")
        cluster.start(node)
        cluster.wait_ready(node)
        holds(cluster, node, written, set())
        assert received(cluster, node) >= 1
        assert (cluster.data_dir(node) / "data.damaged").is_dir()
        same_hash(cluster)

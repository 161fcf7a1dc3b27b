"""The daemon as an operator meets it: refused starts, `nebulad dev`, SIGTERM."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nebuladb.client import AsyncClient
from nebuladb.ids import DEFAULT_GROUP, ETCD_GROUP, META_GROUP
from tests.integration.cluster import READY_SECONDS, STOP_SECONDS, Cluster, Ports

NEBULAD = (sys.executable, "-m", "nebuladb.server.main")


@contextmanager
def taken(address: str) -> Iterator[None]:
    host, _, port = address.rpartition(":")
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((host, int(port)))
        holder.listen()
        yield


def test_a_port_in_use_is_refused_by_name(tmp_path: Path) -> None:
    with Cluster(tmp_path, nodes=1) as cluster:
        for key in ("client_addr", "peer_addr", "admin_addr"):
            address = getattr(cluster.members[0].config, key)
            with taken(address):
                cluster.start(0)
                assert cluster.wait_exit(0) == 1
            log = cluster.log_file(0).read_text()
            assert address in log.splitlines()[-1]
            assert "in use" in log.splitlines()[-1]
            assert "Traceback" not in log
        # Nothing was harmed: with the ports free it starts.
        cluster.start(0)
        cluster.wait_ready()


def test_sigterm_hands_leadership_over_and_exits_0(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.start()
        cluster.wait_ready()
        leader = cluster.leader()
        before = {group: cluster.leadership(group) for group in (META_GROUP, DEFAULT_GROUP, ETCD_GROUP)}
        assert cluster.stop(leader) == [0]
        assert not (cluster.data_dir(leader) / "nebulad.pid").exists()
        for group, leadership in before.items():
            assert leadership is not None
            cluster.wait_for(lambda group=group: cluster.leadership(group) is not None, "a new leader")  # type: ignore[misc]
            after = cluster.leadership(group)
            assert after is not None
            # Handed over, not timed out: one term further, where it led at all.
            assert after[0] <= leadership[0] + 1
            assert after[1] != leader
        assert cluster.stop() == [0, 0]


def test_status_has_what_the_contract_says(tmp_path: Path) -> None:
    with Cluster(tmp_path, nodes=1) as cluster:
        cluster.start()
        cluster.wait_ready()
        status = cluster.status(0)
        assert status is not None
        assert {"name", "node_id", "cluster_id", "pid", "version", "addresses", "groups", "alarms"} <= status.keys()
        groups = {entry["group"]: entry for entry in status["groups"]}
        wanted = {"group", "keyspace", "replica", "role", "leader", "term", "committed", "applied", "revision"}
        assert all(wanted <= entry.keys() for entry in groups.values())
        assert groups[DEFAULT_GROUP]["keyspace"] == "default"
        assert groups[ETCD_GROUP]["keyspace"] == "etcd"
        assert (cluster.metric(0, "nebula_log_fsync_total") or 0) > 0
        assert cluster.admin(0, "/livez") == (200, "ok\n")


@contextmanager
def dev(directory: Path, base: int) -> Iterator[subprocess.Popen[str]]:
    with (directory / "dev.log").open("ab") as log:
        process = subprocess.Popen(
            [*NEBULAD, "dev", "--nodes", "3", "--data-dir", str(directory / "d"), "--base-port", str(base)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], READY_SECONDS)
        assert readable, (directory / "dev.log").read_text()
        endpoints = ",".join(f"127.0.0.1:{base + 100 * node}" for node in range(3))
        assert process.stdout.readline() == f"cluster ready endpoints={endpoints}\n"
        yield process
    finally:
        process.terminate()
        out, _ = process.communicate(timeout=STOP_SECONDS)
        assert (process.returncode, out) == (0, "")


@contextmanager
def revived(file: Path) -> Iterator[None]:
    """A node started by hand."""
    with (file.parent.parent / "revived.log").open("wb") as log:
        process = subprocess.Popen([*NEBULAD, "start", "--config", str(file)], stderr=log)
    try:
        yield
    finally:
        process.terminate()
        assert process.wait(STOP_SECONDS) == 0


async def test_dev_serves_revives_and_resumes(tmp_path: Path) -> None:
    ports = Ports(3)
    endpoints = [f"127.0.0.1:{ports.base + 100 * node}" for node in range(3)]
    pid_file = tmp_path / "d" / "n2" / "nebulad.pid"
    with dev(tmp_path, ports.base):
        # In a session, or a put whose link breaks right now would rightly be unknown.
        async with AsyncClient(endpoints) as client, client.session() as session:
            await session.put(b"a", b"1")
            os.kill(int(pid_file.read_text()), signal.SIGKILL)
            await session.put(b"b", b"2")
            with revived(pid_file.with_name("nebulad.toml")):
                async with AsyncClient(endpoints[1:2], timeout=READY_SECONDS) as second:
                    found = await second.get(b"b")
                    assert found is not None
                    assert found.value == b"2"
    with dev(tmp_path, ports.base):
        async with AsyncClient(endpoints) as client:
            found = await client.get(b"a")
            assert found is not None
            assert found.value == b"1"
    ports.close()

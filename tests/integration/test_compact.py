"""`nebula-cli compact` of a keyspace of several shards, where it is needed most: no node has room for anything else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nebuladb.client import Client
from nebuladb.errors import NoSpace
from tests.integration.cluster import Cluster
from tests.integration.test_keyspaces import cli

SHARDS = 4
KEYS = 40


def test_all_shards_are_compacted_while_every_node_is_read_only(tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    with Cluster(tmp_path, node_environ=lambda _: environ) as cluster:
        cluster.start()
        cluster.wait_ready()
        assert cli(cluster, "keyspace", "create", "users", "--shards", str(SHARDS)).returncode == 0
        with Client(cluster.endpoints, keyspace="users") as users:
            for number in range(KEYS):
                users.put(b"%d" % number, b"1")
                users.put(b"%d" % number, b"2")
            cluster.stop()
            room = os.statvfs(tmp_path)
            free = room.f_bavail * room.f_frsize
            # More than there is, and less than twice of it: below half of the mark nothing is taken.
            environ.update({"NEBULA_MIN_FREE_SPACE": f"{free * 3 // 2 >> 20}MiB", "NEBULA_BALLAST": "0"})
            cluster.start()
            cluster.wait_ready()
            with pytest.raises(NoSpace):
                users.put(b"k", b"v")
            done = cli(cluster, "-o", "json", "--keyspace", "users", "compact", "--keep", "1")
            assert (done.returncode, done.stderr) == (0, "")
            rows = [json.loads(line) for line in done.stdout.splitlines()]
            assert len(rows) == SHARDS
            assert all(row["compacted"] and row["compact_revision"] == row["revision"] - 1 for row in rows)
            assert sum(row["revision"] - 1 for row in rows) == 2 * KEYS
            one = cli(
                cluster, "--keyspace", "users", "compact", str(rows[0]["revision"]), "--shard", str(rows[0]["group"])
            )
            assert one.returncode == 0, one.stderr
            refused = cli(cluster, "--keyspace", "users", "compact", "1", "--shard", str(rows[0]["group"]))
            assert refused.returncode == 1
            assert f"has been compacted; the oldest is {rows[0]['revision']}" in refused.stderr
            assert users.get(b"0") is not None

"""Three nodes of ours, as `bench.face` sees a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Self

from tests.integration.cluster import Cluster

ETCD_GROUP: Final = 3
"""The one shard of the keyspace `etcd` in a new cluster (docs/architecture.md, "Keyspaces and the meta group")."""


class Ours:
    """The cluster, with its defaults. Nothing runs until `start`, and nothing after `close`."""

    name = "nebula"

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._cluster = Cluster(directory)
        self.ports = [int(endpoint.rpartition(":")[2]) for endpoint in self._cluster.endpoints]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """All nodes. Doesn't wait."""
        self._cluster.start()

    def wait_ready(self) -> None:
        """Until all serve, and the shard has a leader."""
        self._cluster.wait_ready()
        self.leader()

    def leader(self) -> int:
        """The node, from 0 on, that leads the shard."""
        return self._cluster.leader(ETCD_GROUP)

    @property
    def pids(self) -> list[int]:
        """Of the nodes."""
        return [self._cluster.pid(node) for node in self._cluster.all]

    def close(self) -> None:
        """Kill what still runs."""
        self._cluster.close()

"""What a node does for its shards once a second, of its own accord."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nebuladb.env import probe
from nebuladb.errors import NebulaError
from nebuladb.kv.command import Command, Kind
from nebuladb.node.options import NodeOptions
from nebuladb.node.retention import Compactor
from nebuladb.pb.nebula.v1 import kv_pb2

if TYPE_CHECKING:
    from nebuladb.node.node import Node

REQUEST_MS: Final = 5_000
"""Deadline of a proposal; what is still wanted then is proposed again."""


class Upkeep:
    """Of one process; `step` is called with the node's housekeeping."""

    def __init__(self, node: Node, options: NodeOptions) -> None:
        self._node = node
        self._compactor = Compactor(options.retention, node.host.now)

    def step(self) -> None:
        """Propose what is due."""
        node = self._node
        now = node.host.now
        for group, revision in self._compactor.due(node.host, node.groups, node.meta.shards, now):
            probe("history compacted by rule")
            self._propose(group, Command(Kind.COMPACT, kv_pb2.CompactRequest(revision=revision).SerializeToString()))

    def _propose(self, group: int, command: Command) -> None:
        try:
            self._node.submit(group, command, self._node.host.now + REQUEST_MS)
        except NebulaError:
            probe("upkeep refused")

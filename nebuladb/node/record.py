"""A node as the meta group keeps it: who it is, where it is reached, and how far it has come (S14)."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from typing import Final, NamedTuple

from nebuladb.errors import Corruption
from nebuladb.shard.canonical import canonical

NODE_PREFIX: Final = b"node/"
MAX_MEMBERS: Final = 64
"""Nodes of one cluster."""
MAX_NODE_NAME: Final = 64
NODE_NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NODE_NAME - 1}}}")
"""What a node may be called."""
NODE_FORMAT: Final = 1
CHANGED_FORMAT: Final = 2
"""Of a record that says more than a founding node's does."""


class NodeState(StrEnum):
    """A node's way; there is none back."""

    JOINING = "joining"
    """`claim` 0: it has not been started yet, and has no replicas."""
    MEMBER = "member"
    LEAVING = "leaving"
    REMOVED = "removed"
    """The row stays: the id is never used again, and who comes back under it is told."""


class NodeRecord(NamedTuple):
    """A node of the cluster; its addresses are where others reach it."""

    node: int
    name: str
    peer_address: str
    client_address: str = ""
    state: NodeState = NodeState.MEMBER
    learner: bool = False
    """It shall not vote until somebody promotes it."""
    claim: int = 0
    """The random number of the data directory that took this id. There is one: who has lost it must not take the id
    again, with its votes forgotten (S14)."""
    replaces: int = 0
    """Node whose place it takes."""
    version: str = ""
    """Of nebulad, as it announced."""

    @property
    def key(self) -> bytes:
        """Its row's key."""
        return node_key(self.node)

    @property
    def active(self) -> bool:
        """Whether it may have replicas that stay."""
        return self.state is NodeState.MEMBER or (self.state is NodeState.JOINING and self.claim != 0)

    def encode(self) -> bytes:
        """Canonical JSON; format 1 of a member that says nothing more than its addresses."""
        fields: dict[str, object] = {
            "client": self.client_address,
            "format": NODE_FORMAT,
            "name": self.name,
            "node": f"{self.node:016x}",
            "peer": self.peer_address,
        }
        if self[4:] != NodeRecord(0, "", "")[4:]:
            fields |= {
                "claim": f"{self.claim:016x}",
                "format": CHANGED_FORMAT,
                "learner": self.learner,
                "replaces": f"{self.replaces:016x}",
                "state": self.state.value,
                "version": self.version,
            }
        return canonical(fields)

    @classmethod
    def decode(cls, data: bytes) -> NodeRecord:
        """Raises `Corruption`."""
        try:
            fields = json.loads(data)
            if fields["format"] not in (NODE_FORMAT, CHANGED_FORMAT):
                raise Corruption(f"a node's record has format {fields['format']}; this build knows {CHANGED_FORMAT}")
            record = cls(int(fields["node"], 16), fields["name"], fields["peer"], fields["client"])
            if fields["format"] == NODE_FORMAT:
                return record
            return record._replace(
                state=NodeState(fields["state"]),
                learner=bool(fields["learner"]),
                claim=int(fields["claim"], 16),
                replaces=int(fields["replaces"], 16),
                version=str(fields["version"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise Corruption(f"a node's record can't be read: {error}") from error


def node_key(node: int) -> bytes:
    """The key of a node's row."""
    return NODE_PREFIX + b"%016x" % node

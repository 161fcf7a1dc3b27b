"""What all services of the face share: which keyspace, which shard, and the header of an answer."""

from __future__ import annotations

from typing import Any, Final

from nebuladb.api.backend import Backend
from nebuladb.errors import InvalidArgument
from nebuladb.node.meta import ETCD
from nebuladb.pb.etcd.header_pb2 import ResponseHeader
from nebuladb.shard import Descriptor

KEYSPACE_KEY: Final = "nebula-keyspace"
"""Metadata that names another keyspace than `etcd`."""


class Face:
    """One node as etcd's services see it."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def keyspace(self, context: Any) -> str:
        """The keyspace of a call."""
        for key, value in context.invocation_metadata() or ():
            if key == KEYSPACE_KEY:
                return str(value)
        return ETCD

    def shard(self, context: Any) -> Descriptor:
        """The one shard of the call's keyspace. Raises `KeyspaceNotFound`, `InvalidArgument`, `Unavailable`."""
        keyspace = self.keyspace(context)
        shards = self.backend.routing.shards(keyspace)
        if len(shards) != 1:
            raise InvalidArgument(
                f"keyspace {keyspace!r} has {len(shards)} shards; etcd's API needs one with a single line of "
                "revisions: create it with `--partitioning single`"
            )
        return shards[0]

    def header(self, group: int, revision: int) -> ResponseHeader:
        """What every answer begins with (etcd 58)."""
        replica = self.backend.node.host.replicas.get(group)
        return ResponseHeader(
            cluster_id=self.backend.cluster,
            member_id=self.backend.id,
            revision=revision,
            raft_term=replica.raft.term if replica else 0,
        )

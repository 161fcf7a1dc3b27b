"""What all services of the face share: which keyspace, which shard, and the header of an answer."""

from __future__ import annotations

from typing import Any, Final

from nebuladb.api.backend import Backend, Divided
from nebuladb.api.etcd.line import Lines
from nebuladb.api.etcd.wire import message_field, number_field, varint
from nebuladb.api.leadership import wanted
from nebuladb.errors import NebulaError
from nebuladb.node.meta import ETCD, Meta
from nebuladb.pb.etcd.header_pb2 import ResponseHeader
from nebuladb.shard import Descriptor

KEYSPACE_KEY: Final = "nebula-keyspace"
"""Metadata that names another keyspace than `etcd`."""
PROGRESS_SECONDS: Final = 600.0
"""How often a watch that wants it is told how far it has come, if nothing else has told it (etcd 40)."""
MAX_SECONDS: Final = 7.0
"""What a call waits for at most, whatever its deadline: etcd's own, 5 s and two election timeouts (etcd 30)."""


class Face:
    """One node as etcd's services see it."""

    def __init__(self, backend: Backend, progress_seconds: float = PROGRESS_SECONDS) -> None:
        self.backend = backend
        self.leadership = backend.leadership
        self.lines = Lines(backend)
        self.progress_seconds = progress_seconds
        self._replicas = backend.node.host.replicas
        self._who = number_field(b"\x08", backend.cluster) + number_field(b"\x10", backend.id) + b"\x18"
        self._known: tuple[Any, Meta | None, Descriptor | None, bool] = None, None, None, False
        """What `shard` was asked last, and what it said: calls of one connection come with the same metadata. And
        whether they want a leader."""

    def keyspace(self, context: Any) -> str:
        """The keyspace of a call."""
        return _named(context.invocation_metadata())

    def shard(self, context: Any) -> Descriptor:
        """The one shard of the call's keyspace. Raises `KeyspaceNotFound`, `Divided`, `Unavailable`, and
        `NoLeader` if there is none and the call wants one (etcd 44)."""
        metadata, meta = context.invocation_metadata(), self.backend.node.meta
        asked, then, shard, leader = self._known
        if asked is metadata and then is meta and shard is not None:
            if leader:
                self.leadership.check(shard.group)
            return shard
        keyspace = _named(metadata)
        shards = self.backend.routing.shards(keyspace)
        if len(shards) != 1:
            raise Divided(
                f"keyspace {keyspace!r} has {len(shards)} shards; etcd's API needs one with a single line of "
                "revisions: create it with `--partitioning single`"
            )
        leader = wanted(metadata)
        self._known = metadata, meta, shards[0], leader
        if leader:
            self.leadership.check(shards[0].group)
        return shards[0]

    async def settled(self, context: Any) -> Descriptor:
        """`shard` for a stream, which nobody asks again after this node's picture lagged behind. Raises likewise."""
        before = self.backend.meta
        try:
            return self.shard(context)
        except NebulaError as error:
            if not await self.backend.learned(error, before, context):
                raise
        return self.shard(context)

    def timeout(self, context: Any) -> float:
        """Seconds that a call waits for its shard."""
        remaining = context.time_remaining()
        return MAX_SECONDS if remaining is None else min(float(remaining), MAX_SECONDS)

    def header(self, group: int, revision: int) -> ResponseHeader:
        """What every answer begins with (etcd 58)."""
        replica = self._replicas.get(group)
        return ResponseHeader(
            cluster_id=self.backend.cluster,
            member_id=self.backend.id,
            revision=revision,
            raft_term=replica.raft.term if replica else 0,
        )

    def prefix(self, group: int, revision: int) -> bytes:
        """The same as the first field of a response, encoded."""
        replica = self._replicas.get(group)
        term = varint(replica.raft.term) if replica else b"\0"
        return message_field(b"\x0a", b"".join((self._who, varint(revision), b"\x20", term)))


def _named(metadata: Any) -> str:
    for key, value in metadata or ():
        if key == KEYSPACE_KEY:
            return str(value)
    return ETCD

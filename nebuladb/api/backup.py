"""``Cluster.Snapshot``: a backup of all keyspaces, from this node's replicas, while everybody goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from nebuladb import __version__
from nebuladb.api.backend import Backend, check_points
from nebuladb.api.drive import META
from nebuladb.env import probe
from nebuladb.errors import NebulaError, TooManyRequests, Unavailable
from nebuladb.ids import Generation, GroupId
from nebuladb.kv.export import Exporter
from nebuladb.kv.increment import IncrementExporter
from nebuladb.kv.store import Store
from nebuladb.node.backup import BackupWriter, Manifest, ShardPart
from nebuladb.pb.nebula.v1 import cluster_pb2 as pb
from nebuladb.shard import Descriptor, KeyspaceState

PIECE_BYTES: Final = 256 << 10
"""A message of the stream has about so much; the stream's own flow control says when the next one goes."""
MAX_BACKUPS: Final = 4
"""In progress on a node. Each holds an engine snapshot for as long as its client takes: replaced tables stay open and
on the disk, and memtables that were written out in memory."""
TRIES: Final = 100
TRY_SECONDS: Final = 0.02
"""For an instant in which no entry of the shard is half applied."""


class Views:
    """How new what is read is: as new as now, each shard in at most `timeout` seconds.

    With `leaderless`: once a shard's leader doesn't answer, this one and all later shards are as this node has them. So
    what a lost majority leaves behind is got out of the nodes that survived.
    """

    def __init__(self, backend: Backend, timeout: float, *, leaderless: bool = False) -> None:
        self._backend = backend
        self._timeout = timeout
        self._leaderless = leaderless
        self._alone = False

    async def current(self, shard: Descriptor) -> Store:
        """The shard's store. Raises as `Backend.current`."""
        backend = self._backend
        if self._leaderless and not backend.leader(shard.group):
            self._alone = True
        try:
            return await backend.current(shard, self._timeout, serializable=self._alone)
        except NebulaError as error:
            if self._alone or not (self._leaderless and error.retryable):
                raise
        probe("a read of what has no leader")
        self._alone = True
        return await backend.current(shard, self._timeout, serializable=True)


async def backup(
    backend: Backend, request: pb.SnapshotRequest, views: Views
) -> AsyncGenerator[pb.SnapshotResponse, None]:
    """The file, in pieces, without what is dropped meanwhile; to be exhausted or closed. Raises `InvalidArgument`,
    `TooManyRequests`, `Unavailable`, and as `Views.current`."""
    if backend.backups >= MAX_BACKUPS:
        raise TooManyRequests(
            f"this node sends {MAX_BACKUPS} backups already: try again when one is done, or another node"
        )
    backend.backups += 1
    try:
        async with aclosing(_pieces(backend, request, views)) as pieces:
            async for piece in pieces:
                yield piece
    finally:
        backend.backups -= 1


async def _pieces(
    backend: Backend, request: pb.SnapshotRequest, views: Views
) -> AsyncGenerator[pb.SnapshotResponse, None]:
    check_points(request.since)
    await views.current(META)
    meta = backend.meta
    ready = {name: found for name, found in sorted(meta.keyspaces.items()) if found.state is KeyspaceState.READY}
    shards = [shard for _, shard in sorted(meta.shards.items()) if shard.keyspace in ready]
    since = {point.group: point.revision for point in request.since}
    # One history has one cluster id and one life; what is of another, or isn't known to be of this one, is no base.
    builds = bool(request.since_name) and request.since_cluster == backend.cluster
    builds = builds and request.since_life == meta.life != 0
    writer = BackupWriter()
    name = request.since_name if builds else ""
    manifest = Manifest(
        backend.cluster, __version__, tuple(ready.values()), name, meta.life, meta.next_group, tuple(meta.declared)
    )
    waiting = writer.begin(manifest)
    gone: set[str] = set()
    for done, shard in enumerate(shards):
        if shard.keyspace in gone:
            continue
        after = since.get(shard.group, 0) if builds else 0
        try:
            exporter, after = await _open(backend, shard, after, views)
        except NebulaError:
            await views.current(META)
            if not _dropped(backend, shard):
                raise
            probe("backup without a dropped keyspace")
            gone.add(shard.keyspace)
            waiting += writer.gone(shard.keyspace)
            continue
        try:
            head = exporter.head
            part = ShardPart(shard, head.index, head.revision, head.floor, head.keys, head.size, after)
            waiting += writer.shard(part)
            while (chunk := await asyncio.to_thread(exporter.read)) is not None:
                waiting += writer.chunk(chunk)
                if len(waiting) >= PIECE_BYTES:
                    header = backend.header(shard.group)
                    yield pb.SnapshotResponse(header=header, data=waiting, shards_done=done, shards=len(shards))
                    waiting = b""
        finally:
            exporter.close()
    waiting += writer.end()
    yield pb.SnapshotResponse(header=backend.header(), data=waiting, shards_done=len(shards), shards=len(shards))


def _dropped(backend: Backend, shard: Descriptor) -> bool:
    """Whether the shard's keyspace is being dropped, or was: nobody takes that back, and no group's id comes again."""
    keyspace = backend.meta.keyspaces.get(shard.keyspace)
    return shard.group not in backend.meta.shards or keyspace is None or keyspace.state is KeyspaceState.DROPPING


async def _open(backend: Backend, shard: Descriptor, after: int, views: Views) -> tuple[Exporter, int]:
    """A view of a shard that is at least as new as now, above revision `after` only if that can be had."""
    for _ in range(TRIES):
        store = await views.current(shard)
        engine = backend.node.data
        group, generation = GroupId(shard.group), Generation(backend.node.host.replicas[shard.group].generation)
        try:
            if 0 < after <= store.revision and store.floor <= after:
                return IncrementExporter(engine, group, generation, after), after
            return Exporter(engine, group, generation), 0
        except Unavailable:
            probe("backup waits for a whole entry")
            await asyncio.sleep(TRY_SECONDS)
    raise Unavailable(f"shard {shard.group} is always in the middle of an entry; try again, or through another node")

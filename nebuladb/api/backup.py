"""``Cluster.Snapshot``: a backup of all keyspaces, from this node's replicas, while everybody goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from nebuladb import __version__
from nebuladb.api.backend import Backend
from nebuladb.api.drive import META
from nebuladb.env import probe
from nebuladb.errors import NebulaError, Unavailable
from nebuladb.ids import Generation, GroupId
from nebuladb.kv.export import Exporter
from nebuladb.kv.increment import IncrementExporter
from nebuladb.kv.store import Store
from nebuladb.node.backup import BackupWriter, Manifest, ShardPart
from nebuladb.pb.nebula.v1 import cluster_pb2 as pb
from nebuladb.shard import Descriptor, KeyspaceState

PIECE_BYTES: Final = 256 << 10
"""A message of the stream has about so much; the stream's own flow control says when the next one goes."""
TRIES: Final = 100
TRY_SECONDS: Final = 0.02
"""For an instant in which no entry of the shard is half applied."""


async def backup(
    backend: Backend, request: pb.SnapshotRequest, timeout: float, *, leaderless: bool = False
) -> AsyncIterator[pb.SnapshotResponse]:
    """The file, in pieces. `timeout`: seconds for each shard's state to be as new as now; `leaderless`: of what has no
    leader, as this node has it. Raises `Unavailable`."""
    await current(backend, META, timeout, leaderless=leaderless)
    meta = backend.meta
    ready = {name: found for name, found in sorted(meta.keyspaces.items()) if found.state is KeyspaceState.READY}
    shards = [shard for _, shard in sorted(meta.shards.items()) if shard.keyspace in ready]
    since = {point.group: point.revision for point in request.since}
    builds = bool(request.since_name) and request.since_cluster == backend.cluster
    writer = BackupWriter()
    name = request.since_name if builds else ""
    waiting = writer.begin(Manifest(backend.cluster, __version__, tuple(ready.values()), name))
    for done, shard in enumerate(shards):
        after = since.get(shard.group, 0) if builds else 0
        exporter, after = await _open(backend, shard, after, timeout, leaderless=leaderless)
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


async def current(backend: Backend, shard: Descriptor, timeout: float, *, leaderless: bool) -> Store:
    """The shard's store, at least as new as now, or, with `leaderless`, as it is here where there is no leader: what a
    lost majority leaves behind is got out of the nodes that survived. Raises as `Backend.current`."""
    alone = leaderless and not backend.leader(shard.group)
    try:
        return await backend.current(shard, timeout, serializable=alone)
    except NebulaError:
        # It may have been lost since; or the last one isn't known to be.
        if alone or not leaderless or backend.leader(shard.group):
            raise
        probe("a read of what has no leader")
        return await backend.current(shard, timeout, serializable=True)


async def _open(
    backend: Backend, shard: Descriptor, after: int, timeout: float, *, leaderless: bool
) -> tuple[Exporter, int]:
    """A view of a shard that is at least as new as now, above revision `after` only if that can be had."""
    for _ in range(TRIES):
        store = await current(backend, shard, timeout, leaderless=leaderless)
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

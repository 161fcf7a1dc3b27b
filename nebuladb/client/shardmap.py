"""Which shard a key lies in, as the cluster last said. Pure."""

from __future__ import annotations

import zlib
from bisect import bisect_right

from nebuladb.errors import Unavailable
from nebuladb.pb.nebula.v1 import keyspace_pb2

SLOT_SHIFT = 16
"""A key's hash slot is the upper half of its CRC-32 (``docs/formats.md``)."""


class ShardMap:
    """A keyspace's shards in order of where they start."""

    def __init__(self, info: keyspace_pb2.KeyspaceInfo) -> None:
        self._hashed = info.partitioning == keyspace_pb2.HASH
        if self._hashed:
            shards = sorted(info.shards, key=lambda shard: shard.start_slot)
            self._slots = [shard.start_slot for shard in shards]
        else:
            shards = sorted(info.shards, key=lambda shard: shard.start_key)
            self._keys = [shard.start_key for shard in shards]
        if not shards:
            raise Unavailable(f"keyspace {info.name} has no shards yet; try again shortly")
        self._groups = [shard.group for shard in shards]
        self._epochs = {shard.group: shard.epoch for shard in shards}

    def group(self, key: bytes) -> int:
        """The shard that owns `key`. The server checks it again, so an old map does no harm."""
        if self._hashed:
            place = bisect_right(self._slots, zlib.crc32(key) >> SLOT_SHIFT)
        else:
            place = bisect_right(self._keys, key)
        return self._groups[max(place - 1, 0)]

    def named(self, group: int, key: bytes) -> int:
        """The shard that a lease's id names, or where it names none, `key`'s. In a keyspace of one shard a lease may
        have any id, say one that another cluster has drawn (``etcd import``)."""
        return group if group > 0 and len(self._groups) > 1 else self.group(key)

    def epoch(self, group: int) -> int:
        """The epoch of a shard's descriptor; 0: it isn't one of these shards."""
        return self._epochs.get(group, 0)

"""From a keyspace's name and a key to the shard that owns it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable
from itertools import pairwise

from nebuladb.errors import KeyspaceNotFound, WrongShard, invariant
from nebuladb.shard.descriptor import SLOTS, Descriptor, Keyspace, Partitioning, slot_of


class RoutingTable:
    """An immutable picture of all keyspaces. Invariant: a keyspace's shards cover all of its keys, none twice."""

    def __init__(self, keyspaces: Iterable[Keyspace], descriptors: Iterable[Descriptor]) -> None:
        self.keyspaces = {keyspace.name: keyspace for keyspace in keyspaces}
        self._shards: dict[str, list[Descriptor]] = {name: [] for name in self.keyspaces}
        for descriptor in descriptors:
            self._shards.setdefault(descriptor.keyspace, []).append(descriptor)
        self._bounds: dict[str, list[bytes] | list[int]] = {}
        for name, shards in self._shards.items():
            shards.sort(key=lambda shard: (shard.slots[0], shard.start))
            hashed = name in self.keyspaces and self.keyspaces[name].partitioning is Partitioning.HASH
            self._bounds[name] = [shard.slots[0] for shard in shards] if hashed else [shard.start for shard in shards]

    def after(
        self, keyspaces: Collection[Keyspace], changed: Collection[str], descriptors: Iterable[Descriptor]
    ) -> RoutingTable:
        """The next picture, checked, with these keyspaces, of which those that have `changed` have these shards; the
        others', which were here, are shared."""
        table = RoutingTable([one for one in keyspaces if one.name in changed], descriptors)
        table.check()
        for keyspace in keyspaces:
            if (name := keyspace.name) not in changed:
                table.keyspaces[name] = keyspace
                table._shards[name], table._bounds[name] = self._shards[name], self._bounds[name]
        return table

    @property
    def descriptors(self) -> dict[int, Descriptor]:
        """The shards of all keyspaces, by group; made anew each time."""
        return {shard.group: shard for shards in self._shards.values() for shard in shards}

    def check(self) -> None:
        """Raise `InvariantViolation` unless each keyspace is covered once."""
        for name, keyspace in sorted(self.keyspaces.items()):
            shards = self._shards[name]
            invariant(bool(shards), f"keyspace {name} has no shard")
            if keyspace.partitioning is Partitioning.HASH:
                edges = [slot for shard in shards for slot in shard.slots]
                invariant(
                    edges[0] == 0 and edges[-1] == SLOTS and edges[1:-1:2] == edges[2::2],
                    f"the shards of {name} do not cover its slots once",
                )
            else:
                whole = shards[0].start == b"" and shards[-1].end == b""
                joined = all(left.end == right.start != b"" for left, right in pairwise(shards))
                invariant(whole and joined, f"the shards of {name} do not cover its keys once")

    def shards(self, keyspace: str) -> list[Descriptor]:
        """All shards of a keyspace, in key (or slot) order. Raises `KeyspaceNotFound`."""
        if keyspace not in self.keyspaces:
            raise KeyspaceNotFound(
                f"there is no keyspace {keyspace!r}; `nebula-cli keyspace list` shows those there are"
            )
        return self._shards[keyspace]

    def find(self, keyspace: str, key: bytes) -> Descriptor:
        """The shard that owns `key`. Raises `KeyspaceNotFound`."""
        shards = self.shards(keyspace)
        if len(shards) == 1:
            return shards[0]
        bounds = self._bounds[keyspace]
        hashed = bool(shards[0].slots[1])
        return shards[bisect_right(bounds, slot_of(key) if hashed else key) - 1]

    def covering(self, keyspace: str, key: bytes, range_end: bytes) -> list[Descriptor]:
        """The shards that own a part of [key, range_end), in order; `range_end` empty: the one key; b"\\0": no end."""
        if not range_end:
            return [self.find(keyspace, key)]
        shards = self.shards(keyspace)
        if shards[0].slots[1]:
            return shards
        return [
            shard
            for shard in shards
            if (range_end == b"\0" or shard.start < range_end) and (not shard.end or shard.end > key)
        ]

    def sole(self, keyspace: str, key: bytes, range_end: bytes) -> Descriptor:
        """The one shard that owns [key, range_end). Raises `WrongShard` if several do."""
        shards = self.covering(keyspace, key, range_end) or [self.find(keyspace, key)]
        if len(shards) != 1:
            raise WrongShard(
                f"the range lies in {len(shards)} shards of {keyspace!r}; ask for one shard's keys at a time"
            )
        return shards[0]

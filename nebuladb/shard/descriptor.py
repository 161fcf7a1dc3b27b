"""Shard descriptors and keyspaces, and the JSON under which the meta group keeps them (``docs/formats.md``)."""

from __future__ import annotations

import json
import zlib
from enum import StrEnum
from typing import Any, Final, NamedTuple

from nebuladb.errors import Corruption

SLOTS: Final = 65_536
"""Hash slots of a hash keyspace. Final: a key's slot never changes."""

DESCRIPTOR_VERSION: Final = 1


class Partitioning(StrEnum):
    """How a keyspace's keys are spread over shards."""

    RANGE = "range"
    HASH = "hash"
    SINGLE = "single"


def slot_of(key: bytes) -> int:
    """The hash slot of a key: the upper 16 bits of its CRC-32."""
    return zlib.crc32(key) >> 16


class Keyspace(NamedTuple):
    """A named set of keys."""

    name: str
    partitioning: Partitioning

    def encode(self) -> bytes:
        """Canonical JSON."""
        return _canonical({"format": DESCRIPTOR_VERSION, "name": self.name, "partitioning": self.partitioning.value})

    @classmethod
    def decode(cls, data: bytes) -> Keyspace:
        """Raises `Corruption` on anything but what `encode` writes."""
        fields = _parse(data)
        try:
            return cls(fields["name"], Partitioning(fields["partitioning"]))
        except (KeyError, ValueError) as error:
            raise Corruption(f"a keyspace's record can't be read: {error}") from error


class Descriptor(NamedTuple):
    """A shard: what it owns and where its replicas are. `group` is its Raft group's id and its own."""

    group: int
    keyspace: str
    epoch: int
    start: bytes
    """First key (range, single)."""
    end: bytes
    """First key after it; empty = no end."""
    slots: tuple[int, int]
    """[first, last) hash slots; (0, 0) unless the keyspace is a hash one."""
    replicas: tuple[tuple[int, int], ...]
    """(replica id, node id), ascending."""
    initial: tuple[int, int] = (1, 1)
    """(index, term) that every replica of its creation starts at (S17)."""

    def owns(self, key: bytes) -> bool:
        """Whether `key` belongs to this shard."""
        if self.slots[1]:
            return self.slots[0] <= slot_of(key) < self.slots[1]
        return key >= self.start and (not self.end or key < self.end)

    def encode(self) -> bytes:
        """Canonical JSON, keys in hex."""
        return _canonical(
            {
                "end": self.end.hex(),
                "epoch": self.epoch,
                "format": DESCRIPTOR_VERSION,
                "group": self.group,
                "initial": self.initial,
                "keyspace": self.keyspace,
                "replicas": self.replicas,
                "slots": self.slots,
                "start": self.start.hex(),
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Descriptor:
        """Raises `Corruption` on anything but what `encode` writes."""
        fields = _parse(data)
        try:
            first, last = fields["slots"]
            index, term = fields["initial"]
            return cls(
                int(fields["group"]),
                str(fields["keyspace"]),
                int(fields["epoch"]),
                bytes.fromhex(fields["start"]),
                bytes.fromhex(fields["end"]),
                (int(first), int(last)),
                tuple((int(replica), int(node)) for replica, node in fields["replicas"]),
                (int(index), int(term)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise Corruption(f"a shard descriptor can't be read: {error}") from error


def _canonical(fields: dict[str, object]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def _parse(data: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except ValueError as error:
        raise Corruption(f"a meta record is not JSON: {error}") from error
    if not isinstance(fields, dict) or fields.get("format") != DESCRIPTOR_VERSION:
        raise Corruption(f"a meta record has an unknown format; this build knows {DESCRIPTOR_VERSION}")
    return fields

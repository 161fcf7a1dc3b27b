"""The durable registry: which groups this node holds, as which replica, in which state (S17).

A node starts its groups from here, without the meta group. A row per group in the log's database, big-endian
(``docs/formats.md``, "Registry row")::

    u8 version = 1 | u8 state | u16 reserved | u32 generation | u64 replica id | u64 initial index | u64 initial term
    | u64 index of the configuration | u16 count of nodes, count x (u64 replica id, u64 node id)
    | u16 length of the configuration, the configuration
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from nebuladb.errors import Corruption
from nebuladb.raft import Configuration

REGISTRY_VERSION: Final = 1
_HEAD: Final = struct.Struct(">BBHI4Q")


class GroupState(IntEnum):
    """INSTALLING: the data is lost or damaged, and a snapshot is to replace it. TOMBSTONE: removed, for ever (S16).
    CREATING is reserved and never written, since a group is created in one batch.
    """

    NORMAL = 1
    CREATING = 2
    INSTALLING = 3
    TOMBSTONE = 4


class RegistryRow(NamedTuple):
    """One group on this node."""

    state: int
    generation: int
    replica: int
    initial: tuple[int, int]
    """(index, term) at which the group began, the same on all its first replicas."""
    configuration_index: int
    nodes: tuple[tuple[int, int], ...]
    """(replica id, node id), ascending."""
    configuration: Configuration

    def encode(self) -> bytes:
        """The row's bytes."""
        configuration = self.configuration.encode()
        head = _HEAD.pack(
            REGISTRY_VERSION,
            self.state,
            0,
            self.generation,
            self.replica,
            *self.initial,
            self.configuration_index,
        )
        flat = [number for pair in self.nodes for number in pair]
        nodes = struct.pack(f">H{len(flat)}Q", len(self.nodes), *flat)
        return head + nodes + len(configuration).to_bytes(2, "big") + configuration

    @classmethod
    def decode(cls, data: bytes) -> RegistryRow:
        """Raises `Corruption`."""
        try:
            version, state, _, generation, replica, index, term, configuration_index = _HEAD.unpack_from(data)
            if version != REGISTRY_VERSION:
                raise Corruption(f"a registry row has format {version}; this build knows {REGISTRY_VERSION}")
            position = _HEAD.size
            (count,) = struct.unpack_from(">H", data, position)
            flat = struct.unpack_from(f">{2 * count}Q", data, position + 2)
            position += 2 + 16 * count
            (length,) = struct.unpack_from(">H", data, position)
        except struct.error as error:
            raise Corruption("a registry row is cut short") from error
        if len(data) != position + 2 + length:
            raise Corruption("a registry row does not end where its configuration does")
        nodes = tuple(zip(flat[::2], flat[1::2], strict=True))
        configuration = Configuration.decode(data[position + 2 :])
        return cls(state, generation, replica, (index, term), configuration_index, nodes, configuration)


def first_row(
    replica: int, nodes: dict[int, int], initial: tuple[int, int], voters: tuple[int, ...] = (), generation: int = 1
) -> RegistryRow:
    """The row of a replica that begins where its group began, with the voters there (none named: all of `nodes`). One
    that was added later is none of them: it reads the log from there, or gets a snapshot."""
    configuration = Configuration(voters or tuple(sorted(nodes)))
    return RegistryRow(
        GroupState.NORMAL, generation, replica, initial, initial[0], tuple(sorted(nodes.items())), configuration
    )

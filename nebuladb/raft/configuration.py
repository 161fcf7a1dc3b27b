"""A group's configuration as a value (thesis, chapter 4) and its bytes.

Layout (``docs/formats.md``, "Configuration"), big-endian::

    u8 version = 1 | u8 flags (1 = leave the joint configuration by itself) | 4 x (u16 count, count x u64 replica id)

in the order voters, outgoing voters, learners, learners to be; each list ascending.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from nebuladb.errors import Corruption

CONFIGURATION_VERSION: Final = 1


class Configuration(NamedTuple):
    """Sorted tuples of replica ids. `outgoing` is empty unless the configuration is joint."""

    voters: tuple[int, ...] = ()
    outgoing: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    learners_next: tuple[int, ...] = ()
    auto_leave: bool = False

    def keeps(self, replica: int) -> bool:
        """Whether `replica` is to stay: it isn't one that only the outgoing voters have."""
        return replica in self.voters or replica in self.learners or replica in self.learners_next

    def votes_beside(self, replica: int) -> bool:
        """Whether any other replica than `replica` votes: nobody else can lead, nor send it a snapshot."""
        return any(voter != replica for voter in (*self.voters, *self.outgoing))

    def encode(self) -> bytes:
        """The bytes above."""
        parts = [struct.pack(">BB", CONFIGURATION_VERSION, int(self.auto_leave))]
        parts.extend(struct.pack(f">H{len(ids)}Q", len(ids), *ids) for ids in self[:4])
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> Configuration:
        """Raises `Corruption` on anything but what `encode` writes."""
        try:
            version, flags = struct.unpack_from(">BB", data)
            if version != CONFIGURATION_VERSION or flags > 1:
                raise Corruption(f"a configuration has format version {version}, flags {flags}")
            position, lists = 2, []
            for _ in range(4):
                (count,) = struct.unpack_from(">H", data, position)
                lists.append(struct.unpack_from(f">{count}Q", data, position + 2))
                position += 2 + 8 * count
        except struct.error as error:
            raise Corruption("a configuration is cut short") from error
        if position != len(data):
            raise Corruption("a configuration has bytes behind its end")
        voters, outgoing, learners, learners_next = lists
        return cls(voters, outgoing, learners, learners_next, bool(flags))

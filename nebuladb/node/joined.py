"""What a node that joined a cluster starts from: the founding document, its id, and where the meta group is.

One document, ``joined.json``, written before the node acts on it (``docs/formats.md``, "Joining document").
"""

from __future__ import annotations

from typing import Final, NamedTuple

from nebuladb.errors import IdentityError
from nebuladb.node.identity import Founding, open_document, seal
from nebuladb.shard import Descriptor

JOINED_FORMAT: Final = 1
JOINED_FILE: Final = "joined.json"


class Joined(NamedTuple):
    """As a member told it when the node took the id that was issued for it."""

    founding: Founding
    node: int
    meta: Descriptor
    """Of the meta group; it lists this node."""
    peers: tuple[tuple[int, str], ...]
    """(node id, peer address), until there is a picture of meta."""

    def encode(self) -> bytes:
        """The bytes of ``joined.json``."""
        return seal(
            {
                "format": JOINED_FORMAT,
                "founding": self.founding.encode().decode(),
                "meta": self.meta.encode().decode(),
                "node": f"{self.node:016x}",
                "peers": {f"{node:016x}": address for node, address in self.peers},
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Joined:
        """Raises `IdentityError`."""
        fields = open_document(data, JOINED_FILE, JOINED_FORMAT)
        try:
            peers = ((int(node, 16), str(address)) for node, address in fields["peers"].items())
            return cls(
                Founding.decode(fields["founding"].encode()),
                int(fields["node"], 16),
                Descriptor.decode(fields["meta"].encode()),
                tuple(sorted(peers)),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IdentityError(f"{JOINED_FILE} can't be read: {error}") from error

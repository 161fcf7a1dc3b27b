"""The A row: what a group's state machine knows besides its keys, in the batch of every apply (S6)."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final

from nebuladb.errors import Corruption
from nebuladb.kv.rows import FORMAT

HEAD: Final = Struct(">BQQQQQQQQIIQQI")


@dataclass(slots=True)
class State:
    """Replicated, except where the applied position lies inside an entry."""

    index: int
    term: int
    """Of the last entry that is fully applied."""
    configuration: bytes
    revision: int = 1
    """Published: the newest that a read may name (S24)."""
    floor: int = 0
    """Reads below it are refused. What was superseded at or before it counts as gone, deleted or not."""
    epoch: int = 1
    clock: int = 0
    keys: int = 0
    """Keys that exist, and the bytes of those and their values, less what a half-done command has removed."""
    size: int = 0
    leases: int = 0
    place: int = 0
    """Commands of entry index + 1 that are done already."""
    cursor: bytes = b""
    """Not empty: the next command is half done, up to this key, under the unpublished revision + 1 (S23)."""
    deleted: int = 0
    deleted_size: int = 0
    """Keys, and bytes of them and their values, that the half-done command has removed."""

    @property
    def partial(self) -> bool:
        """Whether entry `index` + 1 is half applied."""
        return self.place > 0 or bool(self.cursor)

    def copy(self) -> State:
        """One to change while this one is still what is read."""
        return State(
            self.index, self.term, self.configuration, self.revision, self.floor, self.epoch, self.clock, self.keys,
            self.size, self.leases, self.place, self.cursor, self.deleted, self.deleted_size,
        )  # fmt: skip

    def forget_half(self) -> None:
        """The rest of the entry that is half applied is lost with the log. What it did stays done; the next entry is
        another one, and is not begun."""
        self.revision += self.deleted > 0
        self.place, self.cursor, self.deleted, self.deleted_size = 0, b"", 0, 0

    def encode(self) -> bytes:
        """The row's value."""
        head = HEAD.pack(
            FORMAT, self.index, self.term, self.revision, self.floor, self.epoch, self.clock, self.keys, self.size,
            self.leases, self.place, self.deleted, self.deleted_size, len(self.cursor),
        )  # fmt: skip
        return head + self.cursor + self.configuration

    @staticmethod
    def decode(data: bytes) -> State:
        """Raises `Corruption`."""
        if len(data) < HEAD.size:
            raise Corruption("a state row is cut short")
        version, index, term, revision, floor, epoch, clock, *rest_of_head = HEAD.unpack_from(data)
        keys, size, leases, place, deleted, deleted_size, length = rest_of_head
        rest = data[HEAD.size :]
        if version != FORMAT or length > len(rest) or revision < 1 or floor > revision:
            raise Corruption(f"a state row of format {version}, revision {revision}, floor {floor}")
        return State(
            index, term, rest[length:], revision, floor, epoch, clock, keys, size, leases, place, rest[:length],
            deleted, deleted_size,
        )  # fmt: skip

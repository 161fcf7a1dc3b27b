"""A word with its checksum, as one line of a small file (S35)."""

from __future__ import annotations

from nebuladb.storage.wal import crc32c


def sealed(word: bytes) -> bytes:
    """`word`, which has no blanks; a blank, its CRC-32C in 8 hexadecimal digits, a newline."""
    return b"%b %08x\n" % (word, crc32c(word))


def unsealed(line: bytes) -> bytes | None:
    """The word of such a line; None if it is damaged."""
    word = line.partition(b" ")[0]
    return word if line == sealed(word) else None

"""Our errors for those of rocksdict, which are bare `Exception`s that differ in their words only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from nebuladb.errors import Corruption, DataDamaged, DiskFull, StoreError, WriteStalled

_BEGINNINGS: Final[tuple[tuple[str, type[StoreError]], ...]] = (
    ("Result incomplete: Write stall", WriteStalled),
    ("Corruption", Corruption),
    ("No space left on device", DiskFull),  # of what rocksdict itself writes
    ("Disk quota exceeded", DiskFull),
)
_NO_SPACE: Final = "IO error: No space left on device"
"""While a database opens, this comes behind what could not be done for it, which is an "IO error" as well."""
_NO_QUOTA: Final = ": Disk quota exceeded"
"""Which is the end of an "IO error" like any other: RocksDB doesn't take it for a lack of room."""

_UNOPENED: Final = "Invalid argument: Found options incompatible with filesystem: "
_UNOPENED_ONCE: Final = "Invalid argument: Direct I/O is not supported"
"""RocksDB takes it for a matter of its options that it can't open a database's CURRENT; and if it can at a second try,
for one of direct I/O, which we don't ask for."""


_UNSEEN: Final = "Corruption: Can't access "
"""What it makes of any table that it can't look at while a database opens; why follows, in its own words."""
_GONE: Final = ("No such file or directory", "does not exist")
"""What RocksDB says where a part of a database is missing."""
INFO_LOG: Final = "LOG"
"""RocksDB's own, in the directory of a database."""
_TAIL_BYTES: Final = 64 << 10
_BACKGROUND: Final = re.compile(rb"(?:background \w+ error: |Background IO error )(.+?)(?:, Accumulated [^\n]*)?\n")
"""How it tells what a flush or a compaction of its own met; nobody whom it could raise is there."""


def background_problem(log: Path) -> str:
    """What RocksDB's info log says last of its background work's errors; empty if it can't be told."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            found = _BACKGROUND.findall(file.read())
    except OSError:
        return ""
    known = [one for one in found if one.startswith((b"IO error", b"Corruption"))] or found
    return known[-1].decode(errors="replace") if known else ""


def classify(error: Exception) -> StoreError:
    """Our error for one of rocksdict's. Anything unknown is a plain `StoreError`: fatal (S33)."""
    text = str(error).removeprefix(_UNOPENED)
    if text.startswith(_UNOPENED_ONCE):
        return StoreError("opening a database's file CURRENT failed, and went well at once after it; look at the disk")
    if text.startswith(_UNSEEN) and not _tells_of_loss(text):
        return StoreError(text)
    for beginning, kind in _BEGINNINGS:
        if text.startswith(beginning):
            return kind(text)
    if text.startswith("IO error") and (_NO_SPACE in text or _NO_QUOTA in text):
        return DiskFull(text)
    return StoreError(text or type(error).__name__)


def is_damage(error: StoreError) -> bool:
    """Whether a database that can't be opened is damaged, or a part of it gone; else its bytes could not be had."""
    return isinstance(error, Corruption | DataDamaged) or _tells_of_loss(error.message)


def _tells_of_loss(text: str) -> bool:
    """Whether an error of RocksDB's is about a file that isn't there."""
    return any(words in text for words in _GONE)

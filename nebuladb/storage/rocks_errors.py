"""Our errors for those of rocksdict, which are bare `Exception`s that differ in their words only."""

from __future__ import annotations

from typing import Final

from nebuladb.errors import Corruption, DiskFull, StoreError, WriteStalled

_BEGINNINGS: Final[tuple[tuple[str, type[StoreError]], ...]] = (
    ("Result incomplete: Write stall", WriteStalled),
    ("Corruption", Corruption),
    ("No space left on device", DiskFull),  # of what rocksdict itself writes
)
_NO_SPACE: Final = "IO error: No space left on device"
"""While a database opens, this comes behind what could not be done for it, which is an "IO error" as well."""

_UNOPENED: Final = "Invalid argument: Found options incompatible with filesystem: "
_UNOPENED_ONCE: Final = "Invalid argument: Direct I/O is not supported"
"""RocksDB takes it for a matter of its options that it can't open a database's CURRENT; and if it can at a second try,
for one of direct I/O, which we don't ask for."""


def classify(error: Exception) -> StoreError:
    """Our error for one of rocksdict's. Anything unknown is a plain `StoreError`: fatal (S33)."""
    text = str(error).removeprefix(_UNOPENED)
    if text.startswith(_UNOPENED_ONCE):
        return StoreError("opening a database's file CURRENT failed, and went well at once after it; look at the disk")
    for beginning, kind in _BEGINNINGS:
        if text.startswith(beginning):
            return kind(text)
    if text.startswith("IO error") and _NO_SPACE in text:
        return DiskFull(text)
    return StoreError(text or type(error).__name__)

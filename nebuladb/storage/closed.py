"""The last batch of a log that was closed in order (S34).

All of it is in tables then, and its WAL is empty. If the end of MANIFEST is lost, the last of those tables are, too,
and RocksDB opens what an earlier one held: a vote may be gone, and entries that were acknowledged. So a file beside
them says how far the log went. A process that is killed leaves an older one, which says nothing wrong: numbers rise,
and then there is a WAL.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from nebuladb.env import probe
from nebuladb.ids import BatchId
from nebuladb.storage.files import exists, read, write_durably
from nebuladb.storage.sealed import sealed, unsealed

FILE: Final = "CLOSED"
_NUMBER: Final = re.compile(rb"[0-9]{1,20}")


def note(directory: Path, last: BatchId) -> None:
    """Say durably that `last` is there. Raises `OSError`."""
    write_durably(directory / FILE, sealed(b"%d" % last))


def noted(directory: Path) -> BatchId:
    """What was said last; 0 if nothing was, or that is damaged. Raises `StoreError` if that can't be told."""
    if not exists(file := directory / FILE):
        return BatchId(0)
    number = unsealed(read(file))
    if number is None or not _NUMBER.fullmatch(number):
        probe("note of a log's end damaged")
        return BatchId(0)
    return BatchId(int(number))

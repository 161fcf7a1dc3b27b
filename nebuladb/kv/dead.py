"""Keys that were deleted and compacted, as long as their rows are there: background deletion has yet to come to them.

A command passes over them and is charged nothing, since another replica may have removed them already. So nothing else
bounds them: of a million, which is what one deletion may leave, each range of a transaction would take seconds.
"""

from __future__ import annotations

from nebuladb.errors import ResultTooLarge
from nebuladb.kv.limits import MAX_TXN_ROWS, weight
from nebuladb.kv.rows import RECORD_MAIN


class Buried(Exception):
    """A command met more of them than one slice may pass over. Nothing has changed: remove `rows`, try again.

    No error of the tree: it is no answer, and never reaches a client.
    """

    def __init__(self, rows: Clearing) -> None:
        super().__init__(f"{rows.passed} rows of keys that are gone")
        self.rows = rows


class Dead:
    """Those that one read passes over. They delay it and aren't removed, so there is a bound, as for other rows."""

    __slots__ = ("_most", "passed")

    def __init__(self, most: int = MAX_TXN_ROWS) -> None:
        self._most = most
        self.passed = 0
        """As `weight` counts."""

    def passes(self, row: bytes, data: bytes, *, joined: bool) -> None:
        """A C row; `joined`: it stands right behind the last one. Raises `ResultTooLarge`."""
        self.passed += weight(row)
        if self.passed > self._most:
            raise ResultTooLarge(
                "the range holds too many keys that were deleted and compacted, and that are still being removed; try "
                "again later, divide it into smaller ranges, or use Scan"
            )


class Clearing(Dead):
    """Those that a command passes over while it is applied. Where they are too many they are removed, a stretch at a
    time, as background deletion would do it."""

    __slots__ = ("newest", "runs")

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.runs: list[list[bytes]] = []
        """Rows between which there is no other."""
        self.newest = 0
        """Revision of the newest of the deletions."""

    def passes(self, row: bytes, data: bytes, *, joined: bool) -> None:
        """As `Dead.passes`, but raises `Buried`."""
        if joined:
            self.runs[-1].append(row)
        else:
            self.runs.append([row])
        self.newest = max(self.newest, int.from_bytes(data[RECORD_MAIN]))
        self.passed += weight(row)
        if self.passed > self._most:
            raise Buried(self)

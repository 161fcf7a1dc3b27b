"""How far back a read has followed a key's history.

A key may have a thousand versions of 1.5 MiB above the one that is asked for. A read that begins anew each time when it
lacks one of them would look at all others again: half a million look-ups, and all of them in memory.
"""

from __future__ import annotations

from nebuladb.kv.rows import Record


class Trail:
    """Of one read of one store, which goes on where it ended, after a rest or when what it lacked has come."""

    __slots__ = ("_key", "_record", "_revision", "read", "steps")

    def __init__(self) -> None:
        self._key = b""
        self._revision = 0
        self._record: Record | None = None
        self.steps = self.read = 0
        """Look-ups so far, and the bytes that they read."""

    def reached(self, key: bytes, revision: int) -> Record | None:
        """The last of the key's records that was looked at and is above `revision`, without its value; None: there is
        none yet."""
        return self._record if (key, revision) == (self._key, self._revision) else None

    def leave(self, key: bytes, revision: int, record: Record | None, steps: int, read: int) -> None:
        """A look at the key as it was at `revision` has come to `record`, by so many look-ups and bytes more."""
        self.steps += steps
        self.read += read
        self._key, self._revision, self._record = key, revision, None
        if record is not None and record.main > revision:
            self._record = record._replace(value=b"")

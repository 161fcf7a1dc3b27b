"""What a group held at each revision, with leases and create revisions: the truth for answers of any shape."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from nebuladb.kv.answer import KeyValue
from nebuladb.kv.change import Change, key_value

Contents = dict[bytes, KeyValue]
"""The keys that existed at one revision."""


class Past:
    """Known from revision `since` on."""

    def __init__(self) -> None:
        self.since = 1
        self._keys: dict[bytes, tuple[list[int], list[KeyValue | None]]] = {}
        """Key → revisions at which it was changed, ascending, and what it was given there; None: it was deleted."""

    def restart(self, revision: int, contents: Iterable[KeyValue]) -> None:
        """Some of the history is gone; at `revision` this was all there was."""
        self.since = revision
        self._keys = {kv.key: ([kv.mod_revision], [kv]) for kv in contents}

    def changed(self, change: Change) -> None:
        """The next change, in order."""
        revisions, states = self._keys.setdefault(change.key, ([], []))
        revisions.append(change.revision)
        states.append(None if change.deleted else key_value(change.key, change.record))

    def of(self, revision: int, key: bytes) -> KeyValue | None:
        """`key` as it was at `revision`, from `since` on."""
        revisions, states = self._keys.get(key, ((), ()))
        place = bisect_right(revisions, revision)
        return states[place - 1] if place else None

    def at(self, revision: int, low: bytes, high: bytes) -> Contents | None:
        """The keys in [`low`, `high`) as they were at `revision`; None: nobody knows any more."""
        if revision < self.since:
            return None
        found: Contents = {}
        for key in self._keys:
            if low <= key < high and (state := self.of(revision, key)) is not None:
                found[key] = state
        return found

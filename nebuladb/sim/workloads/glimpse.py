"""Serializable reads of all there is, at any moment: they may be old, and show one published revision whole (S24)."""

from __future__ import annotations

from typing import Final

from nebuladb.errors import NebulaError, StoreError
from nebuladb.sim.actor import Actor
from nebuladb.sim.violation import require

FIRST: Final = b"\0"
BEHIND: Final = b"\xff"
"""All keys of clients lie between."""


class Glimpser(Actor):
    """Looks at a node's store as it is, also in the middle of a command; the answer names the revision."""

    def _begin(self) -> None:
        machine = self._machine()
        try:
            store = machine.store(self.group)
            revision, found = store.revision, store.range(FIRST, BEHIND).kvs
        except StoreError:
            if not machine.spoiled:
                raise
            self._failed()  # damage is never served
        except NebulaError:
            self._failed()
        else:
            wanted = self._board.changes.contents(self.group, revision, FIRST, BEHIND)
            differs = {*found} ^ {*(found if wanted is None else wanted.values())}
            require(not differs, f"{self.name} looks at revision {revision} on {machine.name}: {differs} is wrong")
            self._ok()

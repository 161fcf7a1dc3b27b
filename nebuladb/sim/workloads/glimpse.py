"""Serializable reads of all there is, at any moment: they may be old, and show one published revision whole (S24)."""

from __future__ import annotations

from typing import Final

from nebuladb.errors import NebulaError, StoreError
from nebuladb.kv.store import Store
from nebuladb.sim.actor import Actor
from nebuladb.sim.look import Then
from nebuladb.sim.machine import Machine
from nebuladb.sim.violation import require

FIRST: Final = b"\0"
BEHIND: Final = b"\xff"
"""All keys of clients lie between."""


class Glimpser(Actor):
    """Looks at a node's store as it is, also in the middle of a command; the answer names the revision. Where rows come
    from the disk, what is written meanwhile must not be missed (S22)."""

    def _begin(self) -> None:
        self._look(self._looked, linearizable=False)

    def _looked(self, store: Store, machine: Machine) -> Then:
        try:
            revision, found = store.revision, store.range(FIRST, BEHIND).kvs
        except StoreError:
            raise
        except NebulaError:
            return self._failed
        wanted = self._board.changes.contents(self.group, revision, FIRST, BEHIND)
        differs = {*found} ^ {*(found if wanted is None else wanted.values())}
        require(not differs, f"{self.name} looks at revision {revision} on {machine.name}: {differs} is wrong")
        return self._ok

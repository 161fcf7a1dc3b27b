"""Compaction, as an operator's script would ask for it."""

from __future__ import annotations

from typing import Final

from nebuladb.errors import NebulaError
from nebuladb.kv.answer import Answer
from nebuladb.kv.store import Store
from nebuladb.sim.actor import Actor
from nebuladb.sim.machine import Machine
from nebuladb.sim.workloads.requests import compact

KEPT: Final = (0, 30, 300)
"""Revisions below the newest that stay readable."""
PAUSE_MS: Final = 800


class Compactor(Actor):
    """Compacts what is older than some revisions."""

    def _begin(self) -> None:
        self._look(self._looked)

    def _looked(self, store: Store, _: Machine) -> None:
        revision = store.revision - self._rng.choice(KEPT)
        if revision <= store.floor:
            self._ok(PAUSE_MS)
            return
        self._ask(compact(revision), self._written)

    def _written(self, outcome: Answer | NebulaError) -> None:
        if self._done(outcome) is not None:
            self._ok(PAUSE_MS)

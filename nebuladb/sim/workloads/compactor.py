"""Compaction, as an operator's script would ask for it, now and then until it is physical."""

from __future__ import annotations

from functools import partial
from typing import Final

from nebuladb.errors import NebulaError, Reason, StoreError
from nebuladb.kv.answer import Answer
from nebuladb.kv.store import Store
from nebuladb.sim.actor import Actor
from nebuladb.sim.look import Then
from nebuladb.sim.machine import Machine
from nebuladb.sim.workloads.reclaimed import is_reclaimed
from nebuladb.sim.workloads.requests import compact

KEPT: Final = (0, 30, 300)
"""Revisions below the newest that stay readable."""
PAUSE_MS: Final = 800
POLL_MS: Final = 1
PHYSICAL_MS: Final = 1_000
"""How long it is waited for that what was superseded is deleted."""


class Compactor(Actor):
    """Compacts what is older than some revisions."""

    refusals = frozenset({Reason.COMPACTED})

    def _begin(self) -> None:
        self._look(self._looked)

    def _looked(self, store: Store, _: Machine) -> Then:
        revision = store.revision - self._rng.choice(KEPT)
        if revision <= store.floor:
            return partial(self._ok, PAUSE_MS)
        return partial(self._ask, compact(revision), partial(self._written, revision))

    def _written(self, revision: int, outcome: Answer | NebulaError) -> None:
        if self._done(outcome) is None:
            return
        if self._rng.random() < 0.5:
            self._wait(self._machine(), revision, self._now + PHYSICAL_MS)
        else:
            self._ok(PAUSE_MS)

    def _wait(self, machine: Machine, revision: int, deadline: int) -> None:
        """Any node says when it has deleted what the compaction superseded; `node.reclaims` asks it as often."""
        try:
            done = machine.store(self.group).reclaimed(revision)
            if done and machine.node is not None:
                is_reclaimed(machine.node, self.group, revision, machine.name)
        except StoreError:
            if not machine.spoiled:
                raise
            self._failed()
        except NebulaError:
            self._failed()
        else:
            if done:
                self._core.hit("physical compaction")
                self._ok(PAUSE_MS)
            elif self._now >= deadline:
                self._failed()
            else:
                self._core.scheduler.after(POLL_MS, self._wait, machine, revision, deadline)

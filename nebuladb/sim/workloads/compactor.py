"""Compaction, as an operator's script would ask for it, now and then until it is physical."""

from __future__ import annotations

from asyncio import Future
from functools import partial
from typing import Final

from nebuladb.errors import NebulaError, Reason, StoreError, Unavailable
from nebuladb.kv.answer import Answer
from nebuladb.kv.store import Store
from nebuladb.sim.actor import Actor
from nebuladb.sim.look import Then
from nebuladb.sim.machine import Machine
from nebuladb.sim.violation import require
from nebuladb.sim.workloads.reclaimed import is_reclaimed
from nebuladb.sim.workloads.requests import compact

KEPT: Final = (0, 30, 300)
"""Revisions below the newest that stay readable."""
PAUSE_MS: Final = 800
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
            self._wait(self._machine(), revision)
        else:
            self._ok(PAUSE_MS)

    def _wait(self, machine: Machine, revision: int) -> None:
        """Any node says when it has deleted what the compaction superseded."""
        try:
            store, process = machine.store(self.group), machine.process
            waits = process.reclaims.wait(store, revision)
        except NebulaError as error:
            if isinstance(error, StoreError) and not machine.spoiled:
                raise
            self._failed()
            return
        ended = False

        def settled() -> None:
            nonlocal ended
            if not ended:
                ended = True
                waits.cancel()
                process.loop.waits(waits, None)
                self._waited(waits, machine, store, revision)

        process.loop.waits(waits, settled)
        waits.add_done_callback(lambda _: settled())
        self._core.scheduler.after(PHYSICAL_MS, settled)

    def _waited(self, waits: Future[None], machine: Machine, store: Store, revision: int) -> None:
        """It is done, the node died, or it was waited for long enough."""
        if waits.cancelled():
            self._failed()
            return
        error = waits.exception()
        try:
            here = machine.store(self.group) is store
        except NebulaError:
            here = False
        if error is not None:
            require(isinstance(error, Unavailable), f"group {self.group} on {machine.name}: a wait ends with {error!r}")
        if error is not None or not here:
            self._failed()
            return
        assert machine.node is not None
        try:
            is_reclaimed(machine.node, self.group, revision, machine.name)
        except StoreError:
            if not machine.spoiled:
                raise
            self._failed()
        else:
            self._core.hit("physical compaction")
            self._ok(PAUSE_MS)

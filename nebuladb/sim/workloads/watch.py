"""Watches that outlive machines: every event exactly once, in order, none missing, whoever serves them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nebuladb.errors import NebulaError
from nebuladb.kv.watch import WatchHub
from nebuladb.kv.watcher import Event, EventBatch, Watcher
from nebuladb.node.applier import GroupData
from nebuladb.node.node import Node
from nebuladb.sim.actor import Actor
from nebuladb.sim.board import Board
from nebuladb.sim.core import Core
from nebuladb.sim.invariants.changes import Asked, Changes
from nebuladb.sim.machine import Machine
from nebuladb.sim.violation import require

WHOLE: Final = (b"\0", b"\xff")
RANGES: Final = (WHOLE, (b"key/", b"key0"), (b"bank/", b"bank0"), (b"ids/next", b"ids/next\0"))
OUTBOX_EVENTS: Final = (1, 8, 1_024)
TAKE_MS: Final = 60
"""The longest pause of the consumer: outboxes fill up, and the watch is fed from history."""
WRONG: Final = 0.05
MOVE: Final = 0.03
"""Share of takes after which it goes to another machine."""
FROM_NOW: Final = 0.1
"""Share of its watches that don't resume, but begin with what comes."""
FILTERED: Final = 0.2
"""Share of observers that want no puts, and as many that want no deletions."""
PREVIOUS: Final = 0.3
NO_HISTORY: Final = 1 << 62
"""The floor of a node that has left the group."""


class Observer(Actor):
    """One watch. `after` is the revision up to which it was told everything; it resumes behind it anywhere."""

    def __init__(self, core: Core, machines: Sequence[Machine], board: Board, group: int, name: str) -> None:
        super().__init__(core, machines, board, group, name)
        self.after = 1
        (low, high), draw = self._rng.choice(RANGES), self._rng.random()
        self._asked = Asked(low, high, no_put=draw < FILTERED, no_delete=FILTERED <= draw < 2 * FILTERED)
        self.gone = False
        """The group is no more."""
        self._changes: Changes = board.changes
        self._watch: tuple[Machine, Node, WatchHub, Watcher] | None = None
        self._parts: tuple[Event, ...] = ()
        """Of a revision that it wasn't told to its end."""

    def _begin(self) -> None:
        if self._watch is None or self._watch[0].node is not self._watch[1]:
            self._open()
        elif self._watch[0].paused:
            self._failed()  # the stream is silent
        else:
            self._take()

    def _open(self) -> None:
        """Resume on any machine, or begin anew."""
        machine, now = self._machine(), self._rng.random() < FROM_NOW
        self._asked = asked = self._asked._replace(prev_kv=self._rng.random() < PREVIOUS)
        try:
            hub = machine.hub(self.group)
            if self._rng.random() < WRONG:
                hub.watch(asked.high, asked.low)  # refused: it is empty
            # A single key is fed by another index than a range.
            single = asked.high == asked.low + b"\0"
            watcher = hub.watch(
                asked.low, b"" if single else asked.high, 0 if now else self.after + 1, prev_kv=asked.prev_kv,
                no_put=asked.no_put, no_delete=asked.no_delete, outbox_events=self._rng.choice(OUTBOX_EVENTS),
            )  # fmt: skip
        except NebulaError:
            self._failed()
            return
        assert machine.node is not None
        if now:
            self.after = hub.revision
        self._watch = machine, machine.node, hub, watcher
        self._parts = ()
        machine.work()
        self._ok(TAKE_MS)

    def _take(self) -> None:
        """Drain the outbox, and judge what was in it."""
        assert self._watch is not None
        machine, node, hub, watcher = self._watch
        data = node.groups.get(self.group)
        where = f"watch {self.name} on {machine.name}"
        batches = watcher.take()
        for part in batches:
            self._parts += part.events
            if part.more:
                continue
            batch, self._parts = EventBatch(part.revision, self._parts), ()
            self._no_gap(batch.revision, self.after + 1, where)
            floor = data.store.floor if data else NO_HISTORY
            self._changes.told(self.group, batch, self.after, self._asked, floor, where)
            self.after = batch.revision
        if watcher.canceled:
            self._watch = None
            self._rightly_canceled(watcher.compact_revision, data, hub, where)
            # Below the floor nothing can be had; the watch goes on from there, as a client's would.
            self.after = max(self.after, watcher.compact_revision - 1)
        else:
            if not watcher.lagging:
                self._no_gap(hub.revision, self.after, where)
                self._changes.complete(self.group, self.after, hub.revision, self._asked, where)
                self.after = max(self.after, hub.revision)
            if batches or watcher.lagging:
                machine.work()
            if self._rng.random() < MOVE:
                hub.remove(watcher)
                self._watch = None
        self._ok(TAKE_MS)

    def _rightly_canceled(self, compacted: int, data: GroupData | None, hub: WatchHub, where: str) -> None:
        """What it wants next is compacted on that node, or the group has left the node."""
        if compacted:
            right = self.after + 1 < compacted and (data is None or compacted <= data.store.floor)
        else:
            right = data is None or data.hub is not hub
        require(
            right, f"group {self.group}, {where}: after {self.after} it is canceled, as if compacted below {compacted}"
        )

    def _no_gap(self, revision: int, wanted: int, where: str) -> None:
        """Who watches everything sees each revision: only writes that a user sees step it (S29)."""
        asked = self._asked
        if (asked.low, asked.high) == WHOLE and not (asked.no_put or asked.no_delete):
            require(
                revision <= wanted, f"group {self.group}, {where}: after {wanted - 1} nothing is told up to {revision}"
            )

    def caught_up(self) -> bool:
        """Take what there is; whether that was all that was ever committed. For the end of a run."""
        if self._watch is None or self._watch[0].node is not self._watch[1]:
            self._open()
        else:
            self._take()
        return self.after >= self._changes.highest(self.group)

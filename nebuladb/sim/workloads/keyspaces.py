"""A user who makes keyspaces and drops them, through any node, while all else goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from nebuladb.errors import InvalidArgument, NebulaError
from nebuladb.ids import META_GROUP
from nebuladb.kv.answer import Answer
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.store import Store
from nebuladb.node.keyspaces import Spec, checked, create_step, drop_step
from nebuladb.node.meta import Meta
from nebuladb.shard import Partitioning
from nebuladb.sim.actor import Actor
from nebuladb.sim.board import Board
from nebuladb.sim.core import Core
from nebuladb.sim.machine import Machine
from nebuladb.sim.place import Place
from nebuladb.sim.violation import Violation, require

MAX_MADE: Final = 6
MAX_SHARDS: Final = 8
IDLE_MS: Final = 200
AT_ONCE: Final = 0.5
"""Share of keyspaces that are dropped as soon as they are ready, where any are, and for whose life a node stands still:
it hears of both in one slice."""
STILL_MS: Final = 1_000
WRONG: Final = (
    Spec("Upper", Partitioning.SINGLE),
    Spec("default", Partitioning.SINGLE),
    Spec("one", Partitioning.SINGLE, 2),
    Spec("none", Partitioning.HASH, 0),
    Spec("hashed", Partitioning.HASH, 2, (b"k",)),
    Spec("empty", Partitioning.RANGE, 1, (b"",)),
    Spec("descending", Partitioning.RANGE, 1, (b"b", b"a")),
)


class Maker(Actor):
    """Makes `Faults.keyspaces` of them, and with `Faults.churn_every` drops one and makes another now and then. It
    isn't idle before what it began is done: a step whose outcome nobody knows may come at any time.

    `made(group)` is told of each shard of a keyspace that is ready, `dropped(group)` before a drop is asked for.
    """

    def __init__(
        self,
        core: Core,
        machines: Sequence[Place],
        board: Board,
        name: str,
        made: Callable[[int], None],
        dropped: Callable[[int], None],
    ) -> None:
        super().__init__(core, machines, board, META_GROUP, name)
        self._made = made
        self._dropped = dropped
        self._wanted = core.faults.keyspaces
        self._churn = core.faults.churn_every
        self._places = machines
        self._moments = core.stream(f"client {name} moments")
        self._fleeting = False
        """Whether what is made is dropped at once."""
        self._count = 0
        self._creating: Spec | None = None
        self._dropping = ""
        self._ready: dict[str, list[int]] = {}

    @property
    def _wants(self) -> bool:
        return self._creating is not None or bool(self._dropping)

    def _machine(self) -> Machine:
        """For what is to be over soon, none that stands still."""
        machine = super()._machine()
        return super()._machine() if self._fleeting and machine.paused else machine

    def _begin(self) -> None:
        if not self._wants:
            self._wish()
        if not self._wants:
            self._pause(IDLE_MS)
        else:
            self._look(self._looked)

    def _wish(self) -> None:
        self._wrong_specs()
        if len(self._ready) < self._wanted and self._count < MAX_MADE:
            self._count += 1
            self._creating = self._spec(f"user{self._count}")
            self._fleeting = bool(self._churn) and self._moments.random() < AT_ONCE
            if self._fleeting:
                self._sleeps(self._moments.choice(self._places))
        elif self._churn and self._ready and self._rng.random() < IDLE_MS / 2 / self._churn:
            self._dropping = self._rng.choice(sorted(self._ready))
            for group in self._ready.pop(self._dropping):
                self._dropped(group)

    def _sleeps(self, place: Place) -> None:
        """Through the life of a keyspace; and where nodes die it may do so next, and read all of it again, piece by
        piece."""
        place.pause(STILL_MS, suspended=False)
        if self._core.drawn.crash_every:
            self._core.scheduler.after(STILL_MS + self._moments.randrange(STILL_MS), self._dies, place)

    def _dies(self, place: Place) -> None:
        if place.node is not None and self._core.faults is self._core.drawn:
            self._core.hit("death after a keyspace that was slept through")
            place.crash(power=self._moments.random() < 0.5)

    def _wrong_specs(self) -> None:
        """Refused before anything is asked of the cluster."""
        for spec in WRONG:
            try:
                checked(spec)
            except InvalidArgument:
                continue
            raise Violation(f"{spec} was not refused")

    def _spec(self, name: str) -> Spec:
        rng = self._rng
        partitioning = rng.choice(list(Partitioning))
        shards = 1 if partitioning is Partitioning.SINGLE else rng.randrange(1, MAX_SHARDS + 1)
        splits = tuple(b"%02d" % number for number in range(1, shards)) if partitioning is Partitioning.RANGE else ()
        return checked(Spec(name, partitioning, shards, splits))

    def _looked(self, _: Store, machine: Machine) -> None:
        """The node's picture of meta is as new as this read: what is the next step by it?"""
        assert machine.node is not None
        meta = machine.node.meta
        try:
            step = create_step(meta, self._creating) if self._creating else drop_step(meta, self._dropping)
        except NebulaError:
            self._failed()
            return
        if step is None:
            self._finished(meta)
            self._ok()
        else:
            self._ask(Command(Kind.TXN, step), self._stepped)

    def _finished(self, meta: Meta) -> None:
        if self._creating is None:
            self._core.hit("keyspace dropped")
            self._dropping = ""
            self._fleeting = False
            return
        name, count = self._creating.name, self._creating.shards
        shards = sorted(shard for shard in meta.shards.values() if shard.keyspace == name)
        require(len(shards) == count, f"keyspace {name} is ready with {len(shards)} of {count} shards")
        self._core.hit("keyspace created")
        self._creating = None
        for shard in shards:
            self._board.leavings.made(shard.group, shard.replicas)
        groups = [shard.group for shard in shards]
        if self._fleeting:
            self._dropping = name
            return
        self._ready[name] = groups
        for group in groups:
            self._made(group)

    def _stepped(self, outcome: Answer | NebulaError) -> None:
        """Whatever came of it: the next look tells."""
        if self._done(outcome) is not None:
            self._ok()

"""Which clients a group has: a mix drawn per seed (swarm testing)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from random import Random
from typing import Final

from nebuladb.sim.actor import Actor
from nebuladb.sim.board import Board
from nebuladb.sim.client import Client
from nebuladb.sim.core import Core
from nebuladb.sim.machine import Machine
from nebuladb.sim.session_client import SessionClient
from nebuladb.sim.workloads.append import Appender
from nebuladb.sim.workloads.backup import Archivist
from nebuladb.sim.workloads.bank import Teller
from nebuladb.sim.workloads.compactor import Compactor
from nebuladb.sim.workloads.explorer import Explorer
from nebuladb.sim.workloads.glimpse import Glimpser
from nebuladb.sim.workloads.lease import Leaseholder
from nebuladb.sim.workloads.operator import Operator
from nebuladb.sim.workloads.register import Contender
from nebuladb.sim.workloads.set import Adder
from nebuladb.sim.workloads.unique import Numberer
from nebuladb.sim.workloads.watch import Observer

WORKLOADS: Final[dict[str, tuple[type[Actor], int]]] = {
    "own": (Client, 2),
    "sessions": (SessionClient, 2),
    "register": (Contender, 3),
    "append": (Appender, 2),
    "bank": (Teller, 2),
    "unique": (Numberer, 2),
    "set": (Adder, 2),
    "watch": (Observer, 2),
    "lease": (Leaseholder, 8),
    "compact": (Compactor, 1),
    "any": (Explorer, 2),
    "operator": (Operator, 1),
    "backup": (Archivist, 1),
    "glimpse": (Glimpser, 1),
}
"""Its clients, and how many a group has."""
SPARED: Final = {"naps": "operator", "returns": "operator"}
"""Ambush → the workload that stands in its way, left out of the seeds that have no other faults: it hands leadership
over, and a leader gives up its lease for that."""


def draw(rng: Random) -> tuple[str, ...]:
    """Some of the workloads, at least two."""
    names = list(WORKLOADS)
    return tuple(sorted(rng.sample(names, rng.randrange(2, len(names) + 1))))


def draw_one(rng: Random) -> tuple[str, ...]:
    """For one shard of many: registers, and perhaps something else."""
    return tuple(sorted({rng.choice(("own", "register")), rng.choice(list(WORKLOADS))}))


def populate(
    core: Core,
    machines: Sequence[Machine],
    board: Board,
    group: int,
    workloads: Sequence[str],
    without: Collection[str] = (),
) -> list[Actor]:
    """The clients of `workloads` on `group`; `without` are names of clients left out (by the shrinker)."""
    actors: list[Actor] = []
    for workload in workloads:
        if workload == SPARED.get(core.drawn.ambush):
            continue
        kind, count = WORKLOADS[workload]
        for number in range(count):
            name = f"{workload}{number + 1}@{group}"
            if name not in without:
                actors.append(kind(core, machines, board, group, name))
    return actors

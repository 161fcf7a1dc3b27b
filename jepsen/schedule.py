"""Which fault comes when, drawn from a seed before the run. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from random import Random
from typing import Final, NamedTuple

from jepsen.partitions import Shape

QUIET_END: Final = 1.0
"""Seconds before the end in which nothing begins."""
FIRST: Final = (0.5, 1.5)
"""The first fault of each kind begins so soon: even short runs have some."""
LEADER_SHARE: Final = 0.6
"""How often the leader is the first victim."""
EVERYBODY_SHARE: Final = 0.25
"""How often a kill or a power cut hits all nodes."""
JUMPS: Final = (1, 3, 10)
"""Seconds by which a clock jumps ahead."""


class Change(Enum):
    """Of members."""

    REJOIN = "rejoin"
    REPLACE = "replace"
    TRANSFER = "transfer"
    INSTALL = "install"


class Timing(NamedTuple):
    """Seconds: how long a fault lasts, and how long its kind rests then."""

    length: tuple[float, float]
    rest: tuple[float, float]


TIMINGS: Final[Mapping[str, Timing]] = {
    "kill": Timing((0.2, 3.0), (3.0, 6.0)),
    "pause": Timing((0.5, 4.0), (1.0, 4.0)),
    "partition": Timing((1.0, 6.0), (1.0, 4.0)),
    "latency": Timing((2.0, 6.0), (1.0, 3.0)),
    "restart": Timing((0.2, 1.0), (6.0, 10.0)),
    "clock": Timing((0.5, 2.0), (1.0, 3.0)),
    "powercut": Timing((0.2, 3.0), (3.0, 6.0)),
    "churn": Timing((0.0, 0.0), (2.0, 4.0)),
}
"""By name of the nemesis. A rest after a kill covers a start of the node. A change of members takes the time that it
needs, and those that come meanwhile are left out."""
WHOLE: Final = frozenset({"restart", "latency"})
"""They concern all nodes."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. `order` is of all nodes, the first `count` are the victims. `leader`: who leads then comes first."""

    kind: str
    start: float
    """Seconds after the run began."""
    length: float
    order: tuple[int, ...]
    count: int
    leader: bool
    shape: Shape = Shape.HALVES
    """Of a partition."""
    delay_ms: int = 0
    loss: float = 0.0
    """Of latency: added to each message, half of it at random; share of packets that are lost."""
    jump: int = 0
    """Of a clock: seconds."""
    change: Change = Change.REJOIN
    """Of churn."""


def plan(kinds: Sequence[str], seconds: float, nodes: int, rng: Random) -> list[Fault]:
    """Faults of each kind one after another, of different kinds at the same time; by start."""
    faults = []
    for kind in kinds:
        timing = TIMINGS[kind]
        start = rng.uniform(*FIRST)
        shapes = list(Shape)
        rng.shuffle(shapes)
        changes = list(Change)
        if kind == "churn":
            rng.shuffle(changes)
        while start < seconds - QUIET_END:
            length = min(rng.uniform(*timing.length), seconds - start)
            shapes = shapes[1:] + shapes[:1]
            changes = changes[1:] + changes[:1]
            fault = _fault(kind, start, length, nodes, shapes[0], rng)
            faults.append(replace(fault, count=1, change=changes[0]) if kind == "churn" else fault)
            start += length + rng.uniform(*timing.rest)
    return sorted(faults, key=lambda fault: (fault.start, fault.kind))


def _fault(kind: str, start: float, length: float, nodes: int, shape: Shape, rng: Random) -> Fault:
    order = list(range(nodes))
    rng.shuffle(order)
    everybody = kind in WHOLE or (kind in ("kill", "powercut") and rng.random() < EVERYBODY_SHARE)
    return Fault(
        kind=kind,
        start=start,
        length=length,
        order=tuple(order),
        count=nodes if everybody else rng.randint(1, nodes - 1),
        leader=rng.random() < LEADER_SHARE,
        shape=shape,
        delay_ms=rng.choice((50, 200, 600)),
        loss=rng.choice((0.0, 0.05, 0.2)),
        jump=rng.choice(JUMPS),
    )


def victims(fault: Fault, leader: int | None, taken: frozenset[int]) -> list[int]:
    """The nodes to hurt, but those that another fault has `taken`."""
    order = list(fault.order)
    if fault.leader and leader is not None:
        order.sort(key=lambda node: node != leader)
    return [node for node in order if node not in taken][: fault.count]

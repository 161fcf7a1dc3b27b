"""Two sides in turns: rounds, medians, ratios."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final, NamedTuple, Protocol

from bench.face import requests
from bench.face.driver import Driver, Run
from bench.idle import core_seconds

PLAN: Final = 50_000
"""Calls of a plan, before it is walked again."""
WARM_SECONDS: Final = 0.2
"""Before each run, not counted: connections, caches and the processor's clock get used to it."""
SETTLE_SECONDS: Final = 0.1
"""Between two runs, so that followers of one side are not still applying while the other is measured."""

MOST_REFUSED: Final = 0.02
"""Share of a run's calls that may fail, as when a busy machine costs a leader; more is no measurement."""


class Served(Protocol):
    """A cluster."""

    name: str
    ports: list[int]

    @property
    def pids(self) -> list[int]: ...


class Cell(NamedTuple):
    """One measurement: what each side is asked for, and how."""

    name: str
    workloads: tuple[str, str]
    """Of each side."""
    in_flight: int
    rate: float = 0.0
    """Not 0: paced, so many calls a second."""


class Measured(NamedTuple):
    """A run, and what the servers paid."""

    rate: float
    p50: float
    p99: float
    """Milliseconds."""
    cpu: float
    """Microseconds of all three nodes a call."""
    client: float
    """Microseconds of the client a call."""
    share: float
    """The client's part of all the CPU time that the run took."""
    idle: float
    """Cores that the other side's nodes took meanwhile."""
    late: float
    """Paced: milliseconds by which the client was late itself, in the median."""


_rate, _p50, _p99, _cpu, _client, _share, _late = map(
    attrgetter, ("rate", "p50", "p99", "cpu", "client", "share", "late")
)


@dataclass(slots=True)
class Side:
    """One of the two."""

    name: str
    cluster: Served
    driver: Driver
    found: dict[str, list[Measured]] = field(default_factory=dict)
    """By cell."""

    def core_seconds(self) -> float:
        """Of its nodes, so far."""
        return sum(map(core_seconds, self.cluster.pids))

    def median(self, cell: Cell, of: Callable[[Measured], float]) -> float:
        """Over the rounds."""
        return statistics.median(map(of, self.found[label(cell)]))


def label(cell: Cell) -> str:
    """Its name in the last line of output."""
    return f"{cell.name}_paced" if cell.rate else f"{cell.name}_{cell.in_flight}"


def ratio(sides: Sequence[Side], cell: Cell, of: Callable[[Measured], float]) -> float:
    """The second side's to the first's: the median of the rounds' ratios."""
    pairs = zip(*(side.found[label(cell)] for side in sides), strict=True)
    return statistics.median(of(second) / of(first) for first, second in pairs)


async def fill(side: Side, keys: int) -> Run:
    """Put every key once."""
    return await side.driver.closed(requests.load(keys), 600.0, 256, calls=keys)


async def rounds(sides: Sequence[Side], cells: Sequence[Cell], count: int, seconds: float, keys: int) -> None:
    """All of it; `Side.found` is filled. Which side goes first changes with each round."""
    for number in range(count):
        for cell in cells:
            plans = [requests.plan(workload, PLAN, keys, seed=number) for workload in cell.workloads]
            order = (0, 1) if number % 2 else (1, 0)
            for position in order:
                side, other = sides[position], sides[1 - position]
                measured = await _measure(side, other, cell, plans[position], seconds)
                side.found.setdefault(label(cell), []).append(measured)
                await asyncio.sleep(SETTLE_SECONDS)
            first, second = (side.found[label(cell)][-1].rate for side in sides)
            what = f"{label(cell):18} {sides[0].name} {first:8,.0f}/s  {sides[1].name} {second:8,.0f}/s"
            print(f"round {number + 1}: {what}  ratio {second / first:.2f}", flush=True)


async def _measure(side: Side, other: Side, cell: Cell, plan: Sequence[requests.Request], seconds: float) -> Measured:
    await side.driver.closed(plan, WARM_SECONDS, cell.in_flight or 64)
    before, idle = side.core_seconds(), other.core_seconds()
    if cell.rate:
        run = await side.driver.paced(plan, seconds, cell.rate)
    else:
        run = await side.driver.closed(plan, seconds, cell.in_flight)
    if run.refused:
        what = f"{side.name}: {len(run.refused):,} of {run.calls:,} calls failed, the first with {run.refused[0]!r}"
        print(what, flush=True)
        if len(run.refused) > run.calls * MOST_REFUSED:
            raise AssertionError(what)
    used, idle = side.core_seconds() - before, other.core_seconds() - idle
    return Measured(
        run.rate,
        run.percentile(0.5),
        run.percentile(0.99),
        used / run.calls * 1e6,
        run.cpu / run.calls * 1e6,
        run.cpu / (run.cpu + used),
        idle / run.seconds,
        run.late * 1e3,
    )


def table(sides: Sequence[Side], cells: Sequence[Cell]) -> str:
    """The closed cells' medians, as Markdown."""
    first, second = sides
    one, two = first.name, second.name
    head = (
        *("", "in flight", f"{one}/s", f"{two}/s", "ratio", f"{one} p50, p99 ms", f"{two} p50, p99 ms"),
        *(f"CPU µs a call, {one}", two, "the client's, share"),
    )
    return _markdown(
        head,
        (
            (
                *(cell.name, f"{cell.in_flight:,}", f"{first.median(cell, _rate):,.0f}"),
                *(f"{second.median(cell, _rate):,.0f}", f"{ratio(sides, cell, _rate):.2f}"),
                *(_latencies(first, cell), _latencies(second, cell)),
                *(f"{first.median(cell, _cpu):.0f}", f"{second.median(cell, _cpu):.0f}"),
                f"{second.median(cell, _client):.1f}, {second.median(cell, _share):.0%}",
            )
            for cell in cells
            if not cell.rate
        ),
    )


def paced_table(sides: Sequence[Side], cells: Sequence[Cell]) -> str:
    """The paced cells' medians, as Markdown."""
    first, second = sides
    one, two = first.name, second.name
    head = (
        *("at a fixed rate", "a second", f"{one} p50, p99 ms", f"{two} p50, p99 ms", f"CPU µs a call, {one}", two),
        "the client was late itself, ms",
    )
    return _markdown(
        head,
        (
            (
                *(cell.name, f"{cell.rate:,.0f}", _latencies(first, cell), _latencies(second, cell)),
                *(f"{first.median(cell, _cpu):.0f}", f"{second.median(cell, _cpu):.0f}"),
                f"{second.median(cell, _late):.2f}",
            )
            for cell in cells
            if cell.rate
        ),
    )


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def pairs(sides: Sequence[Side], cells: Sequence[Cell]) -> str:
    """The ratios in one line, key=value."""
    found = (f"{label(cell)}={ratio(sides, cell, _rate):.2f}" for cell in cells if not cell.rate)
    costs = (f"{label(cell)}_cpu={ratio(sides, cell, _cpu):.2f}" for cell in cells if cell.in_flight >= 64)
    return " ".join((*found, *costs))


def _latencies(side: Side, cell: Cell) -> str:
    return f"{side.median(cell, _p50):.2f}, {side.median(cell, _p99):.2f}"

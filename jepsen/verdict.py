"""From counts and violations to the last line. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from nebuladb.sim.linearizability.check import Report
from nebuladb.sim.linearizability.model import Model

MIN_RATE: Final = 1
"""Operations a second that must succeed under faults: a fiftieth of what does on a busy machine."""


@dataclass(slots=True)
class Findings:
    """What a workload's checker says of a history, with what can be drawn of it."""

    report: Report[Any, Any, Any]
    model: Model[Any, Any, Any]
    violations: list[str] = field(default_factory=list)
    undecided: int = 0
    """Keys whose check exceeded the bound on its work."""


@dataclass(slots=True)
class Summary:
    """A run in numbers."""

    workload: str
    nemesis: str
    network: str
    seed: int
    seconds: float
    """Of work under faults."""
    ok: int
    """Operations that succeeded while there were faults, from the first one on."""
    failed: int
    unknown: int
    leader_changes: int
    faults: Mapping[str, int]
    """Nemesis → how often it hurt a node or the network."""
    violations: Sequence[str]
    undecided: int = 0

    @property
    def idle(self) -> list[str]:
        """Nemeses that never hurt anything."""
        return [kind for kind in self.nemesis.split(",") if kind and not self.faults.get(kind)]

    @property
    def verdict(self) -> str:
        """One word. A run in which no fault bit proves nothing, nor does one in which hardly anything succeeded."""
        if self.violations:
            return "violated"
        if self.undecided:
            return "undecided"
        if self.ok < MIN_RATE * self.seconds:
            return "too-little-done"
        if self.idle or not self.leader_changes + self.failed + self.unknown:
            return "no-fault-bit"
        return "valid"

    @property
    def exit_code(self) -> int:
        """0 only for a run that proves something and found nothing."""
        return 0 if self.verdict == "valid" else 1

    def line(self) -> str:
        """One line of key=value pairs."""
        bit = ",".join(f"{kind}:{count}" for kind, count in sorted(self.faults.items())) or "nothing"
        return (
            f"workload={self.workload} nemesis={self.nemesis} seconds={self.seconds:g} ok={self.ok} "
            f"failed={self.failed} unknown={self.unknown} leader_changes={self.leader_changes} "
            f"faults={sum(self.faults.values())} verdict={self.verdict} network={self.network} seed={self.seed} "
            f"bit={bit}"
        )


def parse(line: str) -> dict[str, str]:
    """The pairs of a last line."""
    return dict(pair.split("=", 1) for pair in line.split())

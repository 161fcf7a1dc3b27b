"""Counts of one seed, or of many."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(slots=True)
class Report:
    """Fields in the order in which they are printed."""

    seeds: int = 0
    steps: int = 0
    messages: int = 0
    """Sent, in frames."""
    delivered: int = 0
    dropped: int = 0
    duplicated: int = 0
    crashes: int = 0
    partitions: int = 0
    leader_changes: int = 0
    ops_ok: int = 0
    ops_failed: int = 0
    ops_unknown: int = 0
    leases_expired: int = 0
    locks: int = 0
    """Acquired."""
    undecided: int = 0
    """Histories that the checker's bound kept from a verdict."""
    sim_seconds: float = 0.0
    wall_seconds: float = 0.0
    violations: int = 0

    def add(self, other: Report) -> None:
        """Count what `other` counted, but for the wall's clock: seeds run side by side."""
        for field in fields(self):
            if field.name != "wall_seconds":
                setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def line(self) -> str:
        """``key=value`` pairs, as every campaign ends with (DESIGN §9)."""
        pairs = []
        for field in fields(self):
            value = getattr(self, field.name)
            pairs.append(f"{field.name}={value:.1f}" if isinstance(value, float) else f"{field.name}={value}")
        return " ".join(pairs)

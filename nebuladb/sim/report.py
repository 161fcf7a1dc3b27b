"""Counts of one seed, or of many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, fields


@dataclass(slots=True)
class Report:
    """Fields in the order in which they are printed."""

    seeds: int = 0
    steps: int = 0
    messages: int = 0
    """Sent from node to node, in frames: Raft's, and the node's own."""
    delivered: int = 0
    frames: int = 0
    """That arrived, with those messages in them, or with none: they say that their sender lives (S11)."""
    called: int = 0
    """Requests that clients sent, and answers to them."""
    calls: int = 0
    """That arrived."""
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
    cpu_seconds: float = 0.0
    """Of the processes that ran the seeds, all together."""
    ops_killed: int = 0
    """Operations of seeds in which nodes are killed, and how many of those have an unknown outcome."""
    unknown_killed: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    """That bit, by kind."""
    probes: Counter[str] = field(default_factory=Counter)
    """Rare paths of the product that were reached."""
    violations: int = 0

    def add(self, other: Report) -> None:
        """Count what `other` counted, but for the wall's clock: seeds run side by side."""
        for part in fields(self):
            if part.name != "wall_seconds":
                setattr(self, part.name, getattr(self, part.name) + getattr(other, part.name))

    def line(self) -> str:
        """``key=value`` pairs, as every campaign ends with (DESIGN §9)."""
        pairs = []
        for part in fields(self):
            value = getattr(self, part.name)
            if isinstance(value, Counter):
                value = value.total() if part.name == "faults" else len(value)
            pairs.append(f"{part.name}={value:.1f}" if isinstance(value, float) else f"{part.name}={value}")
        pairs[-1:-1] = [f"{name}={value:.1f}" for name, value in self.rates().items()]
        return " ".join(pairs)

    def rates(self) -> dict[str, float]:
        """What the bars of ``docs/testing.md`` are about, by name. Messages are counted when they are delivered: those
        between nodes, and clients' requests and answers."""
        operations = self.ops_ok + self.ops_failed + self.ops_unknown
        return {
            "messages_per_cpu_second": (self.delivered + self.calls) / max(self.cpu_seconds, 0.001),
            "nodes_messages_per_cpu_second": self.delivered / max(self.cpu_seconds, 0.001),
            "frames_per_cpu_second": self.frames / max(self.cpu_seconds, 0.001),
            "ops_per_sim_second": operations / max(self.sim_seconds, 0.001),
            "unknown_percent_under_kills": 100 * self.unknown_killed / max(self.ops_killed, 1),
        }

    def table(self, all_probes: Collection[str]) -> list[str]:
        """Lines for people: faults by kind, probes by hits, and those of `all_probes` that nobody hit."""
        lines = [f"fault {count:>8} {name}" for name, count in sorted(self.faults.items())]
        lines += [f"probe {count:>8} {name}" for name, count in sorted(self.probes.items())]
        return lines + [f"probe    never {name}" for name in sorted(set(all_probes) - self.probes.keys())]

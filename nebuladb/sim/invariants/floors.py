"""How far back histories go: as far as somebody asked them to be compacted, or a rule of some node's says (S23)."""

from __future__ import annotations

from collections import defaultdict

from nebuladb.node.retention import Rule
from nebuladb.sim.faults import MAX_DRIFT
from nebuladb.sim.violation import require


class Floors:
    """Of all groups. Nobody can tell how much time has passed for a node whose clock jumps: where any does, a rule by
    time allows all."""

    def __init__(self, *, clocks_jump: bool) -> None:
        self._clocks_jump = clocks_jump
        self._rules: dict[int, set[Rule]] = defaultdict(set)
        """Group → its rules; 0: of all for whose keyspace no node may have one."""
        self._asked: dict[int, int] = {}
        """Group → the highest revision at which somebody wanted it compacted."""
        self._newest: dict[int, list[tuple[int, int]]] = defaultdict(list)
        """Group → (revision, ms at which it was published), ascending."""
        self._floors: dict[int, int] = {}

    def rule(self, rule: Rule, group: int = 0) -> None:
        """A node compacts `group` by `rule`; 0: all that are not named otherwise."""
        self._rules[group].add(rule)

    def asked(self, group: int, revision: int) -> None:
        """Somebody wants `group` compacted; not at a revision that is to come, for that is refused."""
        if revision <= self._highest(group):
            self._asked[group] = max(revision, self._asked.get(group, 0))

    def published(self, group: int, revision: int, now: int) -> None:
        """A replica has published `revision`, ms."""
        if revision > self._highest(group):
            self._newest[group].append((revision, now))

    def seen(self, group: int, floor: int, now: int) -> None:
        """A replica has applied what made `floor` the oldest revision that can be read."""
        if floor <= self._floors.get(group, 0):
            return
        self._floors[group] = floor
        allowed = max(
            1,
            self._asked.get(group, 0),
            *(self._by(rule, group, now) for rule in self._rules.get(group, self._rules[0])),
        )
        require(
            floor <= allowed, f"group {group}: history is compacted at {floor}; {allowed} is the highest that may be"
        )

    def _by(self, rule: Rule, group: int, now: int) -> int:
        if rule.revisions:
            return self._highest(group) - rule.revisions
        if not rule.period or self._clocks_jump:
            return self._highest(group) if rule.period else 0
        then = now - rule.period / (1 + MAX_DRIFT)
        return max((revision for revision, when in self._newest[group] if when <= then), default=0)

    def _highest(self, group: int) -> int:
        newest = self._newest[group]
        return newest[-1][0] if newest else 1

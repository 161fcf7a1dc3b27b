"""Hashes of what clients can read, which two replicas have in common where they have read as far (etcd 55)."""

from __future__ import annotations

from typing import Final

from nebuladb.ids import Generation, GroupId
from nebuladb.kv.history_hash import HistoryHash
from nebuladb.kv.store import Store
from nebuladb.node.node import Node
from nebuladb.sim.violation import require

ROWS: Final = 3
"""That are looked at in one step."""


class Hashes:
    """Those of one group."""

    def __init__(self, group: int) -> None:
        self.compared = 0
        """With one that another node, or the same one at another time, had taken."""
        self._group = group
        self._taken: dict[tuple[int, int], tuple[int, str]] = {}

    def begin(self, node: Node, revision: int = 0) -> HistoryHash:
        """Of a node's own state; raises what `HistoryHash` does."""
        generation = node.host.replicas[self._group].generation
        return HistoryHash(node.data, GroupId(self._group), Generation(generation), revision)

    def took(self, work: HistoryHash, found: int, where: str) -> None:
        """`work` is done."""
        known = (work.revision, work.floor) in self._taken
        self.compared += known
        other, elsewhere = self._taken.setdefault((work.revision, work.floor), (found, where))
        require(
            other == found,
            f"group {self._group}: the history up to revision {work.revision}, compacted at {work.floor}, has hash "
            f"{found:08x} on {where}, and {other:08x} on {elsewhere}",
        )

    def take(self, node: Node, where: str) -> None:
        """The whole history, now."""
        work = self.begin(node)
        try:
            found = None
            while found is None:
                found = work.step(ROWS)
        finally:
            work.close()
        self.took(work, found, where)

    def check(self) -> None:
        """Each was compared when it was taken."""

    def holds(self, store: Store) -> None:
        """`Recovery` takes one on every node."""

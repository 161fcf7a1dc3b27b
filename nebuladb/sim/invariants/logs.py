"""Logs match, and what is committed is on a majority's disks and stays (the paper's figure 3)."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from nebuladb.ids import GroupId
from nebuladb.node.replica import Replica
from nebuladb.node.turn import Flush
from nebuladb.raft import LEADER, Configuration, Entry, LogReader, Raft
from nebuladb.sim.violation import Violation, require
from nebuladb.storage.log import LogStore
from nebuladb.storage.log_batch import LogBatch


@dataclass(slots=True)
class _DiskLog:
    """What a crash can't take from one replica: index → term; and `last`, where it ends."""

    terms: dict[int, int]
    last: int

    def append(self, first: int, terms: list[int]) -> None:
        for index in range(first, self.last + 1):
            self.terms.pop(index, None)
        for index, term in enumerate(terms, first):
            self.terms[index] = term
        self.last = first + len(terms) - 1


@dataclass(slots=True)
class _Group:
    """One group's truth. `committed`: index → (term of the entry, term in which it was seen committed first)."""

    entries: dict[tuple[int, int], tuple[bytes, int]] = field(default_factory=dict)
    """(index, term) → the entry's record, and the term of the entry before it in every log."""
    committed: dict[int, tuple[int, int]] = field(default_factory=dict)
    highest: int = 0
    disks: dict[int, _DiskLog] = field(default_factory=dict)
    configurations: set[Configuration] = field(default_factory=set)
    """All that were in force anywhere."""
    gone: dict[int, _DiskLog] = field(default_factory=dict)
    """Node id → what the disk of a removed node held when it was emptied: it may have counted for a commit that is seen
    later, where the leader's log was stalled meanwhile."""
    homes: dict[int, int] = field(default_factory=dict)
    """Replica id → node id, of all that there were."""


class Logs:
    """Of all groups and nodes, by place. By induction over `entries`, two logs that hold the same (index, term) hold
    the same entries up to there."""

    def __init__(self) -> None:
        self.nodes: dict[int, int] = {}
        """Node id → the place where it lives, or died and may come back."""
        self._groups: dict[int, _Group] = {}
        self._pending: dict[int, deque[tuple[int, int, int, list[int]]]] = {}
        self.flushed: dict[tuple[int, int], int] = {}
        """(place, group) → applied index on that node's disk, for S6."""

    def _group(self, group: int) -> _Group:
        found = self._groups.get(group)
        if found is None:
            found = self._groups[group] = _Group()
        return found

    def opened(self, place: int, log: LogStore) -> None:
        """A node starts: what it found is what the crash left."""
        self._pending[place] = deque()
        for state in self._groups.values():
            state.disks.pop(place, None)
        for group in log.groups():
            reader = log.reader(group)
            start, last = reader.start()[0], reader.last()[0]
            terms = {index: reader.term(index) for index in range(start, last + 1)}
            self._group(group).disks[place] = _DiskLog(terms, last)

    def retired(self, place: int, node: int) -> None:
        """The node was removed, and somebody empties its disk: another one will live there."""
        self.nodes.pop(node, None)
        for state in self._groups.values():
            if (disk := state.disks.pop(place, None)) is not None:
                state.gone[node] = disk
        for key in [key for key in self.flushed if key[0] == place]:
            del self.flushed[key]

    def flush(self, place: int, flush: Flush) -> None:
        """A node has flushed its data store."""
        for incoming in flush.installs:
            self.flushed[place, incoming.head.group] = incoming.head.index
        for group, index in flush.applied.items():
            # What stands in for data that is on its way is at the log's start, perhaps behind what has come.
            self.flushed[place, group] = max(self.flushed.get((place, group), 0), index)

    def written(self, place: int, position: int, batch: LogBatch, log: LogStore) -> None:
        """A batch was written, as the engine's write number `position`; durable it isn't."""
        pending = self._pending[place]
        for group, index, term in batch.created:
            pending.append((position, group, index, [term]))
        for write in batch.writes:
            if write.entries:
                pending.append((position, write.group, write.entries[0].index, [entry.term for entry in write.entries]))
                self._match(write.group, write.entries, log)
        for group, index, term in batch.cuts:
            if log.reader(group).last()[0] == index:
                pending.append((position, group, index, [term]))  # perhaps a snapshot took the place of the whole log
            self._follows(place, group, index, term, log)
            flushed = self.flushed.get((place, group), 0)
            require(index <= flushed, f"group {group}: n{place + 1} cuts its log to {index}, {flushed} is flushed (S6)")

    def _follows(self, place: int, group: GroupId, index: int, term: int, log: LogStore) -> None:
        """What a cut leaves behind (`index`, `term`) comes after that entry in every log (paper, figure 13)."""
        reader = log.reader(group)
        if reader.start()[0] == index < reader.last()[0]:
            (entry,) = reader.entries(index + 1, index + 2, 1)
            known = self._group(group).entries.get((entry.index, entry.term))
            require(
                known is None or known[1] == term,
                f"group {group} on n{place + 1}: the log is cut at (index {index}, term {term}), and the entry behind "
                "it doesn't follow on that one (S5)",
            )

    def _match(self, group: GroupId, entries: list[Entry], log: LogStore) -> None:
        known = self._group(group).entries
        reader = log.reader(group)
        first = entries[0].index
        if first + len(entries) - 1 > reader.last()[0] or first <= reader.start()[0]:
            return  # overwritten or cut by the same batch
        before = reader.term(first - 1)
        for entry in entries:
            here = (entry.record, before)
            if known.setdefault((entry.index, entry.term), here) != here:
                raise Violation(f"group {group}: two logs differ at or before (index {entry.index}, term {entry.term})")
            before = entry.term

    def durable(self, place: int, position: int) -> None:
        """A node's disk holds its first `position` writes."""
        pending = self._pending[place]
        while pending and pending[0][0] <= position:
            _, group, first, terms = pending.popleft()
            disks = self._group(group).disks
            if place not in disks:
                disks[place] = _DiskLog({}, first - 1)
            disks[place].append(first, terms)

    def on_disk(self, place: int, group: int, index: int, term: int) -> bool:
        """Whether a node's disk has this very entry, and so all before it."""
        disk = self._group(group).disks.get(place)
        return disk is not None and disk.terms.get(index) == term

    def committed(self, group: int, replica: Replica, after: int, here: Collection[Configuration]) -> int:
        """A replica, whose log is written, takes what follows `after` for committed; returns up to where. `here`: the
        configurations in force there since `after` was. A leader commits by one of them; a follower that is seen first
        may be behind the leader's, or ahead."""
        state, raft, reader = self._group(group), replica.raft, replica.log
        state.homes.update(replica.nodes)
        state.configurations.update(here)
        deciding = here if raft.role is LEADER else state.configurations
        high = raft.commit
        for index in range(max(after, reader.start()[0]) + 1, high + 1):
            term = reader.term(index)
            known = state.committed.get(index)
            if known is None:
                state.committed[index] = (term, raft.term)
                self._on_majority(group, state, index, term, deciding)
            elif known[0] != term:
                raise Violation(
                    f"group {group}: index {index} was committed with term {known[0]}, then with term {term} "
                    f"by replica {raft.replica}"
                )
        state.highest = max(state.highest, high)
        return high

    def _on_majority(
        self, group: int, state: _Group, index: int, term: int, configurations: Iterable[Configuration]
    ) -> None:
        """By one of `configurations` at least, and by both halves of a joint one (thesis §4.3)."""

        def holds(replica: int) -> bool:
            node = state.homes.get(replica, 0)
            disk = state.disks.get(self.nodes[node]) if node in self.nodes else state.gone.get(node)
            return disk is not None and disk.terms.get(index) == term

        for configuration in configurations:
            halves = [half for half in (configuration.voters, configuration.outgoing) if half]
            if all(sum(map(holds, half)) > len(half) // 2 for half in halves):
                return
        disks = sorted(place for place, disk in state.disks.items() if disk.terms.get(index) == term)
        raise Violation(
            f"group {group}: index {index} of term {term} is called committed and is on the disks of "
            f"{[f'n{place + 1}' for place in disks]} only, which is no majority of {sorted(set(configurations))}"
        )

    def elected(self, group: int, raft: Raft, reader: LogReader) -> None:
        """A replica leads `raft.term`: it must hold whatever was committed in earlier terms (leader completeness)."""
        state = self._group(group)
        index = state.highest
        while index in state.committed and state.committed[index][1] >= raft.term:
            index -= 1
        if index not in state.committed:
            return
        term, (start, last) = state.committed[index][0], (reader.start()[0], reader.last()[0])
        require(
            last >= index and (index < start or reader.term(index) == term),
            f"group {group}: replica {raft.replica} leads term {raft.term} without the committed (index {index}, "
            f"term {term})",
        )

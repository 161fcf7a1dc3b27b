"""A node's stores at work: slices of committed entries, and what goes on in the background, each a bounded stretch.

Neither waits for the disk. A slice that meets rows which aren't in memory ends there; the rows go out as a `Fetch`, and
the group's next slice runs when they have come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from nebuladb.env import probe
from nebuladb.errors import Corruption, WriteStalled
from nebuladb.kv.change import Applied
from nebuladb.kv.loans import Misses
from nebuladb.kv.store import Store
from nebuladb.kv.watch import WatchHub
from nebuladb.node.output import Slice
from nebuladb.storage.spans import Spans

TURN_ROWS: Final = 2_048
"""Rows that one turn writes or looks at, or 4 MiB, before other groups' slices wait for the next: 10 ms of puts."""
BACKGROUND_ROWS: Final = 256
"""Rows of one group's background work between two turns of the loop: 2 to 4 ms."""
BURIED_KEYS: Final = 16_384
"""After so many keys whose rows were deleted the data store is flushed, however small its memtables are: until then
each range that begins before them passes over them, some 0.5 us a key."""


@dataclass(slots=True)
class GroupData:
    """A group's store and the watches on it."""

    store: Store
    hub: WatchHub


class Fetch(NamedTuple):
    """Rows of the data store to be read in a thread (`Engine.get_many`), for `Node.fetched`."""

    group: int
    store: Store
    """Whose rows they are; by the time they come another generation may have taken its place."""
    rows: Sequence[bytes]
    background: bool


class Applier:
    """Invariant: slices of a group run in the order they were handed out, and none while rows for one are fetched."""

    def __init__(
        self, groups: dict[int, GroupData], applied: Callable[[Slice, GroupData, Applied], None], deleted: Spans
    ) -> None:
        """`applied` is told of each slice that was run, or of the part of it that was; `deleted`, where physical
        deletion has been."""
        self._groups = groups
        self._applied = applied
        self._deleted = deleted
        self.slices: deque[Slice] = deque()
        """To be run, in their order; whoever gets more from Host puts them behind these."""
        self._fetching: dict[int, Fetch] = {}
        """By group: what its next slice waits for."""
        self._held: dict[int, list[bytes]] = {}
        """By group: what its slices have borrowed, until one got on; never empty."""
        self._lent: dict[int, list[bytes]] = {}
        """By group: what its background work has borrowed."""
        self.midway: set[int] = set()
        """Groups in the middle of a command, whose last slice ended there."""
        self.paused = False
        """Whether they wait, so that all others get the loop, and others the core; whoever says so ends it, too."""
        self.stalled = False
        """The last run did nothing, for the engine refused it for now."""
        self.applied = 0
        """Slices, or parts of one, that were run."""
        self._awaited: set[int] = set()
        """Groups whose background work waits for rows."""
        self.busy: dict[int, None] = {}
        """Groups that lag or have work in their store, though it may have to wait for something: a thousand others cost
        nothing. A dict as an ordered set."""
        self._resting: deque[int] = deque()
        """Those of `busy` that have not had their stretch in this round."""
        self._again = False
        """Some that had it have more."""
        self.deleted_bytes = 0
        """Written by background deletion; whoever counts it takes it away."""
        self.buried = 0
        """Keys of which it left nothing; likewise."""
        self.fetches: list[Fetch] = []
        """To be carried out; whoever does takes them away."""
        self.damaged: list[tuple[int, Corruption]] = []
        """(group, what was met) where a store's rows are damaged; whoever sees to it takes them away."""
        self.hashed: list[tuple[int, int, bytes]] = []
        """(group, index, hash) of states that were hashed; whoever reports them takes them away."""

    def run(self) -> tuple[bool, bool]:
        """Run slices, at most about `TURN_ROWS`: (something was done or is left that can be, an engine stalled)."""
        rows, applied = 0, self.applied
        more = stalled = False
        for _ in range(len(self.slices)):
            if not self.slices:
                break  # what was applied has removed groups
            work = self.slices.popleft()
            data = self._groups.get(work.group)
            if data is None or data.store.generation != work.generation or data.store.failed:
                probe("slice for data that is gone dropped")
                continue
            if work.group in self._fetching or (self.paused and work.group in self.midway):
                self.slices.append(work)
                continue
            if rows >= TURN_ROWS:
                probe("turn's rows spent")
                self.slices.append(work)
                more = True
                continue
            try:
                done = data.store.apply(work.works)
            except WriteStalled:
                probe("data write stalled")
                self.slices.append(work)
                stalled = True
                continue
            except Corruption as error:
                self.damaged.append((work.group, error))
                more = True
                continue
            rows += done.examined
            more = True
            self.applied += 1
            if done.midway:
                self.midway.add(work.group)
            else:
                self.midway.discard(work.group)
            if done.wanted or work.group in self._held:
                self._settle(work.group, data.store, done)
            self._applied(work, data, done)
            if done.background:  # of a watch that lags its hub tells us
                self.busy[work.group] = None
        self.stalled = stalled and applied == self.applied
        return more, stalled

    @property
    def waits(self) -> bool:
        """Whether a slice waits for its turn, and for nothing else."""
        held = self.midway if self.paused else ()
        return any(work.group not in self._fetching and work.group not in held for work in self.slices)

    def fetched(self, fetch: Fetch, values: Sequence[bytes | None]) -> None:
        """The rows of one of `fetches` have come."""
        fetch.store.supply(fetch.rows, values)
        if fetch.background:
            self._awaited.discard(fetch.group)
        elif self._fetching.get(fetch.group) is fetch:
            del self._fetching[fetch.group]

    def look_at(self, group: int) -> None:
        """The group may have got background work otherwise than by a slice: it was started, or a watch on it lags."""
        self.busy[group] = None

    def forget(self, group: int) -> None:
        """The group's store is closed, and what was handed out for it is void. A store that takes its place starts from
        its own index, and may have the same generation, if it stands in for one that is damaged (S5)."""
        self.slices = deque(work for work in self.slices if work.group != group)
        self.busy.pop(group, None)
        self._fetching.pop(group, None)
        self.midway.discard(group)
        self._held.pop(group, None)
        self._lent.pop(group, None)
        self._awaited.discard(group)

    def background(self) -> bool:
        """One group's lagging watches, physical deletion and hash, a stretch of each; True if anything can go on now.

        The groups that have such work take turns.
        """
        if not self._resting:
            self._resting.extend(self.busy)
            self._again = False
        if (found := self._next_busy()) is None:
            return self._again
        group, data = found
        try:
            self._again |= data.hub.catch_up(BACKGROUND_ROWS)
            self._again |= data.store.background(BACKGROUND_ROWS)
            self.deleted_bytes += data.store.deleted_bytes
            data.store.deleted_bytes = 0
            deletion = data.store.deletion
            self.buried += deletion.buried
            deletion.buried = 0
            for span in deletion.deleted.take():
                self._deleted.add(*span)
            self.hashed += [(group, *hashed) for hashed in data.store.hashed]
            data.store.hashed.clear()
            self._return(group, data.store)
        except WriteStalled:
            probe("background write stalled")
        except Corruption as error:
            self.damaged.append((group, error))
        except Misses as misses:
            probe("background work waits for rows")
            self._awaited.add(group)
            self._lent.setdefault(group, []).extend(misses.rows)
            self._ask(Fetch(group, data.store, misses.rows, background=True))
        return self._again or bool(self._resting)

    def _next_busy(self) -> tuple[int, GroupData] | None:
        """Whose turn it is; None: the round is over."""
        while self._resting:
            group = self._resting.popleft()
            data = self._groups.get(group)
            if data is None or data.store.failed or not (data.hub.lagging or data.store.busy):
                self.busy.pop(group, None)
            elif group not in self._awaited:
                return group, data
        return None

    def _settle(self, group: int, store: Store, applied: Applied) -> None:
        """Give back what a slice has used, which is certain only if it got on, and ask for what it wants."""
        held = self._held.get(group)
        if held and (applied.size or not applied.wanted):
            store.give_back(held)
            del self._held[group]
        if applied.wanted:
            probe("slice waits for rows")
            self._held.setdefault(group, []).extend(applied.wanted)
            self._fetching[group] = fetch = Fetch(group, store, applied.wanted, background=False)
            self._ask(fetch)

    def _ask(self, fetch: Fetch) -> None:
        fetch.store.borrow(fetch.rows)
        self.fetches.append(fetch)

    def _return(self, group: int, store: Store) -> None:
        rows = self._lent.pop(group, None)
        if rows:
            store.give_back(rows)

"""Who has an entry under a name, in the order in which they came, kept up to date by one watch while anybody waits.

etcd's client reads all earlier entries again whenever the one before its own has gone: with n that wait, each release
costs n. Here a release costs the same however many wait: the watch tells of entries in the order in which they are
made, so who comes next is known without a look, and nobody else is woken.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from enum import Enum
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

from nebuladb.api.backend import Backend
from nebuladb.env import probe
from nebuladb.errors import ResultTooLarge
from nebuladb.kv.answer import KeyValue
from nebuladb.kv.limits import MAX_RESULT_ROWS
from nebuladb.kv.watch import WatchHub
from nebuladb.kv.watcher import Event
from nebuladb.shard import Descriptor

MAX_ENTRIES: Final = MAX_RESULT_ROWS
"""Of one name; waiting under a name that has more is refused."""
FEW_ENTRIES: Final = 64
FEW_BYTES: Final = 64 << 10
"""So many are read without waiting for long reads: some 100 us, unless a single one is larger."""


def entries(name: bytes) -> tuple[bytes, bytes]:
    """The range of the keys under `name`: from its first to the end, which is not in it."""
    return name + b"/", name + b"0"  # "0" follows "/"


class Standing(NamedTuple):
    """What there is under a name."""

    revision: int
    entries: list[tuple[int, bytes]]
    """Create revision, and the key behind the name: 20,000 of a name of 16 KiB would be 320 MiB."""


async def standing(backend: Backend, shard: Descriptor, name: bytes) -> Standing:
    """The entries under a name as they are now. Raises as `earliest`."""
    found: list[tuple[int, bytes]] = []
    behind = len(name)

    def take(some: Sequence[KeyValue]) -> None:
        found.extend((kv.create_revision, kv.key[behind:]) for kv in some)

    return Standing(await _read(backend, shard, name, take), found)


async def earliest(backend: Backend, shard: Descriptor, name: bytes) -> tuple[int, KeyValue | None]:
    """A revision that is published, and the first entry under a name then, without its value. Nothing is kept of the
    others, whose keys may be large: each call that looks for the leader would have all of them.

    Raises `ResultTooLarge` for more than `MAX_ENTRIES`, `TooManyRequests`, or `Unavailable`.
    """
    first: KeyValue | None = None

    def take(some: Sequence[KeyValue]) -> None:
        nonlocal first
        first = min(some if first is None else (first, *some), key=lambda kv: kv.create_revision, default=None)

    return await _read(backend, shard, name, take), first


async def _read(backend: Backend, shard: Descriptor, name: bytes, take: Callable[[Sequence[KeyValue]], None]) -> int:
    """Let `take` have the entries under a name, as they are at the revision that this gives. Few small ones are read in
    one go; of others, whose values go by as well, a stretch at a time, as `Scan` does it, or calls that look at once
    would keep the loop for all of them."""
    cursor, end = entries(name)
    with ExitStack() as held:
        async with backend.glances:  # pinned in it: who waits holds nothing
            pin = held.enter_context(closing(backend.pump.store(shard.group).pin()))
            page = pin.scan(cursor, end, keys_only=True, limit=FEW_ENTRIES, max_rows=FEW_ENTRIES, max_read=FEW_BYTES)
        count = len(page.kvs)
        take(page.kvs)
        while page.cursor:
            probe("etcd: entries are read in stretches")
            async with backend.pace:
                page = pin.scan(page.cursor, end, keys_only=True)
            count += len(page.kvs)
            take(page.kvs)
            if count > MAX_ENTRIES:
                raise ResultTooLarge(f"there are more than {MAX_ENTRIES} entries under this name")
        return pin.revision


class Place(Enum):
    """Of one entry."""

    FIRST = "first"
    """No entry that was made earlier is left. It never changes but to GONE: later ones are made later."""
    BEHIND = "behind"
    GONE = "gone"
    UNKNOWN = "unknown"
    """The line can't be kept up to date any more: begin a new one."""


class Line:
    """The entries under one name. Invariant: their create revisions ascend."""

    def __init__(
        self,
        hub: WatchHub,
        name: bytes,
        found: Standing,
        work: Callable[[], None],
    ) -> None:
        """`found` is of a revision that is published. `work` lets a watch that lags go on."""
        self.users = 0
        self._behind = len(name)
        """Where what a key has of its own begins."""
        self._entries: OrderedDict[bytes, int] = OrderedDict((key, create) for create, key in sorted(found.entries))
        """By key, its create revision. Ordered, so that the first is found without passing over those that went."""
        self._waiting: dict[bytes, dict[asyncio.Future[None], None]] = {}
        """Those who wait for news of an entry."""
        self._hub = hub
        self._work = work
        self._due = False
        self._loop = asyncio.get_running_loop()
        self._watcher = hub.watch(*entries(name), found.revision + 1, on_ready=self._ready)
        self._part: list[Event] = []
        """Of a revision that isn't told to its end: by half of it the first may be one who is gone, too."""
        self._broken = False

    @property
    def broken(self) -> bool:
        """Whether places are UNKNOWN for good."""
        return self._broken

    @property
    def revision(self) -> int:
        """The one that the entries are of."""
        return self._watcher.cursor - 1 if self._watcher.lagging else self._hub.revision

    def place(self, key: bytes, create: int) -> Place:
        """Where the entry `key` is that was made at `create`, which this node has applied."""
        self._take()
        if self._broken:
            return Place.UNKNOWN
        mine = self._entries.get(key[self._behind :])
        if mine == create:
            return Place.FIRST if self._first() >= create else Place.BEHIND
        # What it has not been told yet comes.
        return Place.GONE if mine is not None or self.revision >= create else Place.BEHIND

    async def news(self, key: bytes) -> None:
        """Until the place of `key` may be another."""
        key = key[self._behind :]
        future: asyncio.Future[None] = self._loop.create_future()
        waiting = self._waiting.setdefault(key, {})
        waiting[future] = None
        try:
            await future
        finally:
            del waiting[future]
            if not waiting and self._waiting.get(key) is waiting:
                del self._waiting[key]

    def close(self) -> None:
        """Watch no more. Idempotent."""
        self._broken = True
        self._hub.remove(self._watcher)
        self._watcher.on_ready = None  # it leads back here: all entries' names would be left to the collector

    def _first(self) -> int:
        """The create revision of the first entry."""
        return next(iter(self._entries.values()))

    def _ready(self) -> None:
        """Called within the hub, which must not be called back there."""
        if not self._due:
            self._due = True
            self._loop.call_soon(self._take)

    def _take(self) -> None:
        """What the watch has been told since."""
        self._due = False
        if self._broken:
            return
        canceled = self._watcher.canceled
        for batch in self._watcher.take():
            self._part += batch.events
            if not batch.more:
                for event in self._part:
                    self._tell(event)
                self._part.clear()
        if self._watcher.lagging:
            self._work()
        if canceled or len(self._entries) > MAX_ENTRIES:
            probe("etcd: a line begins anew")
            self.close()
            for key in self._waiting:
                self._wake(key)
            return
        first = 0
        for key, create in self._entries.items():
            first = first or create
            if create > first:
                break
            self._wake(key)

    def _tell(self, event: Event) -> None:
        key, create = event.kv.key[self._behind :], 0 if event.deleted else event.kv.create_revision
        if self._entries.get(key, 0) == create:
            return  # it was written again
        self._entries.pop(key, None)
        if create:
            self._entries[key] = create
        self._wake(key)

    def _wake(self, key: bytes) -> None:
        for future in self._waiting.get(key, ()):
            if not future.done():
                future.set_result(None)


class Lines:
    """Those of one node: one a name under which somebody waits here, hence bounded as calls are."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lines: dict[tuple[int, bytes], Line] = {}
        self._readings: WeakValueDictionary[tuple[int, bytes], asyncio.Lock] = WeakValueDictionary()

    def __len__(self) -> int:
        """Calls that wait."""
        return sum(line.users for line in self._lines.values())

    def join(self, shard: Descriptor, name: bytes) -> Line | None:
        """The line of a name, to be given back with `leave`; None if there is none."""
        line = self._lines.get((shard.group, name))
        if line is None or line.broken:
            return None
        line.users += 1
        return line

    def reading(self, shard: Descriptor, name: bytes) -> asyncio.Lock:
        """To be held while a new one is made: a thousand that wait would else all read what one of them has to."""
        return self._readings.setdefault((shard.group, name), asyncio.Lock())

    def begin(self, shard: Descriptor, name: bytes, standing: Standing) -> Line:
        """As `join`, a new one if there is none still, of the entries that were found. Raises `TooManyRequests`."""
        line = self.join(shard, name)
        if line is None:
            hub, work = self._backend.hub(shard), self._backend.pump.work
            line = Line(hub, name, standing, work)
            self._lines[shard.group, name] = line
            line.users += 1
        return line

    def leave(self, shard: Descriptor, name: bytes, line: Line) -> None:
        """Whoever joined doesn't wait any more."""
        line.users -= 1
        if not line.users:
            line.close()
            if self._lines.get((shard.group, name)) is line:
                del self._lines[shard.group, name]

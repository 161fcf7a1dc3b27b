"""A client's read of a node's store, which waits for rows that are on the disk only (``node.looks``)."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from nebuladb.errors import NebulaError, StoreError, TooManyRequests, Unavailable
from nebuladb.kv.loans import Misses
from nebuladb.kv.store import Store
from nebuladb.node import looks
from nebuladb.sim.core import Core
from nebuladb.sim.machine import Machine

Then = Callable[[], None]
"""What the client does when it has its answer."""


class Look:
    """`read` is called with the group's store until it meets no more misses; what it does before the last is to be of
    no consequence. Between, the node goes on: what it writes, the loans must have. What `read` returns is the answer,
    handed to `answer`; None if nobody waits for one. `failed` is called if nothing comes of it, once."""

    def __init__(
        self,
        core: Core,
        rng: Random,
        machine: Machine,
        group: int,
        read: Callable[[Store], Then | None],
        answer: Callable[[Then], None],
        failed: Callable[[], None],
    ) -> None:
        """Raises as `Machine.store`."""
        self._core = core
        self._rng = rng
        self._machine = machine
        self._read = read
        self._answer = answer
        self._failed = failed
        self._group = group
        self._store = machine.store(group)
        self._process = machine.process
        self._missed: set[bytes] = set()
        """What it met on the disk only. It doesn't find that in memory the next time: it must take what was fetched."""
        self._work = self._process.looks.read(group, self._store, self._reads)

    def begin(self) -> None:
        """Read, now or when the rows are here."""
        try:
            waits = self._work.send(None)
        except StopIteration as end:
            self._process.loop.waits(self, None)
            _, then = end.value
            if then is not None:
                self._answer(then)
        except NebulaError as error:
            self._process.loop.waits(self, None)
            self._give_up(error)
        else:
            self._process.loop.waits(self, self._broken)
            waits.add_done_callback(lambda _: self.begin())

    def _reads(self, store: Store) -> Then | None:
        """It may be called again."""
        disk = self._machine.disk
        disk.chill(self._rng, self._missed)
        try:
            return self._read(store)
        except Misses as misses:
            self._core.hit("cold read")
            self._missed.update(misses.rows)
            raise
        finally:
            disk.warm()

    def _broken(self) -> None:
        """The node died."""
        self._work.close()
        self._failed()

    def _give_up(self, error: NebulaError) -> None:
        """Raise `error` unless it may be: damage is never served, and a store may be replaced."""
        if isinstance(error, StoreError):
            right = self._machine.spoiled
        elif isinstance(error, TooManyRequests):
            right = self._process.looks.waiting >= looks.MAX_LOOKS
        else:
            right = isinstance(error, Unavailable) and self._replaced()
        if not right:
            raise error
        self._failed()

    def _replaced(self) -> bool:
        try:
            return self._machine.store(self._group) is not self._store
        except NebulaError:
            return True  # the node stands still, or gives the group up

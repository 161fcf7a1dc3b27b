"""A lock: a key that only one can create, under a lease."""

from __future__ import annotations

import asyncio
import math
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Final, NamedTuple, Self, cast

from nebuladb.client.lease import LeaseKeeper
from nebuladb.client.types import KeyValue, RangeResult
from nebuladb.errors import (
    Compacted,
    DeadlineExceeded,
    InvalidArgument,
    LeaseNotFound,
    NebulaError,
    UnknownOutcome,
)

if TYPE_CHECKING:
    from nebuladb.client.aio import AsyncClient

PAUSE: Final = 0.1
"""Seconds before a write is tried again of which nobody knows what became."""

SHOWN: Final = 200
"""Characters of another holder's value in an error; perhaps the name is no lock's, and the value has a MiB."""


class _Other(NamedTuple):
    """Somebody else has the lock."""

    revision: int
    """It was so at this one."""
    row: KeyValue


class Lock:
    """One holder at a time: ``async with client.lock(b"report") as lock:``.

    Whoever creates the key `name` has the lock, and a lease that is renewed in the background keeps it. Those who wait
    watch the key; when it goes, the first of them to come has it next: there is no queue. At the end of the block, or
    of its lease where the holder is gone, the key goes.

    No lock can stop a holder that was suspended for longer than its TTL and doesn't know yet. So ask `check` before
    each step, and let what the lock protects refuse a `token` that is lower than one it has seen. Writes to keys of the
    lock's shard are safe under the condition ``when("create", lock.name, "=", lock.token)``.
    """

    def __init__(self, client: AsyncClient, name: bytes, ttl: int, value: bytes, timeout: float) -> None:
        """See `AsyncClient.lock`."""
        if not timeout >= 0:
            raise InvalidArgument(f"timeout is {timeout}; give seconds, 0 or more (0: only if nobody has it)")
        self.name = name
        self.token = 0
        """The revision at which it was taken last, which rises with every holder."""
        self._client = client
        self._ttl = ttl
        self._value = value
        self._timeout = timeout
        self._keeper: LeaseKeeper | None = None
        self._taken = self._entered = False
        self._leaving = asyncio.Lock()

    @property
    def held(self) -> bool:
        """Whether it is certainly ours now, so long as nobody else deletes its key."""
        return self._taken and self._keeper is not None and self._keeper.held

    def check(self) -> None:
        """Raise `LeaseNotFound` unless it is held."""
        if not self.held:
            raise LeaseNotFound(f"the lock {self.name!r} is not held, or was lost; stop what was done under it")

    async def lost(self) -> None:
        """Wait until it is held no more: lost, or left. At once, if it isn't held."""
        if self._taken and self._keeper is not None:
            await self._keeper.lost.wait()

    async def __aenter__(self) -> Self:
        if self._entered:
            raise InvalidArgument(f"the lock {self.name!r} is held or waited for by this object; make another one")
        self._entered = True
        try:
            await self._acquire()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._leave()
        finally:
            self._entered = False

    async def _acquire(self) -> None:
        transport = self._client._transport
        due = transport.clock() + self._timeout
        while not self.held:
            try:
                other = await self._try()
            except UnknownOutcome:
                # The next try shows what became of this one: the key has our lease, or not.
                if transport.clock() >= due:
                    raise
                await transport.sleep(PAUSE)
                continue
            if other is not None:
                await self._wait(other, due - transport.clock())

    async def _try(self) -> _Other | None:
        """Who else has it; None if we do, or may try again."""
        if self._keeper is not None and not self._keeper.held:
            await self._leave()  # we were cut off, and whatever the lease held may be gone
        txn = self._client.txn().when("version", self.name, "=", 0)
        try:
            keeper = self._keeper or await self._begin()
            txn.put(self.name, self._value, lease=keeper.lease).get(self.name).get(self.name, branch="else")
            result = await txn.commit()
        except LeaseNotFound:
            await self._leave()
            return None
        (row,) = cast(RangeResult, result.results[-1]).kvs
        if row.lease != keeper.lease:
            return _Other(result.revision, row)
        self.token, self._taken = row.create_revision, True
        return None

    async def _begin(self) -> LeaseKeeper:
        granted = await self._client.grant_lease(self._ttl, key=self.name)
        keeper = self._keeper = self._client.keep_alive(granted.id)
        return await keeper.__aenter__()

    async def _wait(self, other: _Other, seconds: float) -> None:
        """Until its key is gone."""
        events = self._client.watch(self.name, start_revision=other.revision + 1, no_put=True)
        try:
            async with asyncio.timeout(None if seconds == math.inf else max(seconds, 0.0)), aclosing(events):
                with suppress(Compacted):  # much has happened since; the next try shows what
                    await anext(events)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the lock {self.name!r} is held by another, whose value is {other.row.value!r:.{SHOWN}}; try again "
                "later, or wait for longer"
            ) from None

    async def _leave(self) -> None:
        """End the lease, and with it whatever it holds. If that fails, it ends by itself."""
        async with self._leaving:  # whoever comes second waits: the client may be closed behind it
            keeper, self._keeper, self._taken = self._keeper, None, False
            if keeper is not None:
                keeper.lost.set()  # for whoever waits for it
                try:
                    await keeper.__aexit__()
                finally:
                    with suppress(NebulaError):
                        await self._revoke(keeper.lease)

    async def _revoke(self, lease: int) -> None:
        try:
            await self._client.revoke_lease(lease)
        except UnknownOutcome:
            await self._client.revoke_lease(lease)  # else the others may have to wait for the whole TTL

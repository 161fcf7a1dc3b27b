"""A lease that is kept alive in the background."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final, Self

from nebuladb.client import methods
from nebuladb.client.requests import built
from nebuladb.client.transport import Transport
from nebuladb.errors import KeyspaceNotFound, LeaseNotFound, NebulaError, WrongShard
from nebuladb.pb.nebula.v1 import lease_pb2

RENEWALS: Final = 3
"""Renewals a TTL: one may be lost, and there is time for another."""
GONE: Final = (LeaseNotFound, KeyspaceNotFound, WrongShard)
"""Answers after which there is no such lease, nor ever will be. A node says that there is no such keyspace or shard
only when it has asked the meta group; and a keyspace that is made anew never has the shard that a lease's id names."""


class LeaseKeeper:
    """Renews a lease as long as its ``async with`` block runs. It doesn't revoke it in the end.

    Whoever acts under the lease asks `held` or `check` before each step. `lost` is set when the cluster says that the
    lease is gone, and also when no renewal has succeeded for a whole TTL, counted from when the last one was *sent*:
    so a holder that was cut off knows it no later than the others do.
    """

    def __init__(self, transport: Transport, keyspace: str, lease: int) -> None:
        self.lease = lease
        self.ttl = 0
        """Seconds, as the last renewal said."""
        self.lost = asyncio.Event()
        self._transport = transport
        self._request = built(lease_pb2.LeaseKeepAliveRequest, keyspace=keyspace, id=lease)
        self._sent = self._until = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def held(self) -> bool:
        """Whether the lease is certainly alive now."""
        return not self.lost.is_set() and self._left() > 0

    def check(self) -> None:
        """Raise `LeaseNotFound` unless the lease is held."""
        if not self.held:
            raise LeaseNotFound(f"lease {self.lease} is lost; stop what was done under it")

    async def renew(self, timeout: float = 0.0) -> None:
        """Renew now, in `timeout` seconds (0: the client's).

        Raises `LeaseNotFound` if the lease is gone, and `KeyspaceNotFound` or `WrongShard` if its keyspace is, too.
        """
        sent = self._sent = self._transport.clock()
        try:
            response = await self._transport.call(methods.LEASE_KEEP_ALIVE, self._request, timeout=timeout)
        except GONE:
            self.lost.set()
            raise
        if not response.ttl:
            self.lost.set()
            raise LeaseNotFound(f"lease {self.lease} doesn't exist: it was revoked or has expired; grant a new one")
        self.ttl = response.ttl
        self._until = sent + response.ttl

    async def __aenter__(self) -> Self:
        await self.renew()
        self._task = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            # Not `await self._task` with its CancelledError suppressed: that of whoever leaves would be, too.
            await asyncio.wait((self._task,))
            if not self._task.cancelled():
                self._task.result()

    async def _keep(self) -> None:
        while not self.lost.is_set():
            # Nothing is waited for beyond the TTL: who waits for `lost` must hear of it by then. And what a renewal has
            # waited in vain counts: of a TTL of 10 s it may be 5, and the rest isn't to be slept away.
            left = self._left()
            pause = min(self._sent + self.ttl / RENEWALS - self._transport.clock(), left)
            if pause > 0:
                await self._transport.sleep(pause)
                left = self._left()
            if left <= 0:
                self.lost.set()
                return
            with suppress(NebulaError):
                await self.renew(min(left, self._transport.timeout))

    def _left(self) -> float:
        """Seconds for which the lease is certainly alive."""
        return self._until - self._transport.clock()

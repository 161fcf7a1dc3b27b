"""The leases of ``etcd import``: granted as etcd has them, and kept until everything under them is copied."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final, Self

from nebuladb.cli.etcd_source import Lease
from nebuladb.cli.parallel import in_parallel
from nebuladb.client import AsyncClient, Session
from nebuladb.errors import ChangeRefused, LeaseExists, LeaseNotFound, NebulaError
from nebuladb.kv.limits import MIN_LEASE_TTL

RENEWALS: Final = 3
"""Of a TTL, as a client's."""
KEEP_EVERY: Final = 0.5
"""Seconds between two looks for leases to renew, and two tries of one: within a third of the shortest TTL."""
RENEWAL: Final = 2.0
"""Seconds for one renewal while others wait: with the client's patience one that hangs would cost all short leases."""
AT_ONCE: Final = 256
"""Renewals between two looks: a lease that ends soon must not wait for thousands that have time."""
JOBS: Final = 8
"""Renewals at a time."""


class Leases:
    """Those that there are here, each with the id and the TTL that it was granted in etcd.

    Its holder renews it there and knows nothing of us: until the copy is made somebody must renew it here, or it ends
    with all keys that were copied under it. ``async with`` does that. `lost`: the ids of those that ended here all the
    same, after `finish`.
    """

    def __init__(
        self, client: AsyncClient, session: Session, *, merge: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`merge`: a lease that is here already is taken for the same."""
        self._client = client
        self._session = session
        self._merge = merge
        self._clock = clock
        self._due: dict[int, float] = {}
        self._ends: dict[int, float] = {}
        self.lost: set[int] = set()

    async def __aenter__(self) -> Self:
        self._keeping = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._keeping.cancel()
        await asyncio.wait((self._keeping,))
        if not self._keeping.cancelled():
            self._keeping.result()

    def __contains__(self, lease: int) -> bool:
        """Whether it was granted, even if it ended since."""
        return lease in self._due or lease in self.lost

    async def grant(self, leases: Sequence[Lease]) -> None:
        """Have them all here. Raises `NebulaError`; `LeaseExists` unless they are to be merged."""
        for lease in leases:
            try:
                await self._grant(lease)
            except LeaseExists:
                if not self._merge:
                    raise
                await self._take_over(lease)

    async def _grant(self, lease: Lease) -> None:
        ttl, sent = max(lease.granted, MIN_LEASE_TTL), self._clock()
        await self._session.grant_lease(ttl, lease=lease.id)
        self._granted(lease.id, sent, ttl)

    async def _take_over(self, lease: Lease) -> None:
        """What an earlier import granted, with as much time as it can have; anew if it ends in that moment."""
        try:
            ttl = await self._renew(lease.id)
        except LeaseNotFound:
            await self._grant(lease)
            return
        if ttl < lease.ttl:
            raise ChangeRefused(
                f"lease {lease.id} is here with a TTL of {ttl} s, and has {lease.ttl} s left in etcd: revoke it "
                f"(`nebula-cli --keyspace {self._client.keyspace} lease revoke -- {lease.id}`); what goes with it is "
                "copied anew"
            )

    async def _keep(self) -> None:
        while True:
            if not await self.renew_due():
                await asyncio.sleep(KEEP_EVERY)

    async def renew_due(self) -> bool:
        """Renew those of which a third of the TTL has passed, `AT_ONCE` at most, first the one that ends first.
        Whoever can't be renewed now is tried again, after the others. Returns whether more are due."""
        now = self._clock()
        late = sorted((lease for lease, due in self._due.items() if due <= now), key=self._ends.__getitem__)

        async def renew(lease: int) -> None:
            try:
                await self._kept(lease, RENEWAL)
            except NebulaError:
                if lease in self._due:  # `finish` may have found meanwhile that it has ended
                    self._due[lease] = self._clock() + KEEP_EVERY

        await in_parallel(iter(late[:AT_ONCE]), JOBS, renew)
        return len(late) > AT_ONCE

    async def finish(self) -> None:
        """Renew all once more: from now on each has its whole TTL, and `lost` is right. Raises `NebulaError`."""
        await in_parallel(iter(list(self._due)), JOBS, self._kept)

    async def _kept(self, lease: int, timeout: float = 0.0) -> None:
        try:
            await self._renew(lease, timeout)
        except LeaseNotFound:
            self._due.pop(lease, None)
            self._ends.pop(lease, None)
            self.lost.add(lease)

    async def _renew(self, lease: int, timeout: float = 0.0) -> int:
        """Its TTL in seconds, in `timeout` seconds (0: the client's). Raises `NebulaError`, `LeaseNotFound` if it has
        ended."""
        keeper, sent = self._client.keep_alive(lease), self._clock()
        await keeper.renew(timeout)
        self._granted(lease, sent, keeper.ttl)
        return keeper.ttl

    def _granted(self, lease: int, sent: float, ttl: int) -> None:
        self._due[lease], self._ends[lease] = sent + ttl / RENEWALS, sent + ttl

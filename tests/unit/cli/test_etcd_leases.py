"""The leases of an import: who is renewed when, and how long that may take, without a node."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nebuladb.cli.etcd_leases import AT_ONCE, KEEP_EVERY, RENEWAL, Leases
from nebuladb.cli.etcd_source import Lease
from nebuladb.client import AsyncClient, Session
from nebuladb.errors import LeaseNotFound, Unavailable


class Shard:
    """Grants and renews leases, and notes which and with what patience."""

    def __init__(self) -> None:
        self.time = 0.0
        self.ttls: dict[int, int] = {}
        self.renewed: list[int] = []
        self.timeouts: set[float] = set()
        self.away: set[int] = set()
        """Leases whose renewal fails."""
        self.hang: asyncio.Event | None = None
        """What renewals that come now wait for."""
        self.hung = asyncio.Event()
        """One does."""

    def leases(self) -> Leases:
        session, client = SimpleNamespace(grant_lease=self.grant), SimpleNamespace(keep_alive=self.keep_alive)
        made = cast("tuple[AsyncClient, Session]", (client, session))
        return Leases(*made, merge=False, clock=lambda: self.time)

    async def grant(self, ttl: int, *, lease: int) -> None:
        self.ttls[lease] = ttl

    def keep_alive(self, lease: int) -> Any:
        async def renew(timeout: float = 0.0) -> None:
            self.timeouts.add(timeout)
            self.renewed.append(lease)
            if self.hang is not None:
                self.hung.set()
                await self.hang.wait()
            if lease in self.away:
                raise Unavailable("nobody there")
            if lease not in self.ttls:
                raise LeaseNotFound("gone")

        return SimpleNamespace(renew=renew, ttl=self.ttls.get(lease))


@pytest.fixture
def shard() -> Shard:
    return Shard()


async def test_a_node_that_hangs_does_not_have_the_others_wait(shard: Shard) -> None:
    """Each renewal had the client's patience, a third of it for such a node: all short leases ended."""
    leases = shard.leases()
    await leases.grant([Lease(1, 60, 60)])
    shard.time = 25.0
    await leases.renew_due()
    assert shard.timeouts == {RENEWAL}
    await leases.finish()
    assert shard.timeouts == {RENEWAL, 0.0}, "in the end there is all the time that the client has"


async def test_who_ends_soonest_is_renewed_first(shard: Shard) -> None:
    """In the order of their granting three short leases waited for thousands of long ones, and ended."""
    leases = shard.leases()
    long, short = range(2 * AT_ONCE), range(9_000, 9_003)
    await leases.grant([*(Lease(one, 60, 60) for one in long), *(Lease(one, 3, 3) for one in short)])
    shard.time = 20.0
    assert await leases.renew_due(), "more are due"
    assert shard.renewed == [*short, *long[: AT_ONCE - 3]]
    shard.time = 21.0
    assert await leases.renew_due()
    assert shard.renewed[AT_ONCE:] == [*short, *long[AT_ONCE - 3 : -6]]


async def test_who_cannot_be_renewed_leaves_the_others_their_turn(shard: Shard) -> None:
    leases = shard.leases()
    every = [Lease(one, 60, 60) for one in range(AT_ONCE + 1)]
    await leases.grant(every)
    shard.away = set(range(AT_ONCE))
    shard.time = 20.0
    assert await leases.renew_due()
    assert not await leases.renew_due()
    assert shard.renewed[AT_ONCE:] == [AT_ONCE]
    shard.time += KEEP_EVERY
    assert not await leases.renew_due()
    assert len(shard.renewed) == 2 * AT_ONCE + 1


async def test_a_renewal_that_fails_behind_the_last_look_brings_nothing_back(shard: Shard) -> None:
    """The lease had ended, as the last look had found; it was due again, without a time at which it ends: KeyError."""
    leases = shard.leases()
    await leases.grant([Lease(1, 3, 3)])
    shard.time = 2.0
    shard.hang = hanging = asyncio.Event()
    keeping = asyncio.create_task(leases.renew_due())
    await shard.hung.wait()
    shard.hang = None
    del shard.ttls[1]
    await leases.finish()
    shard.away = {1}
    hanging.set()
    assert not await keeping
    shard.time += KEEP_EVERY
    assert not await leases.renew_due()
    assert leases.lost == {1}

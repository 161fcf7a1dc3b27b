"""The leases of an import: who is renewed when, and how long that may take, without a node."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from nebuladb.cli.etcd_leases import RENEWAL, Leases
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
            if lease in self.away:
                raise Unavailable("nobody there")
            if lease not in self.ttls:
                raise LeaseNotFound("gone")

        return SimpleNamespace(renew=renew, ttl=self.ttls.get(lease))


@pytest.fixture
def shard() -> Shard:
    return Shard()


async def test_a_node_that_hangs_does_not_have_the_others_wait(shard: Shard) -> None:
    """Each renewal had the client's patience, of which a third went to such a node: all short leases ended meanwhile."""
    leases = shard.leases()
    await leases.grant([Lease(1, 60, 60)])
    shard.time = 25.0
    await leases.renew_due()
    assert shard.timeouts == {RENEWAL}
    await leases.finish()
    assert shard.timeouts == {RENEWAL, 0.0}, "in the end there is all the time that the client has"

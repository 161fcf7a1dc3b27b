"""Leases: granted, renewed, revoked, looked at; also those that don't exist.

None may end by itself while requests are compared, since two servers never let it end at one moment. So short ones are
revoked at once, and carry no key.
"""

from __future__ import annotations

from random import Random
from typing import Final

from nebuladb.pb.etcd import kv_pb2, lease_pb2
from tests.etcd.diff import values
from tests.etcd.diff.calls import Call, KeepAlive, Operation
from tests.etcd.diff.values import World, chance

LONG: Final = (100_000, 1_000_000, 9_000_000_000)
SHORT: Final = (0, -1, 1, 2, 3, -values.BIG - 1)
TOO_LONG: Final = (9_000_000_001, values.BIG)


def any_lease(rng: Random, world: World) -> int:
    """One that lives, or one that doesn't."""
    if world.leases and chance(rng, 55):
        return rng.choice(sorted(world.leases))
    return rng.choice((*values.LEASES, *values.ODD_LEASES, 0))


def do_grant(rng: Random, world: World) -> Operation:
    """A grant, with an id of its own, a used one, or none."""
    chosen = rng.choice((*values.LEASES, *values.LEASES, *values.ODD_LEASES, 0))
    kind = rng.randrange(10)
    ttl = rng.choice(LONG if kind < 7 else SHORT if kind < 8 else TOO_LONG)
    existed = chosen in world.leases
    answer = yield Call("Lease/LeaseGrant", lease_pb2.LeaseGrantRequest(ID=chosen, TTL=ttl))
    if not isinstance(answer, lease_pb2.LeaseGrantResponse) or existed:
        return
    if ttl in SHORT:
        yield Call("Lease/LeaseRevoke", lease_pb2.LeaseRevokeRequest(ID=answer.ID))
        return
    world.leases.add(answer.ID)
    if chance(rng, 50):
        yield Call("KV/Put", kv_pb2.PutRequest(key=values.key(rng, 0), value=b"leased", lease=answer.ID))


def do_revoke(rng: Random, world: World) -> Operation:
    """A revocation."""
    chosen = any_lease(rng, world)
    yield Call("Lease/LeaseRevoke", lease_pb2.LeaseRevokeRequest(ID=chosen))
    world.leases.discard(chosen)


def do_keep_alive(rng: Random, world: World) -> Operation:
    """A renewal."""
    yield KeepAlive(any_lease(rng, world))


def do_time_to_live(rng: Random, world: World) -> Operation:
    """What is left."""
    request = lease_pb2.LeaseTimeToLiveRequest(ID=any_lease(rng, world), keys=chance(rng, 60))
    yield Call("Lease/LeaseTimeToLive", request)


def do_leases(_: Random, __: World) -> Operation:
    """All of them."""
    yield Call("Lease/LeaseLeases", lease_pb2.LeaseLeasesRequest())

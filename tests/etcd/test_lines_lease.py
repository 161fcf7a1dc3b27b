"""Lines 46 to 50: leases."""

from __future__ import annotations

import pytest

from tests.etcd.client import Client
from tests.etcd.test_lines_kv import refused

NOT_FOUND = "NOT_FOUND etcdserver: requested lease not found"


@pytest.mark.etcd(46)
def test_grants(client: Client) -> None:
    picked = client.grant(60)
    assert (picked.ID > 0, picked.TTL, picked.error) == (True, 60, "")
    assert refused(lambda: client.grant(60, picked.ID)) == "FAILED_PRECONDITION etcdserver: lease already exists"
    assert refused(lambda: client.grant(9_000_000_001)) == "OUT_OF_RANGE etcdserver: too large lease TTL"
    longest = client.grant(9_000_000_000)
    assert longest.TTL == 9_000_000_000
    assert client.time_to_live(longest.ID).grantedTTL == 9_000_000_000
    for short in (-5, 0, 1, 2):
        granted = client.grant(short)
        assert granted.TTL == 2
        client.revoke(granted.ID)
    chosen = client.grant(60, picked.ID + 1)
    assert chosen.ID == picked.ID + 1
    for lease in (picked, longest, chosen):
        client.revoke(lease.ID)


@pytest.mark.etcd(47, 48, 49)
def test_leases_that_do_not_exist(client: Client) -> None:
    unknown = 1 << 55
    renewed = client.keep_alive(unknown)
    assert (unknown, 0) == (renewed.ID, renewed.TTL)
    left = client.time_to_live(unknown, keys=True)
    assert (left.ID, left.TTL, left.grantedTTL, list(left.keys)) == (unknown, -1, 0, [])
    assert refused(lambda: client.revoke(unknown)) == NOT_FOUND


@pytest.mark.etcd(48)
def test_what_is_left(client: Client, place: bytes) -> None:
    lease = client.grant(600).ID
    client.put(place + b"b", lease=lease)
    client.put(place + b"a", lease=lease)
    left = client.time_to_live(lease)
    assert (left.grantedTTL, list(left.keys)) == (600, [])
    assert 500 < left.TTL <= 600
    assert sorted(client.time_to_live(lease, keys=True).keys) == [place + b"a", place + b"b"]
    assert client.keep_alive(lease).TTL == 600
    client.revoke(lease)


@pytest.mark.etcd(49)
def test_a_revoke_deletes_its_keys_in_one_revision(client: Client, place: bytes, end: bytes) -> None:
    lease = client.grant(600).ID
    for name in (b"c", b"a", b"b"):
        last = client.put(place + name, lease=lease).header.revision
    with client.watch() as watch:
        watch.create(place, end)
        revoked = client.revoke(lease)
        events = watch.next().events
    assert revoked.header.revision == last + 1
    assert [event.kv.key[len(place) :] for event in events] == [b"a", b"b", b"c"]
    assert {event.kv.mod_revision for event in events} == {last + 1}
    bare = client.grant(600).ID
    assert client.revoke(bare).header.revision == last + 1, "of none it is no change"


@pytest.mark.etcd(49)
def test_an_expiry_deletes_its_keys_too(client: Client, place: bytes, end: bytes) -> None:
    lease = client.grant(2).ID
    client.put(place + b"a", lease=lease)
    client.put(place + b"b", lease=lease)
    with client.watch() as watch:
        watch.create(place, end)
        events = watch.next().events
    assert [event.kv.key[len(place) :] for event in events] == [b"a", b"b"]
    assert client.time_to_live(lease).TTL == -1


@pytest.mark.etcd(50)
def test_leases_are_listed_by_their_ids(client: Client) -> None:
    mine = {client.grant(600).ID for _ in range(3)}
    assert mine <= client.lease_ids()
    for lease in mine:
        client.revoke(lease)
    assert not mine & client.lease_ids()

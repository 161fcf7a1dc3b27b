"""Line 63: the services for locks and elections."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from nebuladb.pb.etcd import election_pb2 as elections
from nebuladb.pb.etcd import lock_pb2 as locks
from tests.etcd.client import Client, Refused
from tests.etcd.test_lines_kv import refused


def lock(client: Client, name: bytes, lease: int) -> locks.LockResponse:
    return client.call("v3lockpb.Lock/Lock", locks.LockRequest(name=name, lease=lease), locks.LockResponse)


def campaign(client: Client, name: bytes, lease: int, value: bytes) -> elections.CampaignResponse:
    request = elections.CampaignRequest(name=name, lease=lease, value=value)
    return client.call("v3electionpb.Election/Campaign", request, elections.CampaignResponse)


class Asked(threading.Thread):
    """A call in a thread of its own: its answer or its refusal."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        super().__init__(daemon=True)
        self._call, self._arguments = call, arguments
        self.answer: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.answer = self._call(*self._arguments)
        except Refused as error:
            self.answer = error

    def result(self) -> Any:
        self.join(20)
        assert not self.is_alive()
        return self.answer


def until_queued(client: Client, name: bytes, number: int) -> None:
    """Until so many wait or hold: each has a key."""
    with client.watch() as watch:
        start = client.range(name + b"/", name + b"0")
        watch.create(name + b"/", name + b"0", start_revision=start.header.revision + 1)
        count = start.count
        while count < number:
            count += len(watch.next().events)


@pytest.mark.etcd(63)
def test_a_crowd_waits_on_one_connection_and_goes_at_once(nebula: Client, place: bytes) -> None:
    """The call that ends their waiting has a stream, too; and who cancels them all loses nothing else. So it is on a
    real etcd, which is busy with them for long afterwards."""
    client = nebula
    name, crowd = place + b"lock", 2_500
    lease = client.grant(600).ID
    held = lock(client, name, lease)
    stub: Any = client.channel.unary_unary("/v3lockpb.Lock/Lock")
    request = locks.LockRequest(name=name).SerializeToString()
    with client.watch() as watch:
        watch.create(place + b"other")
        waiting = [stub.future(request, timeout=60) for _ in range(crowd)]
        until_queued(client, name, crowd + 1)
        client.call("v3lockpb.Lock/Unlock", locks.UnlockRequest(key=held.key), locks.UnlockResponse)
        for call in waiting:
            call.cancel()
        client.put(place + b"other")
        assert watch.next().events[0].kv.key == place + b"other", "on the connection that was"


@pytest.mark.etcd(63)
def test_locks_are_held_in_the_order_of_their_keys(client: Client, place: bytes) -> None:
    name = place + b"lock"
    one, two, three = (client.grant(600).ID for _ in range(3))
    first = lock(client, name, one)
    assert first.key == b"%s/%x" % (name, one)
    held = client.get(first.key)
    assert held is not None
    assert (held.lease, held.create_revision) == (one, first.header.revision), "a fencing token"
    second = Asked(lock, client, name, two)
    until_queued(client, name, 2)
    third = Asked(lock, client, name, three)
    until_queued(client, name, 3)
    assert lock(client, name, one).key == first.key, "the owner's again"
    assert second.is_alive()
    client.call("v3lockpb.Lock/Unlock", locks.UnlockRequest(key=first.key), locks.UnlockResponse)
    assert second.result().key == b"%s/%x" % (name, two)
    assert third.is_alive()
    client.revoke(two)
    assert third.result().key == b"%s/%x" % (name, three)
    client.revoke(three)
    client.revoke(one)
    assert client.range(name + b"/", name + b"0").count == 0


@pytest.mark.etcd(63)
def test_a_lock_whose_session_ended_while_it_waited(client: Client, place: bytes) -> None:
    name = place + b"lock"
    holder, waiter = client.grant(600).ID, client.grant(600).ID
    lock(client, name, holder)
    waiting = Asked(lock, client, name, waiter)
    until_queued(client, name, 2)
    client.revoke(waiter)
    client.revoke(holder)
    ended = waiting.result()
    assert isinstance(ended, Refused)
    assert "mutex: session is expired" in ended.text


@pytest.mark.etcd(63)
def test_elections(client: Client, place: bytes) -> None:
    name = place + b"e"
    leader_of = elections.LeaderRequest(name=name)

    def leader() -> elections.LeaderResponse:
        return client.call("v3electionpb.Election/Leader", leader_of, elections.LeaderResponse)

    assert refused(leader).endswith("election: no leader")
    one, two = client.grant(600).ID, client.grant(600).ID
    won = campaign(client, name, one, b"first").leader
    assert (won.name, won.key, won.lease) == (name, b"%s/%x" % (name, one), one)
    found = client.get(won.key)
    assert found is not None
    assert (found.create_revision, found.value) == (won.rev, b"first")
    other = Asked(campaign, client, name, two, b"second")
    until_queued(client, name, 2)
    assert (leader().kv.value, leader().kv.key) == (b"first", won.key)
    proclaim = elections.ProclaimRequest(leader=won, value=b"still first")
    client.call("v3electionpb.Election/Proclaim", proclaim, elections.ProclaimResponse)
    assert leader().kv.value == b"still first"
    client.call("v3electionpb.Election/Resign", elections.ResignRequest(leader=won), elections.ResignResponse)
    assert other.result().leader.key == b"%s/%x" % (name, two)
    assert leader().kv.value == b"second"
    late = elections.ProclaimRequest(leader=won, value=b"no more")
    text = refused(lambda: client.call("v3electionpb.Election/Proclaim", late, elections.ProclaimResponse))
    assert text.endswith(("election: session is expired", "election: not leader"))
    client.revoke(two)
    client.revoke(one)
    assert refused(leader).endswith("election: no leader")


@pytest.mark.etcd(63)
def test_what_an_election_needs(client: Client) -> None:
    text = '"leader" field must be provided'
    proclaim, resign = elections.ProclaimRequest(value=b"v"), elections.ResignRequest()
    for call in (
        lambda: client.call("v3electionpb.Election/Proclaim", proclaim, elections.ProclaimResponse),
        lambda: client.call("v3electionpb.Election/Resign", resign, elections.ResignResponse),
    ):
        assert refused(call).endswith(text)

"""A cluster under more load than it takes: writes are refused, and what keeps it alive gets through."""

from __future__ import annotations

import pytest

from nebuladb.errors import TooManyRequests
from nebuladb.ids import DEFAULT_GROUP, META_GROUP
from nebuladb.kv.answer import Answer, LeaseResult
from nebuladb.kv.command import Command, Kind
from nebuladb.pb.nebula.v1 import lease_pb2
from tests.unit.node.trio import Trio
from tests.unit.node.wire import put_request

LEASE = 5
BIG = Command(Kind.PUT, put_request(b"k", bytes(1 << 20)))


@pytest.fixture
def trio() -> Trio:
    trio = Trio.started()
    grant = lease_pb2.LeaseGrantRequest(id=LEASE, ttl=60).SerializeToString()
    assert isinstance(ask(trio, 0, Command(Kind.LEASE_GRANT, grant)), Answer)
    return trio


def ask(trio: Trio, place: int, command: Command, group: int = DEFAULT_GROUP) -> object:
    machine = trio.machines[place]
    request = trio.node(place).submit(group, command, trio.time + 10_000)
    trio.until(lambda: request in machine.answers, "an answer")
    return machine.answers[request]


def refused(trio: Trio, place: int) -> int:
    """0 if the node takes one more big write, else when to try again, ms."""
    try:
        trio.node(place).submit(DEFAULT_GROUP, BIG, trio.time + 60_000)
    except TooManyRequests as error:
        return error.retry_after
    return 0


def flood(trio: Trio, place: int) -> int:
    """Writes until the node refuses; how many it took."""
    for taken in range(1_000):
        if refused(trio, place):
            return taken
    raise AssertionError("no bound")


def keep_alive() -> Command:
    return Command(Kind.LEASE_KEEP_ALIVE, lease_pb2.LeaseKeepAliveRequest(id=LEASE).SerializeToString())


@pytest.mark.parametrize("through", [0, 1, 2])
def test_keep_alives_and_revokes_get_through_a_flood(trio: Trio, through: int) -> None:
    leader = trio.leader(DEFAULT_GROUP)
    assert leader is not None
    for place in {leader, through}:
        assert flood(trio, place) > 1
    answer = ask(trio, through, keep_alive())
    assert isinstance(answer, Answer)
    assert answer.result == LeaseResult(LEASE, 60)
    flood(trio, through)
    revoke = Command(Kind.LEASE_REVOKE, lease_pb2.LeaseRevokeRequest(id=LEASE).SerializeToString())
    assert isinstance(ask(trio, through, revoke), Answer)
    flood(trio, through)
    assert isinstance(ask(trio, through, Command(Kind.PUT, put_request(b"x", b"y")), META_GROUP), Answer)


def test_a_leader_under_pressure_takes_forwarded_control_and_refuses_the_rest(trio: Trio) -> None:
    leader = trio.leader(DEFAULT_GROUP)
    assert leader is not None
    writes = trio.node(leader).host.writes
    writes.take(writes.limit - writes.used)  # as if other shards' clients held it all
    follower = (leader + 1) % 3
    put = trio.node(follower).submit(DEFAULT_GROUP, BIG, trio.time + 60_000)
    answer = ask(trio, follower, keep_alive())
    assert isinstance(answer, Answer)
    assert put not in trio.machines[follower].answers
    writes.give(writes.limit)
    trio.until(lambda: put in trio.machines[follower].answers, "the put's answer")
    assert isinstance(trio.machines[follower].answers[put], Answer)


def test_one_shard_does_not_take_it_all(trio: Trio) -> None:
    flood(trio, 0)
    request = trio.node(0).submit(3, BIG, trio.time + 60_000)
    trio.until(lambda: request in trio.machines[0].answers, "an answer of the other shard")

"""What a client is told of changes that may be repeated, of sessions that can't be opened, and after a sleep."""

from __future__ import annotations

import asyncio
import time

import pytest

from nebuladb import errors
from nebuladb.client import AsyncClient
from nebuladb.errors import Outcome
from tests.unit.client.fake import LOST, Fault, Node


async def test_a_change_that_may_be_repeated_isn_t_called_failed_when_an_earlier_try_may_have_done_it(
    node: Node,
) -> None:
    refusals = [Fault("Create", errors.NoLeader()) for _ in range(200)]
    node.faults += [Fault("Create", LOST, after=True), *refusals]
    async with AsyncClient([node.address]) as client:
        with pytest.raises(errors.NebulaError) as caught:
            await client.create_keyspace("users", timeout=1.0)
    assert "users" in node.store.keyspaces
    assert caught.value.outcome is Outcome.UNKNOWN
    node.faults.clear()
    node.faults += [Fault("Drop", LOST, after=True), *(Fault("Drop", errors.Unavailable()) for _ in range(200))]
    async with AsyncClient([node.address]) as client:
        with pytest.raises(errors.NebulaError) as caught:
            await client.drop_keyspace("users", timeout=1.0)
    assert "users" not in node.store.keyspaces
    assert caught.value.outcome is Outcome.UNKNOWN


async def test_a_change_that_may_be_repeated_is_repeated_when_its_outcome_is_unknown(node: Node) -> None:
    node.faults += [Fault("Create", errors.UnknownOutcome(), after=True)]
    async with AsyncClient([node.address]) as client:
        await client.create_keyspace("users")
    assert node.count("Create") == 2


async def test_a_write_of_a_session_isn_t_lost_with_the_leader_that_should_open_it(node: Node) -> None:
    node.faults += [Fault("Open", errors.UnknownOutcome())]
    async with AsyncClient([node.address]) as client, client.session() as session:
        await session.put(b"k", b"v")
    assert node.store.executed == ["put"]


async def test_a_write_that_never_left_isn_t_unknown_because_its_session_may_be_open(node: Node) -> None:
    node.faults += [Fault("Open", errors.UnknownOutcome()) for _ in range(200)]
    async with AsyncClient([node.address], timeout=0.5) as client, client.session() as session:
        with pytest.raises(errors.NebulaError) as caught:
            await session.put(b"k", b"v")
    assert node.count("Put") == 0
    assert caught.value.outcome is Outcome.FAILED


async def test_those_who_wait_for_a_session_don_t_wait_one_after_the_other(node: Node) -> None:
    node.faults += [Fault("Open", errors.NoLeader()) for _ in range(5_000)]
    async with AsyncClient([node.address], timeout=0.4) as client, client.session() as session:
        await client.get(b"k")
        begun = time.monotonic()
        found = await asyncio.gather(*(session.put(b"k", b"v") for _ in range(20)), return_exceptions=True)
        took = time.monotonic() - begun
    assert all(isinstance(error, errors.NoLeader) for error in found)
    assert took < 20 * 0.4 / 2, f"{took:.1f} s, as if they had waited in turn"


async def test_a_renewal_whose_outcome_is_unknown_is_repeated_at_once(node: Node) -> None:
    async with AsyncClient([node.address]) as client:
        lease = (await client.grant_lease(10)).id
        node.faults += [Fault("KeepAlive", errors.UnknownOutcome())]
        async with client.keep_alive(lease) as keeper:
            assert keeper.held
    assert node.count("KeepAlive") == 2


async def test_nobody_holds_a_lease_that_ended_while_the_machine_slept(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CLOCK_MONOTONIC stands still meanwhile, the servers' clocks don't."""
    slept = [0.0]
    real = time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda clock: real(clock) + sum(slept) * (clock == time.CLOCK_BOOTTIME))
    async with AsyncClient([node.address]) as client:
        lease = (await client.grant_lease(10)).id
        async with client.keep_alive(lease) as keeper:
            assert keeper.held
            slept.append(3600.0)
            assert [keeper.held] == [False]
            with pytest.raises(errors.LeaseNotFound):
                keeper.check()

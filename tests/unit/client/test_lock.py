"""One holder at a time, whatever becomes of the requests, and of the holder."""

from __future__ import annotations

import asyncio
import signal
import threading

import pytest

from nebuladb import errors
from nebuladb.client import AsyncClient, Client
from tests.unit.client.fake import LOST, Fault, Node, wait_until
from tests.unit.client.test_plans import Time

NAME = b"report"


async def test_there_is_one_holder_at_a_time_and_tokens_rise(node: Node) -> None:
    inside: list[int] = []
    tokens: list[int] = []

    async def work(client: AsyncClient) -> None:
        async with client.lock(NAME) as lock:
            inside.append(1)
            assert len(inside) == 1
            await client.put(b"k", b"v")
            lock.check()
            tokens.append(lock.token)
            inside.pop()
        assert not lock.held

    async with AsyncClient([node.address]) as client:
        await asyncio.gather(*(work(client) for _ in range(5)))
        assert await client.get(NAME) is None
    assert sorted(set(tokens)) == tokens
    assert len(tokens) == 5
    assert node.store.leases == {}


async def test_the_token_is_what_a_write_may_be_made_to_depend_on(node: Node) -> None:
    async with AsyncClient([node.address]) as client:
        async with client.lock(NAME, value=b"me") as lock:
            assert (await client.get(NAME)).value == b"me"  # type: ignore[union-attr]
            fenced = client.txn().when("create", lock.name, "=", lock.token).put(b"k", b"v")
            assert (await fenced.commit()).succeeded
        assert not (await fenced.commit()).succeeded


@pytest.mark.parametrize("seconds", [0, 0.01])
async def test_who_does_not_want_to_wait_is_told_who_has_it(node: Node, seconds: float) -> None:
    async with AsyncClient([node.address]) as client, client.lock(NAME, value=b"host 7"):
        with pytest.raises(errors.DeadlineExceeded, match=r"'report' is held by another, whose value is b'host 7'"):
            await client.lock(NAME, timeout=seconds).__aenter__()
        assert len(node.store.leases) == 1, "the other's lease is gone"


async def test_of_a_value_that_is_no_holders_only_the_beginning_is_told(node: Node) -> None:
    async with AsyncClient([node.address]) as client:
        await client.put(NAME, bytes(1_000_000))
        with pytest.raises(errors.DeadlineExceeded) as refused:
            await client.lock(NAME, timeout=0).__aenter__()
    assert len(refused.value.message) < 400


@pytest.mark.parametrize("method", ["Grant", "Txn"])
async def test_what_became_of_a_write_is_found_out(node: Node, method: str) -> None:
    async with AsyncClient([node.address]) as client:
        node.faults += [Fault(method, LOST, after=True), Fault(method, errors.UnknownOutcome())]
        async with client.lock(NAME) as lock:
            row = await client.get(NAME)
            assert row is not None
            assert (row.create_revision, row.version) == (lock.token, 1)


@pytest.mark.parametrize("faults", [1, 2])
async def test_the_end_of_a_lock_is_asked_for_twice(node: Node, faults: int) -> None:
    async with AsyncClient([node.address]) as client, client.lock(NAME):
        node.faults += [Fault("Revoke", errors.UnknownOutcome())] * faults
    assert len(node.store.leases) == faults - 1, "else it ends by itself"


async def test_who_would_wait_no_longer_hears_that_nobody_knows(node: Node) -> None:
    async with AsyncClient([node.address]) as client:
        node.faults.append(Fault("Txn", LOST, after=True))
        with pytest.raises(errors.UnknownOutcome):
            async with client.lock(NAME, timeout=0):
                pass
        assert await client.get(NAME) is None
    assert node.store.leases == {}


async def test_a_lease_that_ends_while_one_waits_is_replaced(node: Node) -> None:
    async with AsyncClient([node.address]) as client:
        async with client.lock(NAME) as first:
            waiting = asyncio.ensure_future(client.lock(NAME).__aenter__())
            await asyncio.to_thread(wait_until, lambda: node.count("Watch") > 0)
            [lease] = [lease for lease in node.store.leases if lease != first._keeper.lease]  # type: ignore[union-attr]
            node.store.end_lease(lease)
        lock = await waiting
        assert lock.held
        assert lock.token > first.token
        await lock.__aexit__()
    assert node.store.leases == {}


async def test_a_holder_that_is_cut_off_knows_that_it_has_lost_it(node: Node) -> None:
    time = Time()
    async with AsyncClient([node.address], clock=time.clock, sleep=time.sleep, timeout=0.5) as client:
        lock = client.lock(NAME, ttl=9)
        await lock.__aenter__()
        assert lock.held
        node.stop()
        await time.wake(after=9.0)
        await lock.lost()
        with pytest.raises(errors.LeaseNotFound, match="b'report' is not held, or was lost"):
            lock.check()
        leaving = asyncio.ensure_future(lock.__aexit__())  # what can't be told to the cluster ends by itself
        while not leaving.done():
            waked = asyncio.ensure_future(time.wake())
            await asyncio.wait((leaving, waked), return_when=asyncio.FIRST_COMPLETED)
            waked.cancel()
        leaving.result()


async def test_a_lock_whose_lease_was_lost_as_it_was_taken_is_taken_anew(node: Node) -> None:
    time = Time()
    async with AsyncClient([node.address], clock=time.clock, sleep=time.sleep) as client:
        lock = client.lock(NAME, ttl=9)
        commit = client._commit

        async def late(request: object) -> object:
            answer = await commit(request)  # type: ignore[arg-type]
            if node.count("Txn") == 1:
                time.now += 9.0
            return answer

        client._commit = late  # type: ignore[assignment, method-assign]
        await lock.__aenter__()
        assert lock.held
        assert node.count("Txn") == 2
        assert len(node.store.leases) == 1
        await lock.__aexit__()


async def test_who_waits_for_its_loss_waits_no_longer_than_it_is_held(node: Node) -> None:
    async with AsyncClient([node.address]) as client:
        async with client.lock(NAME) as lock:
            lost = asyncio.ensure_future(lock.lost())
            await asyncio.wait((lost,), timeout=0)
            assert not lost.done()
        await asyncio.wait_for(lost, 10)
        await lock.lost()


async def test_one_object_is_for_one_holder(node: Node) -> None:
    async with AsyncClient([node.address]) as client:
        lock = client.lock(NAME)
        for _ in range(2):
            async with lock:
                with pytest.raises(errors.InvalidArgument, match="by this object; make another one"):
                    await lock.__aenter__()
                assert lock.held
        with pytest.raises(errors.InvalidArgument, match="timeout is -1"):
            client.lock(NAME, timeout=-1)
        with pytest.raises(errors.InvalidArgument, match="timeout is nan"):
            client.lock(NAME, timeout=float("nan"))


def test_the_synchronous_client_has_it_too(node: Node) -> None:
    with Client([node.address]) as client:
        with client.lock(NAME, value=b"me") as lock:
            assert lock.held
            assert client.get(NAME).value == b"me"  # type: ignore[union-attr]
            with pytest.raises(errors.DeadlineExceeded), client.lock(NAME, timeout=0):
                pass
            lock.check()
        with pytest.raises(errors.LeaseNotFound):
            lock.check()
        assert client.get(NAME) is None
    assert node.store.leases == {}


async def test_a_lease_that_is_gone_before_it_was_renewed_is_replaced(node: Node) -> None:
    """After a suspension just then. Who waited for the lock was told that a lease is gone, and to grant another."""
    async with AsyncClient([node.address]) as client:
        node.faults.append(Fault("KeepAlive", errors.LeaseNotFound()))
        async with client.lock(NAME) as lock:
            assert lock.held
    assert node.store.leases == {}


def test_an_interrupt_amid_a_lock_leaves_nothing_although_the_client_is_closed_at_once(node: Node) -> None:
    """Its end was begun by the call that was interrupted, and nobody waited for it: others had to, for the TTL."""
    main = threading.get_ident()
    node.faults.append(Fault("Revoke", errors.NoLeader()))  # it takes another try
    with Client([node.address]) as client:
        commit = client._client._commit

        async def answered_late(request: object) -> object:
            await commit(request)  # type: ignore[arg-type]
            signal.pthread_kill(main, signal.SIGINT)
            return await asyncio.Event().wait()

        client._client._commit = answered_late  # type: ignore[assignment, method-assign]
        with pytest.raises(KeyboardInterrupt), client.lock(NAME):
            pass
    assert node.count("Txn") == 1
    assert node.store.leases == {}

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nebuladb import errors
from nebuladb.client import AsyncClient
from nebuladb.client.session import CLOSING, WINDOW, Session, Window
from nebuladb.client.shardmap import ShardMap
from nebuladb.pb.nebula.v1 import common_pb2, keyspace_pb2, kv_pb2, session_pb2
from tests.unit.client.fake import LOST, Fault, Node


async def test_a_write_happens_once_however_often_it_is_lost(nodes: list[Node]) -> None:
    a, b, _ = nodes
    a.faults += [Fault("Put", LOST, after=True), Fault("Txn", LOST), Fault("Delete", errors.NoLeader())]
    b.faults += [Fault("Put", errors.UnknownOutcome(), after=True), Fault("Txn", LOST, after=True)]
    async with AsyncClient([n.address for n in nodes]) as client, client.session() as session:
        assert (await session.put(b"k", b"v")).revision == 2
        cas = await session.compare_and_set(b"k", b"w", expected=b"v")
        assert cas.succeeded  # the first execution's answer: a second one would have failed
        assert (await session.delete(b"k")).deleted == 1
    assert a.store.executed == ["put", "txn", "delete"]
    assert a.store.revision == 4
    assert not a.store.sessions  # closed


async def test_a_recorded_refusal_is_the_answer(node: Node) -> None:
    node.faults.append(Fault("Put", LOST, after=True))
    async with AsyncClient([node.address]) as client, client.session() as session:
        with pytest.raises(errors.LeaseNotFound) as caught:
            await session.put(b"k", b"v", lease=7)
        assert caught.value.outcome is errors.Outcome.FAILED


async def test_an_evicted_session_surfaces_and_the_next_write_gets_a_new_one(node: Node) -> None:
    async with AsyncClient([node.address]) as client, client.session() as session:
        await session.put(b"k", b"1")
        node.store.sessions.clear()
        node.faults.append(Fault("Put", LOST))
        with pytest.raises(errors.SessionExpired) as caught:
            await session.put(b"k", b"2")
        assert caught.value.outcome is errors.Outcome.UNKNOWN
        await session.put(b"k", b"3")
    assert node.count("Open") == 2


async def test_a_session_asks_for_the_map_again_when_a_shard_cant_be_opened(node: Node) -> None:
    """One that had its map from before the keyspace was dropped and made anew asked the old shard for ever."""
    async with AsyncClient([node.address]) as client, client.session() as session:
        for number, refusal in enumerate((errors.WrongShard(), errors.KeyspaceNotFound()), 1):
            node.faults.append(Fault("Open", refusal))
            with pytest.raises(type(refusal)):
                await session.put(b"k", b"v")
            assert node.count("Describe") == number
        await session.put(b"k", b"v")
        assert node.count("Describe") == 3


async def test_many_first_writes_at_once_ask_once_where_their_keys_lie(node: Node) -> None:
    """Each asked by itself: of 20,000 none came to be sent in its time."""
    async with AsyncClient([node.address]) as client, client.session() as session:
        await asyncio.gather(*(session.put(b"%d" % number, b"v") for number in range(50)))
        assert (node.count("Describe"), node.count("Open"), node.count("Put")) == (1, 1, 50)


async def test_those_who_wait_for_where_their_keys_lie_fail_together(node: Node) -> None:
    node.faults += [Fault("Describe", errors.KeyspaceNotFound()) for _ in range(2)]
    async with AsyncClient([node.address]) as client, client.session() as session:
        found = await asyncio.gather(*(session.put(b"k", b"v") for _ in range(20)), return_exceptions=True)
        assert all(isinstance(error, errors.KeyspaceNotFound) for error in found)
        assert node.count("Describe") == 2  # the first one's, and one that began after the others had come
        await session.put(b"k", b"v")


async def test_an_old_epoch_is_replaced_by_the_one_that_the_refusal_names(node: Node) -> None:
    async with AsyncClient([node.address]) as client, client.session() as session:
        await session.put(b"k", b"1")
        node.store.epoch = 5
        await session.put(b"k", b"2")
        assert node.count("Put") == 3, "one refusal"
        await session.put(b"k", b"3")
        assert node.count("Put") == 4, "and none any more"
    named = [request.epoch for _, request in node.calls if isinstance(request, kv_pb2.PutRequest)]
    assert named == [1, 1, 5, 5]
    assert node.store.executed == ["put"] * 3


async def test_many_writes_at_once_stay_in_the_window(node: Node) -> None:
    node.faults += [Fault("Put", LOST, after=True) for _ in range(20)]
    async with AsyncClient([node.address]) as client, client.session() as session:
        await asyncio.gather(*(session.put(b"%d" % n, b"v") for n in range(3 * WINDOW)))
    requests = [r for name, r in node.calls if name == "Put" and isinstance(r, kv_pb2.PutRequest)]
    assert {r.session.sequence for r in requests} == set(range(1, 3 * WINDOW + 1))
    assert all(r.session.sequence < r.session.lowest_unanswered + WINDOW for r in requests)
    assert node.store.executed == ["put"] * 3 * WINDOW
    assert node.count("Open") == 1


async def test_writes_whose_answers_fill_the_session_go_on_as_soon_as_some_have_come(node: Node) -> None:
    """Each was refused for good, since what it said of the answers that had come was from before they came."""
    node.store.answers_kept = 4
    async with AsyncClient([node.address]) as client, client.session() as session:
        answers = await asyncio.gather(*(session.put(b"%d" % n, b"v") for n in range(2 * WINDOW)))
    assert node.store.executed == ["put"] * 2 * WINDOW
    assert {answer.revision for answer in answers} == set(range(2, 2 * WINDOW + 2))


async def test_a_write_that_an_earlier_try_may_have_done_gets_no_other_number(node: Node) -> None:
    node.faults += [Fault("Put", LOST, after=True), Fault("Put", errors.SessionWindow())]
    async with AsyncClient([node.address]) as client, client.session() as session:
        with pytest.raises(errors.UnknownOutcome):
            await session.put(b"k", b"v")
    assert node.store.executed == ["put"]


async def test_a_write_that_is_refused_for_its_number_is_not_repeated_for_ever(node: Node) -> None:
    node.faults += [Fault("Put", errors.SessionWindow()) for _ in range(10_000)]
    async with AsyncClient([node.address], timeout=0.2) as client, client.session() as session:
        with pytest.raises(errors.SessionWindow):
            await session.put(b"k", b"v")


async def test_a_slow_first_request_holds_the_window() -> None:
    window = Window(2, 5)
    async with window.number() as first:
        assert (first.id, first.sequence, first.lowest_unanswered) == (5, 1, 1)
        for expected in range(2, WINDOW + 1):
            async with window.number() as reference:
                assert (reference.sequence, reference.lowest_unanswered) == (expected, 1)
        waiting = asyncio.ensure_future(window.number().__aenter__())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
    reference = await waiting
    assert (reference.sequence, reference.lowest_unanswered) == (WINDOW + 1, WINDOW + 1)


async def test_a_canceled_write_frees_its_number() -> None:
    window = Window(2, 5)
    entered = asyncio.Event()

    async def forever() -> None:
        async with window.number():
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(forever())
    await entered.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert window.lowest == 2


async def test_who_waits_for_a_number_gets_it_in_order_and_costs_the_others_nothing() -> None:
    """All were woken by each that was freed, which took the square of their number."""

    class Counted(Window):
        looks = 0

        @property
        def lowest(self) -> int:
            self.looks += 1
            return super().lowest

    window = Counted(2, 5)
    begun: list[int] = []
    inside: set[int] = set()

    async def write(number: int) -> None:
        async with window.number() as reference:
            inside.add(reference.sequence)
            assert reference.sequence < min(inside) + WINDOW
            assert reference.lowest_unanswered <= min(inside)
            begun.append(number)
            await asyncio.sleep(0)
            inside.remove(reference.sequence)

    writes = 50 * WINDOW
    await asyncio.gather(*map(write, range(writes)))
    assert begun == list(range(writes))
    assert window.looks <= 4 * writes


async def test_a_number_that_is_given_to_who_is_cancelled_goes_back() -> None:
    window = Window(2, 5)
    async with AsyncExitStack() as first, AsyncExitStack() as second, AsyncExitStack() as rest:
        for stack in (first, second, *(rest,) * (WINDOW - 2)):
            await stack.enter_async_context(window.number())
        given, waiting, after = (asyncio.ensure_future(window.number().__aenter__()) for _ in range(3))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.sleep(0)
        await first.aclose()
        given.cancel()
        await asyncio.wait((given,))
        await second.aclose()
        async with asyncio.timeout(10):
            reference = await after
        assert [task.cancelled() for task in (given, waiting)] == [True, True]
        assert (reference.sequence, reference.lowest_unanswered) == (WINDOW + 2, 3)
    assert window.lowest == WINDOW + 2, "the others are free"


@settings(deadline=None, max_examples=60)
@given(st.lists(st.binary(min_size=1, max_size=3), unique=True, max_size=5), st.binary(max_size=4))
def test_range_keyspaces_are_routed_by_key(splits: list[bytes], key: bytes) -> None:
    starts = [b"", *sorted(splits)]
    ends = [*starts[1:], b""]
    shards = [
        common_pb2.ShardDescriptor(group=n + 10, start_key=start, end_key=end)
        for n, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]
    info = keyspace_pb2.KeyspaceInfo(name="k", partitioning=keyspace_pb2.RANGE, shards=reversed(shards))
    (owner,) = [s.group for s in shards if s.start_key <= key and (not s.end_key or key < s.end_key)]
    assert ShardMap(info).group(key) == owner


def test_hash_keyspaces_are_routed_by_slot() -> None:
    shards = [
        common_pb2.ShardDescriptor(group=10 + n, start_slot=n * 16384, end_slot=(n + 1) * 16384) for n in range(4)
    ]
    found = ShardMap(keyspace_pb2.KeyspaceInfo(partitioning=keyspace_pb2.HASH, shards=shards))
    # crc32(b"123456789") is 0xcbf43926, the check value of the algorithm.
    assert found.group(b"123456789") == 10 + 0xCBF4 // 16384
    assert found.group(b"") == 10
    with pytest.raises(errors.Unavailable):
        ShardMap(keyspace_pb2.KeyspaceInfo(name="empty"))


class Away:
    """A transport that nobody answers."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.timeouts: set[float] = set()
        self.all_begun = asyncio.Event()
        self.expected = 0

    async def call(self, _: object, request: session_pb2.SessionCloseRequest, *, timeout: float) -> None:
        self.begun.append(request.group)
        self.timeouts.add(timeout)
        if len(self.begun) == self.expected:
            self.all_begun.set()
        await self.all_begun.wait()
        raise errors.Unavailable


async def test_a_session_is_closed_in_all_shards_at_once() -> None:
    """One after the other each took its second: whoever left waited a minute for sixty shards of a dead cluster."""
    transport = Away()
    session = Session(transport, "k")  # type: ignore[arg-type]  # all that it uses is `call`
    session._windows = {group: Window(group, 1) for group in range(10, 70)}
    transport.expected = 60
    async with asyncio.timeout(10):
        await session.close()
    assert sorted(transport.begun) == list(range(10, 70))
    assert transport.timeouts == {CLOSING}
    await session.close()
    assert len(transport.begun) == 60


async def test_what_is_written_after_a_session_is_closed_opens_no_other(node: Node) -> None:
    """It would stay with the shard until it is evicted, in place of one that is in use."""
    async with AsyncClient([node.address]) as client:
        async with client.session() as session:
            await session.put(b"k", b"v")
        with pytest.raises(errors.ClientClosed, match="session is closed"):
            await session.put(b"k", b"w")
        assert not node.store.sessions
        found = await client.get(b"k")
        assert found is not None
        assert found.value == b"v"


async def test_a_session_that_is_closed_while_a_part_of_it_is_opened_leaves_none(node: Node) -> None:
    async with AsyncClient([node.address]) as client:
        session = client.session()
        await session.put(b"k", b"v")
        opening = asyncio.ensure_future(session._open(b"k", 0))
        await asyncio.sleep(0)
        await session.close()
        with pytest.raises(errors.ClientClosed):
            await opening
        assert not node.store.sessions

from __future__ import annotations

import asyncio
from contextlib import aclosing
from itertools import pairwise
from typing import Any

import pytest

from nebuladb import errors
from nebuladb.client import AsyncClient, EventType, KeyValue
from nebuladb.pb.nebula.v1 import cluster_pb2
from tests.unit.client.fake import LOST, Fault, Node, wait_until


async def test_put_get_delete(node: Node) -> None:
    async with AsyncClient([node.address]) as client:
        assert await client.get(b"k") is None
        assert (await client.put(b"k", b"v")).revision == 2
        answer = await client.put(b"k", b"w", prev_kv=True)
        assert answer.previous is not None
        assert answer.previous.value == b"v"
        found = await client.get(b"k")
        assert found is not None
        assert (found.value, found.create_revision, found.mod_revision, found.version) == (b"w", 2, 3, 2)
        old = await client.get(b"k", revision=2)
        assert old is not None
        assert old.value == b"v"
        gone = await client.delete(b"k", prev_kv=True)
        assert (gone.deleted, gone.previous[0].value) == (1, b"w")
        assert (await client.delete(b"k")).deleted == 0


async def test_errors_come_back_as_themselves(node: Node) -> None:
    async with AsyncClient([node.address], timeout=1) as client:
        with pytest.raises(errors.InvalidArgument, match="at least one byte"):
            await client.put(b"", b"v")
        with pytest.raises(errors.FutureRevision):
            await client.get(b"k", revision=99)
        await client.compact(1)
        node.store.floor = 5
        node.store.revision = 9
        with pytest.raises(errors.Compacted) as caught:
            await client.get(b"k", revision=2)
        assert caught.value.floor == 5
        with pytest.raises(errors.RequestTooLarge):
            await client.put(b"k", b"v" * 1_600_000)
        with pytest.raises(errors.LeaseNotFound):
            await client.put(b"k", b"v", lease=5)
    async with AsyncClient([node.address], keyspace="nowhere") as client:
        with pytest.raises(errors.KeyspaceNotFound):
            await client.get(b"k")


async def test_transaction(node: Node) -> None:
    async with AsyncClient([node.address]) as client:
        txn = client.txn().when("version", b"a", "=", 0).put(b"a", b"1").get(b"a")
        txn.get(b"a", branch="else").delete(b"a", branch="else")
        first = await txn.commit()
        assert first.succeeded
        assert first.results[1].kvs[0].value == b"1"  # type: ignore[union-attr]
        second = await txn.commit()
        assert not second.succeeded
        assert second.results[1].deleted == 1  # type: ignore[union-attr]


async def test_compare_and_set(node: Node) -> None:
    async with AsyncClient([node.address]) as client:
        made = await client.compare_and_set(b"k", b"1")
        assert made.succeeded
        refused = await client.compare_and_set(b"k", b"2")
        assert not refused.succeeded
        assert refused.current is not None
        assert refused.current.value == b"1"
        assert (await client.compare_and_set(b"k", b"2", expected=b"1")).succeeded
        assert (await client.compare_and_set(b"k", b"3", mod_revision=3)).succeeded
        assert not (await client.compare_and_set(b"k", b"4", mod_revision=3)).succeeded
        with pytest.raises(errors.InvalidArgument):
            await client.compare_and_set(b"k", b"4", mod_revision=3, expected=b"1")


async def test_a_value_that_is_none_is_not_an_empty_one(node: Node) -> None:
    none: bytes = None  # type: ignore[assignment]
    async with AsyncClient([node.address]) as client:
        await client.put(b"k", b"v")
        for write in (
            client.put(b"k", none),
            client.compare_and_set(b"k", none, expected=b"v"),
            client.batch({b"l": b"v", b"k": none}),
            client.session().put(b"k", none),
        ):
            with pytest.raises(TypeError, match="give bytes"):
                await write
        with pytest.raises(TypeError, match="give bytes"):
            client.txn().put(b"k", none)
    assert node.store.executed == ["put"]


async def test_what_is_no_mapping_is_refused_by_its_name(node: Node) -> None:
    pairs: dict[Any, Any] = [(b"k", b"v")]  # type: ignore[assignment]
    async with AsyncClient([node.address]) as client:
        with pytest.raises(TypeError, match="puts is of type list; give a mapping"):
            await client.batch(pairs)
        with pytest.raises(TypeError, match="start_revisions is of type list; give a mapping"):
            client.watch(b"k", start_revisions=pairs)
    assert not node.store.executed


async def test_a_lost_write_is_unknown_and_not_repeated(node: Node) -> None:
    async with AsyncClient([node.address]) as client:
        for fault in (Fault("Put", LOST), Fault("Put", LOST, after=True)):
            node.faults.append(fault)
            with pytest.raises(errors.UnknownOutcome) as caught:
                await client.put(b"k", b"v")
            assert caught.value.outcome is errors.Outcome.UNKNOWN
        assert node.count("Put") == 2
        assert node.store.executed == ["put"]


async def test_a_refused_write_is_repeated_elsewhere(nodes: list[Node]) -> None:
    a, b, c = nodes
    a.faults.append(Fault("Put", errors.NotLeader(), leader=b.address))
    async with AsyncClient([n.address for n in (a, c, b)]) as client:
        await client.put(b"k", b"v")
        await client.put(b"k", b"w")
    assert (a.count("Put"), b.count("Put"), c.count("Put")) == (1, 2, 0)


async def test_one_endpoint_stays_the_only_one(nodes: list[Node]) -> None:
    a, b, _ = nodes
    a.faults.append(Fault("Get", errors.NotLeader(), leader=b.address))
    async with AsyncClient([a.address]) as client:
        await client.get(b"k")
    assert (a.count("Get"), b.count("Get")) == (2, 0)


async def test_fails_over_to_a_living_node(nodes: list[Node]) -> None:
    a, b, c = nodes
    a.stop()
    b.stop()
    async with AsyncClient([n.address for n in nodes]) as client:
        await client.put(b"k", b"v")
        await client.put(b"k", b"w")
        assert c.count("Put") == 2
    async with AsyncClient([a.address, b.address], timeout=0.3) as client:
        with pytest.raises(errors.Unavailable, match="can't be reached") as caught:
            await client.put(b"k", b"v")
        assert caught.value.outcome is errors.Outcome.FAILED


async def test_reads_survive_lost_connections(nodes: list[Node]) -> None:
    nodes[0].faults += [Fault("Get", LOST), Fault("Get", errors.NoLeader())]
    async with AsyncClient([n.address for n in nodes]) as client:
        assert await client.get(b"k") is None


async def test_scan_resumes_at_its_revision(nodes: list[Node]) -> None:
    a, b, _ = nodes
    async with AsyncClient([a.address, b.address]) as client:
        for number in range(10):
            await client.put(b"%d" % number, b"old")
        a.break_scan_after = 2
        rows: list[KeyValue] = []
        async for row in client.scan():
            if not rows:
                await client.put(b"9", b"new")
                await client.put(b"99", b"new")
            rows.append(row)
        assert [(r.key, r.value) for r in rows] == [(b"%d" % n, b"old") for n in range(10)]
        assert (a.count("Scan"), b.count("Scan")) == (1, 1)
        assert [r.key async for r in client.scan(b"2", b"6", limit=3, keys_only=True)] == [b"2", b"3", b"4"]
        assert [r.key async for r in client.scan(b"x")] == []


async def test_a_scan_goes_on_however_long_its_reader_took_over_a_page(nodes: list[Node]) -> None:
    """The time for the next page was the reader's, too: past `timeout` a break was not got over."""
    a, b, _ = nodes
    now = 0.0
    async with AsyncClient([a.address, b.address], clock=lambda: now) as client:
        for number in range(10):
            await client.put(b"%d" % number, b"v")
        a.break_scan_after = 1
        seen = []
        async for row in client.scan(page_size=2):
            seen.append(row.key)
            now += 1000.0
        assert seen == [b"%d" % number for number in range(10)]
        assert (a.count("Scan"), b.count("Scan")) == (1, 1)


async def test_watch_misses_and_repeats_nothing_over_breaks(nodes: list[Node]) -> None:
    a, b, _ = nodes
    async with AsyncClient([a.address, b.address]) as client:
        for number in range(5):
            await client.put(b"k", b"%d" % number)
        for node in (a, b):
            node.faults += [Fault("WatchBreakAfterEvent", LOST), Fault("WatchBreak", LOST), Fault("WatchProgress", "")]
        seen = []
        async with asyncio.timeout(10):
            async for event in client.watch(b"k", start_revision=2):
                seen.append(event)
                if len(seen) == 5:
                    await client.delete(b"k")
                    await client.put(b"other", b"")
                    await client.put(b"k", b"again")
                if len(seen) == 7:
                    break
        revisions = [e.kv.mod_revision for e in seen]
        assert revisions == [2, 3, 4, 5, 6, 7, 9]
        assert all(x < y for x, y in pairwise(revisions))
        assert [e.type for e in seen[5:]] == [EventType.DELETE, EventType.PUT]


async def test_a_watch_behind_a_write_misses_nothing_until_it_is_first_asked(node: Node) -> None:
    async with AsyncClient([node.address]) as client:
        written = await client.put(b"k", b"1")
        events = client.watch(b"k", start_revision=written.revision + 1)
        await client.put(b"k", b"2")
        assert node.count("Watch") == 0
        assert (await anext(events)).kv.value == b"2"


async def test_a_watch_leaves_a_node_that_hangs_while_there_is_patience_for_others(nodes: list[Node]) -> None:
    """The node that was asked first had all of it, and was left when its connection was given up, 15 s later."""
    a, b, _ = nodes
    a.faults.append(Fault("WatchHang", LOST))
    async with asyncio.timeout(10), AsyncClient([a.address, b.address]) as client:
        written = await client.put(b"k", b"v")
        events = client.watch(b"k", start_revision=written.revision, patience=1.2)
        assert (await anext(events)).kv.value == b"v"
    assert (a.count("Watch"), b.count("Watch")) == (1, 1)


async def test_watch_says_that_events_are_gone(node: Node) -> None:
    node.store.floor = 7
    async with AsyncClient([node.address]) as client:
        with pytest.raises(errors.Compacted) as caught:
            await anext(client.watch(b"k", start_revision=2))
        assert caught.value.floor == 7


@pytest.mark.parametrize("lasts", [3.1, 6.0])
async def test_a_watch_that_nodes_without_a_leader_begin_ends_when_patience_does(node: Node, lasts: float) -> None:
    """Each of them keeps it for 3 s before it says so, which counted as served: it went on, and was silent, for ever.
    One that lasts for longer had a leader."""
    breaks = 8
    node.faults += [Fault("WatchBreak", errors.NoLeader()) for _ in range(breaks)]

    def clock() -> float:
        return lasts * (breaks - len(node.faults))

    async def sleep(_: float) -> None:
        await asyncio.sleep(0)

    async with asyncio.timeout(20), AsyncClient([node.address], clock=clock, sleep=sleep) as client:
        written = await client.put(b"k", b"v")
        async with aclosing(client.watch(b"k", start_revision=written.revision + 1, patience=15.0)) as events:
            coming = asyncio.ensure_future(anext(events))
            if lasts < 5:
                with pytest.raises(errors.NoLeader):
                    await coming
            else:
                while node.faults:
                    await asyncio.wait((coming,), timeout=0.01)
                await client.put(b"k", b"w")
                assert (await coming).kv.value == b"w"


async def test_cluster_calls(nodes: list[Node]) -> None:
    a, b, _ = nodes
    async with AsyncClient([a.address]) as client:
        assert [k.name for k in await client.keyspaces()] == ["default"]
        assert (await client.describe_keyspace("default")).shards[0].group == 2
        with pytest.raises(errors.KeyspaceNotFound):
            await client.describe_keyspace("nowhere")
        assert (await client.shards())[0][1] == 1
        assert [m.name for m in await client.members()] == ["n1", "n2", "n3"]
        assert (await client.status(b.address)).name == "n2"
        first = await client.state_hash(2)
        assert await client.state_hash(2, first.index, b.address) == first._replace(node_id=2)
        assert (await client.order_hash(2), await client.order_hash(2)) == (first.index + 1, first.index + 2)
        a.lost_hashes = 1
        with pytest.raises(errors.HashNotFound):
            await client.state_hash(2, first.index, a.address)
        await client.transfer_leadership(2, 1)
        b.stop()
        with pytest.raises(errors.Unavailable):
            await client.status(b.address)


async def saved(client: AsyncClient) -> bytes:
    return b"".join([part.data async for part in client.snapshot(cluster_pb2.SnapshotRequest())])


async def test_a_snapshot_is_begun_by_the_next_node_where_one_is_away(nodes: list[Node]) -> None:
    a, b, c = nodes
    a.stop()
    b.faults.append(Fault("Snapshot", LOST))
    async with AsyncClient([node.address for node in nodes]) as client:
        assert await saved(client) == b"first last"
        assert (b.count("Snapshot"), c.count("Snapshot")) == (1, 1)
    async with AsyncClient([a.address], timeout=0.3) as client:
        with pytest.raises(errors.Unavailable, match="can't be reached"):
            await saved(client)


async def test_a_snapshot_that_breaks_is_begun_anew_by_nobody_else(nodes: list[Node]) -> None:
    """It would be another file; who asks again asks another node."""
    a, b, _ = nodes
    a.faults.append(Fault("SnapshotBreak", LOST))
    async with AsyncClient([a.address, b.address]) as client:
        with pytest.raises(errors.Unavailable, match="was lost"):
            await saved(client)
        assert (a.count("Snapshot"), b.count("Snapshot")) == (1, 0)
        assert await saved(client) == b"first last"
        assert (a.count("Snapshot"), b.count("Snapshot")) == (1, 1)


async def test_leases(node: Node) -> None:
    async with AsyncClient([node.address]) as client:
        lease = await client.grant_lease(10)
        await client.put(b"k", b"v", lease=lease.id)
        assert (await client.time_to_live(lease.id, keys=True)).keys == (b"k",)
        assert await client.leases() == (lease.id,)
        await client.revoke_lease(lease.id)
        with pytest.raises(errors.LeaseNotFound):
            await client.time_to_live(lease.id)


async def test_close_says_what_became_of_what_was_under_way(node: Node) -> None:
    client = AsyncClient([node.address])
    session = client.session()
    await session.put(b"k", b"v")
    with node.store.lock:  # nothing is answered
        calls = [
            asyncio.create_task(call) for call in (client.put(b"k", b"w"), session.put(b"k", b"w"), client.get(b"k"))
        ]
        events = asyncio.create_task(anext(client.watch(b"k")))
        await asyncio.to_thread(wait_until, lambda: len(node.calls) == 7)
        await client.close()
        found = await asyncio.gather(*calls, events, return_exceptions=True)
    unknown, closed = errors.UnknownOutcome, errors.ClientClosed
    assert [type(error) for error in found] == [unknown, unknown, closed, closed]
    await client.close()
    with pytest.raises(errors.ClientClosed):
        await client.put(b"k", b"v")
    with pytest.raises(errors.ClientClosed):
        await anext(client.scan())
    assert len(node.calls) == 7


async def test_the_loop_may_end_amid_a_scan_and_a_watch(node: Node) -> None:
    said: list[dict[str, object]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        client = AsyncClient([node.address])
        await client.put(b"k", b"v")
        streams = client.scan(), client.watch(b"k", start_revision=1)
        for stream in streams:
            await anext(stream)
        unfinished.append(streams)
        await client.close()

    unfinished: list[object] = []
    await asyncio.to_thread(asyncio.run, main())
    assert said == []


async def test_a_call_that_its_caller_cancels_stays_cancelled(node: Node) -> None:
    client = AsyncClient([node.address])
    await client.get(b"k")
    with node.store.lock:
        call = asyncio.create_task(client.get(b"k"))
        await asyncio.to_thread(wait_until, lambda: node.count("Get") == 2)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    await client.close()


async def test_wrong_words_in_a_transaction_are_refused(node: Node) -> None:
    async with AsyncClient([node.address]) as client:
        with pytest.raises(errors.InvalidArgument, match="'then' or 'else'"):
            client.txn().put(b"k", b"v", branch="thne")  # type: ignore[arg-type]
        with pytest.raises(errors.InvalidArgument, match="relation is '=='"):
            client.txn().when("version", b"k", "==", 0)  # type: ignore[arg-type]
        with pytest.raises(errors.InvalidArgument, match="target is 'mode'"):
            client.txn().when("mode", b"k", "=", 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("endpoints", [[], ["host"], [":1"], ["h:x"], ["h:1"] * 3 + [f"h:{n}" for n in range(65)]])
def test_bad_endpoints_are_refused(endpoints: list[str]) -> None:
    with pytest.raises(errors.ConfigurationError):
        AsyncClient(endpoints)

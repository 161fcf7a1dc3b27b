"""aetcd: asyncio and gRPC."""

from __future__ import annotations

import asyncio
import io
import sys

import aetcd


async def keys(client: aetcd.Client) -> None:
    """Puts, gets, ranges, deletes, replacements."""
    await client.put(b"aetcd/a", b"1")
    before = await client.put(b"aetcd/a", b"2", prev_kv=True)
    assert before.prev_kv.value == b"1"
    found = await client.get(b"aetcd/a")
    assert (found.value, found.version) == (b"2", 2)
    await client.put(b"aetcd/b", b"3")
    whole = await client.get_prefix(b"aetcd/", sort_order="descend", sort_target="key")
    assert [kv.key for kv in whole] == [b"aetcd/b", b"aetcd/a"]
    assert await client.replace(b"aetcd/a", b"2", b"4")
    assert not await client.replace(b"aetcd/a", b"2", b"5")
    assert await client.delete(b"aetcd/a") is not None
    assert await client.get(b"aetcd/a") is None
    assert (await client.delete_prefix(b"aetcd/")).deleted == 1


async def transactions(client: aetcd.Client) -> None:
    """One that holds, one that doesn't, and one in another."""
    tx = client.transactions
    held, responses = await client.transaction(
        compare=[tx.version(b"aetcd/t") == 0],
        success=[tx.put(b"aetcd/t", b"1"), tx.get(b"aetcd/t")],
        failure=[tx.delete(b"aetcd/t")],
    )
    assert held
    assert len(responses) == 2
    held, _ = await client.transaction(
        compare=[tx.value(b"aetcd/t") == b"2", tx.create(b"aetcd/t") > 0],
        success=[],
        failure=[tx.delete(b"aetcd/t")],
    )
    assert not held
    assert await client.get(b"aetcd/t") is None


async def watches(client: aetcd.Client) -> None:
    """A watch from now, one of a prefix, one from the past."""
    watch = await client.watch_prefix(b"aetcd/w", prev_kv=True)
    first = await client.put(b"aetcd/w1", b"1")
    await client.put(b"aetcd/w1", b"2")
    await client.delete(b"aetcd/w1")
    came = []
    async for event in watch:
        came.append((event.kind, event.kv.value, event.prev_kv.value if event.prev_kv else None))
        if len(came) == 3:
            break
    await watch.cancel()
    put, delete = aetcd.rtypes.EventKind.PUT, aetcd.rtypes.EventKind.DELETE
    assert came == [(put, b"1", b""), (put, b"2", b"1"), (delete, b"", b"2")] or came == [
        (put, b"1", None),
        (put, b"2", b"1"),
        (delete, b"", b"2"),
    ], came
    event = await client.watch_once(b"aetcd/w1", timeout=10, start_revision=first.header.revision)
    assert event.kv.value == b"1"


async def leases(client: aetcd.Client) -> None:
    """Grant, attach, renew, look, revoke."""
    lease = await client.lease(60)
    await client.put(b"aetcd/l", b"1", lease=lease)
    assert (await lease.refresh()).TTL == 60
    info = await client.get_lease_info(lease.id)
    assert info.grantedTTL == 60
    assert list(info.keys) == [b"aetcd/l"]
    await lease.revoke()
    assert await client.get(b"aetcd/l") is None


async def locks(client: aetcd.Client) -> None:
    """Two who want one."""
    one, two = client.lock(b"aetcd/lock", ttl=30), client.lock(b"aetcd/lock", ttl=30)
    assert await one.acquire()
    waiting = asyncio.create_task(two.acquire(timeout=20))
    assert await one.is_acquired()
    assert await one.release()
    assert await waiting
    assert await two.release()


async def upkeep(client: aetcd.Client) -> None:
    """Status, members, hash, alarms, compaction, a snapshot."""
    status = await client.status()
    members = [member async for member in client.members()]
    assert len(members) == 3
    assert status.leader.id in {member.id for member in members}
    put = await client.put(b"aetcd/c", b"1")
    await client.compact(put.header.revision, physical=True)
    assert [alarm async for alarm in client.list_alarms()] == []
    await client.hash()
    await client.defragment()
    file = io.BytesIO()
    await client.snapshot(file)
    assert len(file.getvalue()) > 32


async def main() -> None:
    """All of it."""
    host, _, port = sys.argv[1].split(",")[0].rpartition(":")
    async with aetcd.Client(host=host, port=int(port)) as client:
        for part in (keys, transactions, watches, leases, locks, upkeep):
            await asyncio.wait_for(part(client), 30)


if __name__ == "__main__":
    asyncio.run(main())

"""Backups of a keyspace that is dropped while it is saved."""

from __future__ import annotations

from contextlib import AsyncExitStack, aclosing
from io import BytesIO

import pytest

from nebuladb.api import backup as module
from nebuladb.api.backup import Views, backup
from nebuladb.client import AsyncClient
from nebuladb.errors import NebulaError, TooManyRequests, Unavailable
from nebuladb.node.backup import examine
from nebuladb.pb.nebula.v1 import cluster_pb2
from nebuladb.shard import Descriptor
from tests.unit.api.served import Served
from tests.unit.node.lone import SECONDS


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize("pieces", range(1, 14))
async def test_a_keyspace_that_is_dropped_meanwhile_is_left_out_and_the_rest_is_whole(
    served: Served, pieces: int, anew: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is dropped before, between and behind its shards, and perhaps made anew with others. A shard has three."""
    monkeypatch.setattr(module, "PIECE_BYTES", 1)
    async with AsyncClient([served.address], timeout=SECONDS) as client:
        await client.create_keyspace("a", "hash", shards=2)
        await client.create_keyspace("b", "hash", shards=2)
        data, left = b"", pieces
        async for piece in backup(served.backend, cluster_pb2.SnapshotRequest(), Views(served.backend, SECONDS)):
            data += piece.data
            left -= 1
            if not left:
                await client.drop_keyspace("a")
                if anew:
                    await client.create_keyspace("a", "single")
    reader, parts = examine(BytesIO(data))
    names = [part.descriptor.keyspace for part in parts]
    assert names == ["default", "etcd", *["a"] * (0 if reader.gone else 2), "b", "b"]
    assert reader.gone == ({"a"} if pieces < 10 else set())


async def test_a_shard_that_cannot_be_read_and_was_not_dropped_ends_the_backup(
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    views = Views(served.backend, SECONDS)
    current = views.current

    async def broken(shard: Descriptor) -> object:
        if shard.keyspace == "etcd":
            raise Unavailable("it stumbled")
        return await current(shard)

    monkeypatch.setattr(views, "current", broken)
    with pytest.raises(NebulaError, match="stumbled"):
        async for _ in backup(served.backend, cluster_pb2.SnapshotRequest(), views):
            pass


async def test_a_node_sends_few_backups_at_a_time_however_slowly_their_clients_read(served: Served) -> None:
    """Twenty whose clients read nothing kept 1.5 GB of replaced tables, 350 of them open, and a memtable each."""
    request = cluster_pb2.SnapshotRequest()
    async with AsyncClient([served.address], timeout=0.5) as client, AsyncExitStack() as slow:
        for _ in range(module.MAX_BACKUPS):
            pieces = await slow.enter_async_context(aclosing(backup(served.backend, request, Views(served.backend, 5))))
            assert (await anext(pieces)).data
        with pytest.raises(TooManyRequests, match="try again when one is done"):
            await anext(backup(served.backend, request, Views(served.backend, 5)))
        with pytest.raises(TooManyRequests):
            await anext(client.snapshot(request))
        await slow.aclose()
        assert [piece async for piece in client.snapshot(request)]
    assert not served.backend.backups

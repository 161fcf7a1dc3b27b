"""Keyspaces that others drop while they are made."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from nebuladb.api import keyspace as module
from nebuladb.api.drive import until
from nebuladb.client import AsyncClient
from nebuladb.errors import UnknownOutcome
from nebuladb.ids import META_GROUP
from nebuladb.node.read_lease import ReadLease
from nebuladb.pb.nebula.v1 import keyspace_pb2
from tests.unit.api.served import Served
from tests.unit.node.lone import SECONDS


async def test_who_creates_a_keyspace_that_is_dropped_meanwhile_is_told_so(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was an INTERNAL error, a KeyError's; or it waited for leaders that there would never be."""
    request = keyspace_pb2.KeyspaceCreateRequest(name="k", partitioning=keyspace_pb2.HASH, shards=2)
    context = SimpleNamespace(time_remaining=lambda: SECONDS)
    async with AsyncClient([served.address], timeout=SECONDS) as other:

        async def drop(*args: Any) -> None:
            monkeypatch.setattr(module, "until", until)
            await other.drop_keyspace("k")
            await until(*args)

        monkeypatch.setattr(module, "until", drop)
        with pytest.raises(UnknownOutcome, match="somebody dropped it"):
            await module.KeyspaceService(served.backend).Create(request.SerializeToString(), context)


async def test_who_drops_a_keyspace_waits_out_the_lease_by_which_it_may_be_read_elsewhere(served: Served) -> None:
    """A leader that was cut off, and hadn't heard of it, went on answering reads after the drop was acknowledged."""
    context = SimpleNamespace(time_remaining=lambda: SECONDS)
    time = asyncio.get_running_loop().time
    async with AsyncClient([served.address], timeout=SECONDS) as client:
        await client.create_keyspace("k", "single")
    served.node.host.replicas[META_GROUP].lease = ReadLease(400)
    for dropped in (True, False):
        request = keyspace_pb2.KeyspaceDropRequest(name="k")
        begun = time()
        raw = await module.KeyspaceService(served.backend).Drop(request.SerializeToString(), context)
        assert keyspace_pb2.KeyspaceDropResponse.FromString(raw).dropped is dropped
        assert time() - begun >= 0.5, "by the quickest clock; whoever dropped it may have done so just now"

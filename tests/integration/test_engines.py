"""The product on its second engine, and on both in one cluster. Everything else here runs on the first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from nebuladb.client import AsyncClient
from nebuladb.errors import InvalidArgument
from nebuladb.rpc.engine import VARIABLE
from tests.integration.cluster import Cluster

SECONDS = 60.0
Place = Callable[[int], Mapping[str, str]]
PLACES: list[tuple[str, Place]] = [
    ("grpcio", lambda _: {VARIABLE: "grpcio"}),
    ("mixed", lambda node: {VARIABLE: "grpcio" if node == 1 else "nebula"}),
]


@pytest.fixture(params=[place for _, place in PLACES], ids=[name for name, _ in PLACES])
def placed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    """Three ready nodes of the engines that are named."""
    with Cluster(tmp_path, node_environ=request.param) as nodes:
        nodes.start()
        nodes.wait_ready()
        yield nodes


@pytest.mark.parametrize("client_engine", ["nebula", "grpcio"])
async def test_clients_of_either_engine_read_write_watch_and_survive_a_leader(
    placed: Cluster, client_engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, client_engine)
    async with AsyncClient(placed.endpoints, timeout=SECONDS) as client:
        first = await client.put(b"key", b"0")
        changes: list[bytes] = []

        async def watches() -> None:
            async for event in client.watch(b"key", start_revision=first.revision):
                changes.append(event.kv.value)
                if event.kv.value == b"2":
                    return

        watching = asyncio.create_task(watches())
        await client.put(b"key", b"1")
        with pytest.raises(InvalidArgument):  # an error with its details came over
            await client.put(b"", b"no key")
        leader = await asyncio.to_thread(placed.leader)
        await asyncio.to_thread(placed.kill, leader)
        async with client.session() as session:
            await session.put(b"key", b"2")
        await asyncio.wait_for(watching, SECONDS)
        assert changes == [b"0", b"1", b"2"]
        found = await client.get(b"key")
        assert found is not None
        assert (found.value, found.version) == (b"2", 3)

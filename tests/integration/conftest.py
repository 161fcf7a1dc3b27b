"""Clusters for tests: one that many share, and one of a test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from nebuladb.client import AsyncClient
from tests.integration.cluster import Cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three ready nodes for all tests that leave them as they are. What others wrote is there."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as nodes:
        nodes.start()
        nodes.wait_ready()
        yield nodes


@pytest.fixture
def fresh_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Three ready, empty nodes for one test, which may kill them."""
    with Cluster(tmp_path) as nodes:
        nodes.start()
        nodes.wait_ready()
        yield nodes


@pytest_asyncio.fixture
async def client(cluster: Cluster) -> AsyncIterator[AsyncClient]:
    """A client of all nodes of `cluster`."""
    async with AsyncClient(cluster.endpoints) as connected:
        yield connected


@pytest_asyncio.fixture
async def fresh_client(fresh_cluster: Cluster) -> AsyncIterator[AsyncClient]:
    """A client of all nodes of `fresh_cluster`."""
    async with AsyncClient(fresh_cluster.endpoints) as connected:
        yield connected

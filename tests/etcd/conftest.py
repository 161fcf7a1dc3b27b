"""Servers for the tests of single lines: ours, and, to test the tests, a real etcd."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.etcd.client import Client
from tests.etcd.servers import ETCD, Nebula, RealEtcd

_numbers = itertools.count()


@pytest.fixture(scope="package")
def nebula(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """One node of ours, for all tests that leave it serving."""
    with Nebula(tmp_path_factory.mktemp("nebula"), 1) as server, Client(server.endpoints[0]) as client:
        yield client


@pytest.fixture(scope="package")
def real_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """One member of etcd."""
    if ETCD is None:
        pytest.skip("etcd isn't installed here (Debian: etcd-server)")
    with RealEtcd(tmp_path_factory.mktemp("etcd")) as server, Client(server.endpoints[0]) as client:
        yield client


@pytest.fixture(params=["nebula", "real_etcd"])
def client(request: pytest.FixtureRequest) -> Client:
    """Of ours, and of a real etcd: what a test holds of one it must hold of the other."""
    found: Client = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="package")
def three_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nebula]:
    """Three nodes of ours, for tests that leave all of them serving."""
    with Nebula(tmp_path_factory.mktemp("three"), 3) as server:
        yield server


@pytest.fixture
def place() -> bytes:
    """A prefix of a test's own."""
    return b"test/%d/" % next(_numbers)


@pytest.fixture
def end(place: bytes) -> bytes:
    """The end of the range of `place`."""
    return place[:-1] + b"0"

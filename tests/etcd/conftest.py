"""Servers for the tests of single lines: ours, and, to test the tests, a real etcd."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import pytest

from tests.etcd.client import Client, Refused
from tests.etcd.servers import ETCD, Nebula, RealEtcd

_numbers = itertools.count()


@pytest.fixture(scope="package")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """One node of ours, for all tests of this package."""
    with Nebula(tmp_path_factory.mktemp("nebula"), 1) as server, Client(server.endpoints[0]) as client:
        yield client


@pytest.fixture(scope="package")
def one_member(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """One member of etcd, likewise."""
    if ETCD is None:
        pytest.skip("etcd isn't installed here (Debian: etcd-server)")
    with RealEtcd(tmp_path_factory.mktemp("etcd")) as server, Client(server.endpoints[0]) as client:
        yield client


def _without_leases(client: Client) -> Iterator[Client]:
    """For one test, whose leases end with it: one that expired later would make a revision in the midst of another."""
    yield client
    for lease in client.lease_ids():
        with contextlib.suppress(Refused):  # it expired just now
            client.revoke(lease)


@pytest.fixture
def nebula(one_node: Client) -> Iterator[Client]:
    """One node of ours, for tests that leave it serving."""
    yield from _without_leases(one_node)


@pytest.fixture
def real_etcd(one_member: Client) -> Iterator[Client]:
    """One member of etcd."""
    yield from _without_leases(one_member)


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

from __future__ import annotations

import socket
from typing import Any

import pytest

from nebuladb.client import AsyncClient
from nebuladb.client.endpoints import Endpoints
from nebuladb.errors import ConfigurationError
from tests.unit.client.fake import Node


@pytest.mark.parametrize("address", ["http://h:1", "h:99999", "h", "h:", "a b:1", "::1:7", "h:٣"])
def test_what_is_no_address_is_told_at_once(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"HOST:PORT|a number from 1|not a host name|an IPv6 address"):
        Endpoints([address])


def test_what_is_learned_is_the_members_of_now() -> None:
    """All that was ever learned was kept, up to a bound, beyond which new members were dropped."""
    endpoints = Endpoints(["a:1", "b:1"])
    for turn in range(100):
        members = [f"m{turn}{letter}:1" for letter in "xyz"]
        endpoints.learn([*members, "", "b:1"])
        assert endpoints.addresses == ["a:1", "b:1", *members]
        endpoints.lost("a:1", 5.0)
        endpoints.worked(members[1], after_failure=True)
        assert endpoints.current == members[1]
    endpoints.learn(["n:1"])
    assert (endpoints.addresses, endpoints.current) == (["a:1", "b:1", "n:1"], "n:1")
    endpoints.learn([])
    endpoints.lost("n:1", 9.0)
    endpoints.worked("n:1", after_failure=True)
    assert (endpoints.addresses, endpoints.current) == (["a:1", "b:1"], "a:1")


def test_a_caller_that_names_many_learns_the_members_all_the_same() -> None:
    named = [f"h{number}:1" for number in range(64)]
    endpoints = Endpoints(named)
    endpoints.learn(["m:1"])
    assert endpoints.addresses == [*named, "m:1"]


@pytest.mark.parametrize("host", ["dns", "unix", "ipv4", "ipv6"])
async def test_a_host_may_be_called_as_a_scheme_of_grpcs_is(
    node: Node, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of `dns:7379` the host 7379 was asked, at port 443, and `ipv4:7379` was a ValueError."""
    known = socket.getaddrinfo
    asked: list[str] = []

    def getaddrinfo(name: str, *args: Any, **kwargs: Any) -> list[Any]:
        asked.append(name)
        return known("127.0.0.1", *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    async with AsyncClient([f"{host}:{node.port}"]) as client:
        assert await client.get(b"k") is None
    assert host in asked

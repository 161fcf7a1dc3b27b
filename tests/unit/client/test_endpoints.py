from __future__ import annotations

import pytest

from nebuladb.client.endpoints import Endpoints
from nebuladb.errors import ConfigurationError


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

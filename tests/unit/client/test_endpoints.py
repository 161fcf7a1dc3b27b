from __future__ import annotations

import pytest

from nebuladb.client.endpoints import Endpoints
from nebuladb.errors import ConfigurationError


@pytest.mark.parametrize("address", ["http://h:1", "h:99999", "h", "h:", "a b:1", "::1:7", "h:٣"])
def test_what_is_no_address_is_told_at_once(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"HOST:PORT|a number from 1|not a host name|an IPv6 address"):
        Endpoints([address])

"""aetcd, etcd3 and etcd3gw as their users write."""

from __future__ import annotations

import pytest

from nebuladb.rpc.engine import GRPCIO, engine_of
from tests.etcd.servers import Nebula
from tests.interop.environment import INSTALLED, MISSING, run_client


@pytest.mark.skipif(not INSTALLED, reason=MISSING)
@pytest.mark.parametrize("name", ["with_aetcd", "with_etcd3", "with_etcd3gw"])
@pytest.mark.etcd(60)
def test_a_client_of_others(nodes: Nebula, name: str) -> None:
    if name == "with_etcd3gw" and engine_of().name == GRPCIO:
        pytest.skip("that engine gives no connection to a gateway")
    run_client(name, ",".join(nodes.endpoints))

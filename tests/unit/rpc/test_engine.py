"""The choice of an engine."""

from __future__ import annotations

import grpc.aio
import pytest

from nebuladb import rpc
from nebuladb.errors import ConfigurationError
from nebuladb.rpc import engine
from nebuladb.server.config import RPC_ENGINES, load


def test_ours_unless_the_environment_says_otherwise() -> None:
    assert engine.engine_of({}).server is rpc.server
    assert engine.engine_of({"NEBULA_RPC_ENGINE": ""}) is engine.DEFAULT
    assert engine.engine_of({"NEBULA_RPC_ENGINE": "grpcio"}).insecure_channel is grpc.aio.insecure_channel
    with pytest.raises(ConfigurationError, match="NEBULA_RPC_ENGINE"):
        engine.engine_of({"NEBULA_RPC_ENGINE": "carrier pigeon"})


def test_the_daemons_setting_names_the_same() -> None:
    assert tuple(engine.ENGINES) == RPC_ENGINES
    assert load({}, {}).rpc_engine == "nebula"
    assert load({}, {"NEBULA_RPC_ENGINE": "grpcio"}).rpc_engine == "grpcio"
    with pytest.raises(ConfigurationError, match="rpc-engine"):
        load({"rpc-engine": "carrier pigeon"}, {})

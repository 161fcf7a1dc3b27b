"""Which gRPC carries the product: ours, or ``grpc.aio`` as a second one. Both speak the same wire, so nodes and
clients of either work together."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import grpc.aio

from nebuladb.errors import ConfigurationError
from nebuladb.rpc.channel import insecure_channel
from nebuladb.rpc.serving import server

NEBULA: Final = "nebula"
GRPCIO: Final = "grpcio"
VARIABLE: Final = "NEBULA_RPC_ENGINE"
"""The environment's word, for clients that aren't told otherwise."""


@dataclass(frozen=True, slots=True)
class Engine:
    """Makers of servers and channels, with the parameters and the surface of ``grpc.aio``'s."""

    name: str
    server: Callable[..., grpc.aio.Server]
    insecure_channel: Callable[..., grpc.aio.Channel]


ENGINES: Final[Mapping[str, Engine]] = {
    NEBULA: Engine(NEBULA, server, insecure_channel),
    GRPCIO: Engine(GRPCIO, grpc.aio.server, grpc.aio.insecure_channel),
}
DEFAULT: Final = ENGINES[NEBULA]


def engine_of(environ: Mapping[str, str] = os.environ) -> Engine:
    """The one that `NEBULA_RPC_ENGINE` names; ours if it names none. Raises `ConfigurationError`."""
    name = environ.get(VARIABLE) or NEBULA
    engine = ENGINES.get(name)
    if engine is None:
        raise ConfigurationError(f"{VARIABLE} is {name!r}; there are {', '.join(ENGINES)}")
    return engine

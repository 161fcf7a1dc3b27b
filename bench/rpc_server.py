"""The server that `bench.rpc` measures: the servicer that grpcio-tools generates from echo.proto, on either engine.

``python -m bench.rpc_server --engine nebula|grpcio --folder DIR [--key FILE --chain FILE]`` prints its port.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import uvloop

from nebuladb import rpc
from tests.rpc.echo import compiled


def servicer(folder: Path) -> tuple[Any, Any]:
    """(the servicer, what adds it to a server)."""
    messages, services = compiled(folder)

    class Echo(services.EchoServicer):  # type: ignore[misc,name-defined]
        async def Once(self, request: Any, context: Any) -> Any:  # noqa: N802 - protoc's names
            return request

        async def Many(self, request: Any, context: Any) -> Any:  # noqa: N802
            answer = messages.Text(payload=request.payload)
            for _ in range(request.number):
                yield answer

    return Echo(), services.add_EchoServicer_to_server


async def serve(engine: str, folder: Path, key: Path | None, chain: Path | None) -> None:
    """Until it is killed."""
    server: Any = rpc.server() if engine == "nebula" else grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    echo, add = servicer(folder)
    add(echo, server)
    if key is None or chain is None:
        port = server.add_insecure_port("127.0.0.1:0")
    elif engine == "nebula":
        port = server.add_secure_port("127.0.0.1:0", rpc.ssl_server_credentials([(key, chain)]))
    else:
        pair = (await asyncio.to_thread(key.read_bytes), await asyncio.to_thread(chain.read_bytes))
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


def main() -> None:
    """Serve as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=("nebula", "grpcio"), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--key", type=Path)
    parser.add_argument("--chain", type=Path)
    options = parser.parse_args()
    uvloop.run(serve(options.engine, options.folder, options.key, options.chain))


if __name__ == "__main__":
    main()

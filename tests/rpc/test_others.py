"""Programs and libraries of others: health, reflection, generated code, curl, h2load."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from nebuladb import rpc
from nebuladb.rpc.framing import frame
from tests.rpc.echo import compiled
from tests.rpc.service import path, serving

CALLS = 200_000
CURL = shutil.which("curl")
H2LOAD = shutil.which("h2load")


async def run(*command: str) -> bytes:
    """What a program says.

    Not by the loop: uvloop runs Python between fork and exec, and a collection of grpcio's garbage there never ends.
    """
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@asynccontextmanager
async def healthy(servicer: Any) -> AsyncIterator[Any]:
    """A stub of a server with `servicer`, once its checks have answered."""
    server = rpc.server()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            assert (await stub.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
            assert error.value.code() == grpc.StatusCode.NOT_FOUND
            yield stub
    finally:
        await server.stop(None)


async def test_health() -> None:
    servicer: Any = health.aio.HealthServicer()
    async with healthy(servicer) as stub:
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="x"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        await servicer.set("x", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()


async def test_health_written_for_threads() -> None:
    async with healthy(health.HealthServicer()):
        pass


async def test_reflection() -> None:
    server = rpc.server()
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    reflection.enable_server_reflection((health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    def look() -> tuple[list[str], str]:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            return sorted(database.get_services()), database.FindFileContainingSymbol(health.SERVICE_NAME).name

    try:
        services, file = await asyncio.to_thread(look)
        assert health.SERVICE_NAME in services
        assert file == "grpc_health/v1/health.proto"
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            call = stub.ServerReflectionInfo()
            for _ in range(3):
                await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
                assert len((await call.read()).list_services_response.service) == 2
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
    finally:
        await server.stop(None)


async def test_generated_code(tmp_path: Path) -> None:
    messages, services = compiled(tmp_path)

    class Echo(services.EchoServicer):  # type: ignore[misc,name-defined]
        async def Once(self, request: Any, context: Any) -> Any:  # noqa: N802 - protoc's names
            return messages.Text(text=request.text, number=request.number + 1)

        async def Many(self, request: Any, context: Any) -> Any:  # noqa: N802
            for number in range(request.number):
                yield messages.Text(text=request.text, number=number)

    server = rpc.server()
    services.add_EchoServicer_to_server(Echo(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = services.EchoStub(channel)
            assert await stub.Once(messages.Text(text="ü", number=1)) == messages.Text(text="ü", number=2)
            got = [part.number async for part in stub.Many(messages.Text(number=100))]
            assert got == list(range(100))
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.Gather(iter([messages.Text()]))  # generated code's own answer
            assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED
    finally:
        await server.stop(None)


@pytest.mark.skipif(CURL is None, reason="no curl here")
async def test_curl(tmp_path: Path) -> None:
    body, got = tmp_path / "body", tmp_path / "got"
    body.write_bytes(frame(b"from curl"))
    async with serving() as (address, _):
        head = await run(
            *("curl", "-sS", "--http2-prior-knowledge", "-D", "-", "-o", str(got), "--data-binary", f"@{body}"),
            *("-H", "content-type: application/grpc", "-H", "te: trailers", f"http://{address}{path('Echo')}"),
        )
        assert head.startswith(b"HTTP/2 200")
        assert b"grpc-status: 0" in head
        assert got.read_bytes() == frame(b"from curl")
        answer = await run(
            "curl", "-sS", "--http2-prior-knowledge", "-o", str(got), "-w", "%{http_code}", f"http://{address}/"
        )
        assert answer == b"405"


@pytest.mark.skipif(H2LOAD is None, reason="no h2load here (Debian: nghttp2-client)")
async def test_h2load(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """200,000 calls on production's loop, fewer on the other one."""
    calls = CALLS if "uvloop" in request.node.name else CALLS // 10
    body = tmp_path / "body"
    body.write_bytes(frame(bytes(32)))
    async with serving() as (address, server):
        out = await run(
            *("h2load", "-n", str(calls), "-c", "8", "-m", "32", "-d", str(body), "-H", "te: trailers"),
            *("-H", "content-type: application/grpc", f"http://{address}{path('Echo')}"),
        )
        text = out.decode()
        assert re.search(rf"{calls} succeeded, 0 failed, 0 errored, 0 timeout", text), text
        assert re.search(rf"{calls} 2xx, 0 3xx, 0 4xx, 0 5xx", text), text
        assert f"({calls * 37}) data" in text, text
        assert server.calls == 0

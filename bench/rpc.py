"""The transport against ``grpc.aio``: the same generated servicer, the same bytes, the same client, in one run.

``python -m bench.rpc [--rounds 5] [--seconds 2]``: servers have processes of their own, on uvloop; rounds take turns;
figures are medians, and the ratio is what counts. Every payload that comes back is compared. The last line on stdout
is of key=value pairs.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc.aio
import uvloop

from bench.idle import core_seconds
from bench.rpc_load import Load
from nebuladb import rpc
from nebuladb.rpc.framing import frame
from tests.rpc.certificates import OPENSSL, Authority
from tests.rpc.echo import compiled

ENGINES: Final = ("nebula", "grpcio")
CONNECTIONS: Final = 8
IN_FLIGHT: Final = 8
STREAM: Final = 100_000
PAYLOAD: Final = bytes(range(256))
"""Of a unary call: the size of DESIGN's values."""
SMALL: Final = bytes(16)
ONCE: Final = "/nebula.test.Echo/Once"
MANY: Final = "/nebula.test.Echo/Many"


class Process(NamedTuple):
    """Of a server."""

    pid: int
    port: int


class Server(NamedTuple):
    """An engine's two servers."""

    engine: str
    plain: Process
    secure: Process | None

    @property
    def port(self) -> int:
        return self.plain.port

    def core_seconds(self) -> float:
        """What both have used of the processor."""
        return sum(core_seconds(process.pid) for process in (self.plain, self.secure) if process is not None)


class Result(NamedTuple):
    """What one measurement saw."""

    rate: float
    """A second."""
    units: int
    """Calls or messages that the server was asked for in all, warming up included."""


class Case(NamedTuple):
    """One measurement, for each engine in turn; larger is better."""

    name: str
    unit: str
    bar: str
    measure: Callable[[Server, float], Coroutine[Any, Any, Result]]


@contextmanager
def server(engine: str, folder: Path, *more: str) -> Iterator[Process]:
    """A server of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.rpc_server", "--engine", engine, "--folder", str(folder), *more],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield Process(process.pid, int(process.stdout.readline()))
    finally:
        process.kill()
        process.communicate()


class Bench:
    """All cases."""

    def __init__(self, folder: Path, authority: Authority | None) -> None:
        self.folder = folder
        self._messages, self._services = compiled(folder)
        self._once = frame(self._messages.Text(payload=PAYLOAD, number=7).SerializeToString())
        self._many = frame(self._messages.Text(payload=SMALL, number=STREAM).SerializeToString())
        self._streamed = frame(self._messages.Text(payload=SMALL).SerializeToString()) * STREAM
        self._trust: ssl.SSLContext | None = None
        if authority is not None:
            self._trust = ssl.create_default_context(cafile=str(authority.certificate))
            self._trust.set_alpn_protocols(["h2"])

    def cases(self) -> list[Case]:
        found = [
            Case("unary", "calls/s", ">= 10", self.unary),
            Case("lone", "calls/s", ">= 2.5", self.lone),
            Case("stream", "messages/s", ">= 5", self.stream),
            Case("client", "calls/s", ">= 3", self.client),
        ]
        if self._trust is not None:
            found.append(Case("tls", "calls/s", ">= 4", self.tls))
        if shutil.which("h2load") is not None:
            found.append(Case("h2load", "calls/s", ">= 10", self.h2load))
        return found

    async def _echo(self, port: int, connections: int, in_flight: int, seconds: float, trust: Any = None) -> Result:
        load = Load(port, ONCE, self._once, self._once, trust)
        await load.connect(connections, in_flight)
        await load.run(seconds / 10)
        rate = await load.run(seconds)
        load.close()
        return Result(rate, load.total)

    async def unary(self, to: Server, seconds: float) -> Result:
        return await self._echo(to.port, CONNECTIONS, IN_FLIGHT, seconds)

    async def lone(self, to: Server, seconds: float) -> Result:
        return await self._echo(to.port, 1, 1, seconds)

    async def tls(self, to: Server, seconds: float) -> Result:
        assert to.secure is not None
        return await self._echo(to.secure.port, CONNECTIONS, IN_FLIGHT, seconds, self._trust)

    async def stream(self, to: Server, seconds: float) -> Result:
        """One stream of 100,000 messages."""
        load = Load(to.port, MANY, self._many, self._streamed, None)
        await load.connect(1, 1)
        rate = await load.run(seconds, calls=1)
        load.close()
        return Result(rate * STREAM, load.total * STREAM)

    async def client(self, to: Server, seconds: float) -> Result:
        """Each engine's own Python client against its own server, 64 calls in flight on one channel."""
        target = f"127.0.0.1:{to.port}"
        channel: Any = rpc.insecure_channel(target) if to.engine == "nebula" else grpc.aio.insecure_channel(target)
        done, request = 0, self._messages.Text(payload=PAYLOAD, number=7)
        until = time.perf_counter() + seconds

        async def calls(once: Any) -> None:
            nonlocal done
            while time.perf_counter() < until:
                assert await once(request) == request
                done += 1

        async with channel:
            stub = self._services.EchoStub(channel)
            began = time.perf_counter()
            await asyncio.gather(*(calls(stub.Once) for _ in range(CONNECTIONS * IN_FLIGHT)))
            return Result(done / (time.perf_counter() - began), done)

    async def h2load(self, to: Server, seconds: float) -> Result:
        """A client in C; it counts answers and bytes, and compares nothing."""
        body = self.folder / "body"
        await asyncio.to_thread(body.write_bytes, self._once)
        calls = 20_000 if to.engine == "grpcio" else 100_000
        process = await asyncio.create_subprocess_exec(
            *("h2load", "-n", str(calls), "-c", str(CONNECTIONS), "-m", str(IN_FLIGHT), "-d", str(body)),
            *("-H", "te: trailers", "-H", "content-type: application/grpc", f"http://127.0.0.1:{to.port}{ONCE}"),
            stdout=asyncio.subprocess.PIPE,
        )
        out = (await process.communicate())[0].decode()
        assert f"{calls} succeeded, 0 failed" in out, out
        assert f"({calls * len(self._once)}) data" in out, out
        found = re.search(r"([\d.]+) req/s", out)
        assert found is not None
        return Result(float(found[1]), calls)


def compare(case: Case, servers: list[Server], rounds: int, seconds: float) -> list[str]:
    """Measure one case in turns, print a line of it, and return it as key=value pairs."""
    rates: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    costs: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for _ in range(rounds):
        for to in servers:
            before = to.core_seconds()
            result = uvloop.run(case.measure(to, seconds))
            rates[to.engine].append(result.rate)
            costs[to.engine].append((to.core_seconds() - before) / result.units * 1e6)
    ours, theirs = (statistics.median(rates[engine]) for engine in ENGINES)
    ratio = statistics.median(a / b for a, b in zip(*(rates[engine] for engine in ENGINES), strict=True))
    cost, other = (statistics.median(costs[engine]) for engine in ENGINES)
    print(
        f"{case.name:7} nebula {ours:10,.0f}  grpcio {theirs:8,.0f} {case.unit:10} ratio {ratio:6.2f} (bar {case.bar})"
        f"   server's CPU {cost:7.1f} and {other:7.1f} µs each, ratio {other / max(cost, 0.01):5.1f}",
        flush=True,
    )
    name = case.name
    return [
        *(f"{name}={ours:.0f}", f"{name}_grpcio={theirs:.0f}", f"{name}_ratio={ratio:.2f}"),
        *(f"{name}_cpu_us={cost:.1f}", f"{name}_cpu_us_grpcio={other:.1f}"),
    ]


def main() -> None:
    """Measure, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--only", default="", help="names of cases, with commas")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        authority = Authority(folder) if OPENSSL is not None else None
        bench = Bench(folder, authority)
        secure: list[str] = []
        if authority is not None:
            key, chain = authority.issue("server")
            secure = ["--key", str(key), "--chain", str(chain)]
        servers = [
            Server(
                engine,
                stack.enter_context(server(engine, folder)),
                stack.enter_context(server(engine, folder, *secure)) if secure else None,
            )
            for engine in ENGINES
        ]
        pairs: list[str] = []
        for case in bench.cases():
            if options.only and case.name not in options.only.split(","):
                continue
            pairs += compare(case, servers, options.rounds, options.seconds)
        print(*pairs)


if __name__ == "__main__":
    main()

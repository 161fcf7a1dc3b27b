"""What the transport is worth to the product: puts and gets over ``grpc.aio`` and over our own, in turns.

``python -m bench.engines`` starts two clusters of three nodes, one for each engine, and drives them in alternating
rounds with as many calls in flight, spread over all nodes by clients of the same engine. One cluster is loaded at a
time; an idle one costs a few per cent of a core. Prints rates, and the CPU time of the nodes a call (from ``/proc``),
and at the end the median ratios ours : grpc.aio of both.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from bench.idle import core_seconds
from bench.load import Call, drive
from nebuladb.client import AsyncClient
from nebuladb.rpc.engine import GRPCIO, NEBULA, VARIABLE
from tests.integration.cluster import Cluster

VALUE: Final = b"x" * 256
KEYS: Final = 10_000
TIMEOUT: Final = 30.0
WAYS: Final = ("put", "get")


class Round(NamedTuple):
    """Calls per second, and microseconds of the three nodes' CPUs a call."""

    rate: float
    cpu: float


class Served:
    """A cluster on one engine, and its clients, one a node."""

    def __init__(self, folder: Path, engine: str) -> None:
        self.engine = engine
        self.cluster = Cluster(folder, environ={VARIABLE: engine})
        self.clients: list[AsyncClient] = []

    def start(self) -> None:
        """Until it serves."""
        self.cluster.start()
        self.cluster.wait_ready()

    def connect(self) -> None:
        """In the loop that the clients live in."""
        os.environ[VARIABLE] = self.engine
        self.clients = [AsyncClient([one], timeout=TIMEOUT) for one in self.cluster.endpoints]

    def cpu(self) -> float:
        """Seconds of CPU that the nodes have used."""
        return sum(core_seconds(self.cluster.pid(node)) for node in self.cluster.all)

    async def round(self, way: str, seconds: float, in_flight: int) -> Round:
        """`in_flight` workers for `seconds`."""
        calls: list[Call] = [
            partial(client.put, value=VALUE) if way == "put" else client.get for client in self.clients
        ]
        began, used = time.monotonic(), self.cpu()
        done = await drive(calls, KEYS, seconds, in_flight)
        return Round(done / (time.monotonic() - began), (self.cpu() - used) / done * 1e6)


async def run(served: list[Served], rounds: int, seconds: float, in_flight: int) -> None:
    """All rounds; the medians come last."""
    for one in served:
        one.connect()
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    costs: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in WAYS:
            found = {
                one.engine: await one.round(way, seconds, in_flight)
                for one in (served if number % 2 else reversed(served))
            }
            ours, theirs = found[NEBULA], found[GRPCIO]
            rates[way].append(ours.rate / theirs.rate)
            costs[way].append(ours.cpu / theirs.cpu)
            print(
                f"round {number + 1}: {way}/s grpc.aio {theirs.rate:.0f}, ours {ours.rate:.0f}; "
                f"CPU us of three nodes a {way} {theirs.cpu:.0f}, {ours.cpu:.0f}",
                flush=True,
            )
    for one in served:
        for client in one.clients:
            await client.close()
    medians = (
        f"{way}={statistics.median(rates[way]):.2f} {way}_cpu={statistics.median(costs[way]):.2f}" for way in WAYS
    )
    print(f"in_flight={in_flight}", *medians)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--in-flight", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        served = [Served(Path(folder) / engine, engine) for engine in (NEBULA, GRPCIO)]
        with served[0].cluster, served[1].cluster:
            for one in served:
                one.start()
            asyncio.run(run(served, options.rounds, options.seconds, options.in_flight))


if __name__ == "__main__":
    main()

"""What shards that nobody uses cost beside one that is busy.

``python -m bench.busy --groups 1000`` runs two nodes in this process, each alone, one with the founding groups only and
one with so many groups more, and puts to `default` in each by turns. The last line has the medians: microseconds of CPU
a put, log flush included, and the ratio many : few, which is 1 if groups cost what is busy and not what exists.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

from nebuladb.ids import DEFAULT_GROUP, META_GROUP
from nebuladb.kv.command import Command, Kind
from nebuladb.node.identity import Founder, Founding, Identity
from nebuladb.node.keyspaces import Spec, create_step
from nebuladb.node.node import Node
from nebuladb.node.pump import Pump
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.server.clock import SystemClock
from nebuladb.server.metrics import Metrics
from nebuladb.shard import Partitioning
from nebuladb.storage.log import LogStore
from nebuladb.storage.rocks import RocksEngine

NODE: Final = 11
FOUNDING_GROUPS: Final = 3
KEYS: Final = 10_000
IN_FLIGHT: Final = 8
"""Few, so that a put pays for a good part of a turn."""
PATIENCE: Final = 60.0
SHOWN: Final = 25


class Nowhere:
    """There is no other node."""

    def send(self, node: int, frame: bytes) -> None: ...
    def flush(self) -> None: ...


class Alone:
    """One node with its pump."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._log = LogStore(RocksEngine.open_log(directory / "raft"))
        self._data = RocksEngine.open_data(directory / "data")
        founding = Founding(7, (Founder("n1", NODE, "n1:2"),))
        identity = Identity(NODE, "n1", 7)
        self.node = Node(identity, founding, 5, self._log, self._data, random.Random(1), SystemClock())
        self._pump = Pump(self.node, SystemClock(), Nowhere(), Metrics(), self._failed)

    def _failed(self, error: BaseException) -> None:
        raise error

    async def serve(self, groups: int) -> None:
        """Until it leads the founding groups, and so many more of a keyspace."""
        self._pump.start()
        await self._led(FOUNDING_GROUPS)
        while not self.node.meta.version:  # noqa: ASYNC110  # housekeeping's
            await asyncio.sleep(0.01)
        if groups:
            spec = Spec("many", Partitioning.HASH, groups)
            while (step := create_step(self.node.meta, spec)) is not None:
                await self._pump.propose(META_GROUP, Command(Kind.TXN, step), PATIENCE)
            await self._led(FOUNDING_GROUPS + groups)

    async def _led(self, groups: int) -> None:
        async with asyncio.timeout(PATIENCE):
            replicas = self.node.host.replicas
            while len(replicas) < groups or not all(replica.raft.leader for replica in replicas.values()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def puts(self, count: int) -> float:
        """Microseconds of CPU a put."""
        numbers = iter(range(count))

        async def worker() -> None:
            for number in numbers:
                request = kv_pb2.PutRequest(key=b"%d" % (number * 7919 % KEYS), value=bytes(256))
                put = Command(Kind.PUT, request.SerializeToString())
                await self._pump.propose(DEFAULT_GROUP, put, PATIENCE)

        began = time.process_time()
        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
        return (time.process_time() - began) / count * 1e6

    async def stop(self) -> None:
        """Close everything."""
        await self._pump.stop()
        self._log.close()
        self._data.close()


async def run(directory: Path, groups: int, rounds: int, puts: int, *, profile: bool) -> str:
    """The summary."""
    few, many = Alone(directory / "few"), Alone(directory / "many")
    await few.serve(0)
    # One at a time: the other's ticks would count, so it ticks in both measurements.
    await many.serve(groups)
    if profile:
        profiler = cProfile.Profile()
        profiler.enable()
        await many.puts(rounds * puts)
        profiler.disable()
        pstats.Stats(profiler).sort_stats("tottime").print_stats(SHOWN)
    found = []
    for number in range(rounds):
        pair = await few.puts(puts), await many.puts(puts)
        found.append(pair)
        print(f"round {number + 1}: {pair[0]:.1f} us among few groups, {pair[1]:.1f} us among many", flush=True)
    await few.stop()
    await many.stop()
    ratio = statistics.median(late / early for early, late in found)
    few_us, many_us = (statistics.median(column) for column in zip(*found, strict=True))
    return f"groups={groups} few_us={few_us:.1f} many_us={many_us:.1f} ratio={ratio:.2f}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--groups", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--puts", type=int, default=20_000, help="of a round, in each node")
    parser.add_argument("--profile", action="store_true", help="show where the time of the one with many goes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nebula-busy-") as scratch:
        work = run(Path(scratch), options.groups, options.rounds, options.puts, profile=options.profile)
        print(asyncio.run(work))


if __name__ == "__main__":
    main()

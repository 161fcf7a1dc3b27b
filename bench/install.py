"""A shard of 2 GiB comes to a node of 400 MiB by snapshot.

``python -m bench.install --mib 2048`` loads a shard while one of three nodes is away; then that node starts, where it
may hold `--limit` MiB (in a cgroup where one can be made), and gets the shard by snapshot while a client writes. Prints
the seconds it took, the most that the node had resident, and the longest gap between two of the leader's heartbeats
there from its start until all is in, which should be half an election timeout at most; beside it the longest absence of
the node's loop, and what of it the node itself used the core for (`nebula_loop_worst_own_seconds`). Exit code 1 if
one of the bars fails, or if the hashes differ in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from bench.confined import Confinement, peak
from nebuladb.client import AsyncClient
from nebuladb.errors import NebulaError
from nebuladb.ids import DEFAULT_GROUP
from tests.integration.cluster import Cluster
from tests.integration.pulse import Pulse
from tests.integration.test_snapshots import applied, log_start, received, sample

BATCH: Final = 64
"""Keys of one request while loading."""
LOADERS: Final = 4
TIMEOUT: Final = 120.0
INSTALL_SECONDS: Final = 1_800.0
HASH_SECONDS: Final = 600.0
WRITES_A_SECOND: Final = 50
HALF_ELECTION_SECONDS: Final = 0.25
MIB: Final = 1 << 20


def value(number: int, size: int) -> bytes:
    """That of the `number`th key: it doesn't compress."""
    return random.Random(number).randbytes(size)


async def load(cluster: Cluster, keys: int, size: int) -> None:
    """All keys, through the nodes that run."""
    starts = iter(range(0, keys, BATCH))
    async with AsyncClient([cluster.endpoints[node] for node in cluster.running], timeout=TIMEOUT) as client:

        async def worker() -> None:
            for start in starts:
                numbers = range(start, min(start + BATCH, keys))
                await client.batch({b"key/%09d" % number: value(number, size) for number in numbers})

        await asyncio.gather(*(worker() for _ in range(LOADERS)))


async def write(cluster: Cluster, seconds: list[float]) -> None:
    """Some puts a second until canceled; how long each took."""
    async with AsyncClient(cluster.endpoints, timeout=TIMEOUT) as client:
        number = 0
        while True:
            number += 1
            began = time.monotonic()
            await client.put(b"live/%d" % (number % 1_000), b"%d" % number)
            seconds.append(time.monotonic() - began)
            await asyncio.sleep(1 / WRITES_A_SECOND)


async def until_in(cluster: Cluster, node: int) -> None:
    """Until the snapshot is in and the node has caught up."""
    await asyncio.to_thread(cluster.wait_for, lambda: received(cluster, node) >= 1, "it is in", INSTALL_SECONDS)
    last = max(applied(cluster, other) for other in cluster.all)
    await asyncio.to_thread(cluster.wait_for, lambda: applied(cluster, node) >= last, "caught up", INSTALL_SECONDS)


async def same_hash(cluster: Cluster) -> bool:
    """Whether all replicas have the same state at one index."""
    async with AsyncClient(cluster.endpoints, timeout=HASH_SECONDS) as client:
        first = await client.state_hash(DEFAULT_GROUP)
        others = [await client.state_hash(DEFAULT_GROUP, first.index, endpoint) for endpoint in cluster.endpoints]
        return {first.hash} == {other.hash for other in others}


def replica_of(cluster: Cluster, node: int) -> int:
    """Its replica of the shard."""
    status = cluster.status(node) or {"groups": []}
    return next(int(group["replica"]) for group in status["groups"] if group["group"] == DEFAULT_GROUP)


async def measure(cluster: Cluster, late: int, pulse: Pulse, options: argparse.Namespace) -> tuple[str, bool]:
    """The run; its line and whether the bars hold."""
    keys = options.mib * MIB // options.value
    replica = replica_of(cluster, late)
    had = applied(cluster, late)
    cluster.kill(late)
    began = time.monotonic()
    await load(cluster, keys, options.value)
    loaded = time.monotonic() - began
    await asyncio.to_thread(
        cluster.wait_for,
        lambda: all(log_start(cluster, node) > had + 1 for node in cluster.running),
        "the logs are cut",
    )
    print(f"loaded {options.mib} MiB in {loaded:.0f} s", file=sys.stderr, flush=True)
    latencies: list[float] = []
    writer = asyncio.create_task(write(cluster, latencies))
    cluster.start(late)
    await asyncio.to_thread(cluster.wait_for, lambda: bool(pulse.beats(replica)), "it hears its leader")
    began = time.monotonic()
    waiting = asyncio.create_task(until_in(cluster, late))
    await asyncio.wait([waiting, writer], return_when=asyncio.FIRST_COMPLETED)
    ended = time.monotonic()
    await waiting
    writer.cancel()
    gap = pulse.longest(replica, pulse.beats(replica)[0], ended)
    most = peak(cluster.pid(late))
    loop, own = (sample(cluster, late, f"nebula_loop_worst{part}_seconds") for part in ("", "_own"))
    failed = sample(cluster, late, 'nebula_snapshots_total{end="failed"')
    latencies.sort()
    try:
        same = await same_hash(cluster)
    except NebulaError as error:
        print(f"no hashes: {error}", file=sys.stderr)
        same = False
    line = (
        f"mib={options.mib} keys={keys} seconds={ended - began:.1f} peak_mib={most:.0f} limit_mib={options.limit} "
        f"enforced={options.enforced} longest_gap_ms={gap * 1000:.0f} loop_ms={loop * 1000:.0f} "
        f"loop_own_ms={own * 1000:.0f} writes={len(latencies)} "
        f"write_p99_ms={latencies[len(latencies) * 99 // 100] * 1000:.0f} write_max_ms={latencies[-1] * 1000:.0f} "
        f"failed={failed:.0f} same_hash={same}"
    )
    return line, same and most <= options.limit and gap <= HALF_ELECTION_SECONDS


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mib", type=int, default=2_048, help="of values")
    parser.add_argument("--value", type=int, default=8_192, help="bytes of each")
    parser.add_argument("--limit", type=int, default=400, help="MiB that the node may have resident")
    parser.add_argument("--memory", default="256MiB", help="its budget")
    parser.add_argument("--rate", default="32MiB", help="snapshot-rate")
    parser.add_argument("--directory", type=Path, default=None, help="where there is room for six times as much")
    options = parser.parse_args()
    confinement = Confinement(options.limit * MIB)
    options.enforced = confinement.enforced
    environ = {"NEBULA_MEMORY": options.memory, "NEBULA_SNAPSHOT_RATE": options.rate}
    with tempfile.TemporaryDirectory(prefix="nebula-install-", dir=options.directory) as scratch:
        pulse = Pulse(Path(scratch) / "pulse")
        late: list[int] = []
        with Cluster(
            Path(scratch) / "nodes",
            environ=environ,
            node_environ=lambda node: pulse.environ if late == [node] else {},
            prefix=lambda node: confinement.prefix if late == [node] else (),
        ) as cluster:
            cluster.start()
            cluster.wait_ready()
            late.append((cluster.leader() + 1) % 3)
            line, good = asyncio.run(measure(cluster, late[0], pulse, options))
    confinement.close()
    print(line, flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

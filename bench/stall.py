"""How long the event loops are away while the disk is slow and while the big operations run.

``python -m bench.stall --keys 1000000`` starts three nodes under the preload library of the power-cut campaign, loads
keys, and starts the nodes anew, with cold caches. Then: puts and gets while each flush of the log takes 200 ms longer
and each read of a data table 50 ms; a range delete of all keys; a compaction over all revisions; a hash. With
``--slow`` the disk stays slow for these, too. After each it prints the worst lag of any loop since that start
(``nebula_loop_worst_seconds``; *own* is without the time when others had its core), the turns over 20 ms
(``nebula_loop_late_total``, by work) and the leader changes; then each late turn that was logged. The load's own lags
are printed, too, and count for nothing else. The last line sums up; exit code 1 if the worst own lag reached 50 ms or a
leader was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from nebuladb.client import AsyncClient
from nebuladb.errors import NebulaError
from nebuladb.ids import DEFAULT_GROUP
from tests.integration import powerfail
from tests.integration.cluster import Cluster

FLUSH_MS: Final = 200
READ_MS: Final = 50
BAR_SECONDS: Final = 0.05
SETTLED_SECONDS: Final = 5.0
"""Without a change of a leader."""
IN_FLIGHT: Final = 64
TIMEOUT: Final = 120.0
COMPACTED: Final = "superseded rows deleted"
BATCH: Final = 500
SAMPLE: Final = re.compile(r"^(nebula_[a-z_]+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


def key(number: int) -> bytes:
    """The `number`th key: spread over the order, so that neighbours were not written together."""
    return b"key/%08d" % (number * 7_368_787 % 100_000_007)


class Watcher:
    """What the nodes' metrics say."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._leaders = self.changes

    def _samples(self) -> list[tuple[str, str, float]]:
        found = []
        for node in self._cluster.running:
            _, text = self._cluster.admin(node, "/metrics")
            found += [(name, labels, float(value)) for name, labels, value in SAMPLE.findall(text)]
        return found

    def _sum(self, name: str) -> float:
        return sum(value for found, _, value in self._samples() if found == name)

    def _worst(self, name: str) -> float:
        return max(value for found, _, value in self._samples() if found == name)

    @property
    def worst(self) -> float:
        """Seconds, of all loops since their start."""
        return self._worst("nebula_loop_worst_seconds")

    @property
    def worst_own(self) -> float:
        """Likewise, less what other processes have taken."""
        return self._worst("nebula_loop_worst_own_seconds")

    @property
    def changes(self) -> int:
        """Of leaders, since the nodes' start."""
        return int(self._sum("nebula_raft_leader_changes_total"))

    @property
    def leader_changes(self) -> int:
        """Since this was made."""
        return self.changes - self._leaders

    def late(self) -> Counter[str]:
        """Late turns, by work."""
        late: Counter[str] = Counter()
        for name, labels, value in self._samples():
            if name == "nebula_loop_late_total":
                late[labels.removeprefix('work="').removesuffix('"')] += int(value)
        return late

    def rare(self, path: str) -> int:
        """How often a rare path was taken."""
        wanted = ("nebula_rare_path_total", f'name="{path}"')
        return int(sum(value for name, labels, value in self._samples() if (name, labels) == wanted))


def late_turns(cluster: Cluster, since: str) -> list[str]:
    """The late turns that the nodes have logged `since` (one a second at most), as they came; wall time beside CPU time
    and the time for which others had the core, so that a busy machine can be told from our own fault."""
    lines = []
    for node in cluster.all:
        for text in cluster.log_file(node).read_text().splitlines():
            if "the loop was late" in text and (line := json.loads(text))["timestamp"] >= since:
                parts = f"{line['cpu_ms']} of CPU, {line['no_core_ms']} without a core, {line['gc_ms']} collecting"
                numbers = f"{line['ms']} ms, {parts}"
                lines.append((line["timestamp"], f"{line['timestamp']} n{node + 1}: {numbers}: {line['work']}"))
    return [text for _, text in sorted(lines)]


def now() -> str:
    """As the nodes' logs write it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def restart(cluster: Cluster) -> None:
    """All nodes end and start again; returns when leaders have moved to where they belong."""
    cluster.stop()
    cluster.start()
    cluster.wait_ready()
    changes = -1
    while changes != (changes := Watcher(cluster).changes):
        time.sleep(SETTLED_SECONDS)


async def load(client: AsyncClient, keys: int) -> None:
    """Put all keys, some thousand in flight."""
    numbers = iter(range(0, keys, BATCH))
    rng = random.Random(1)

    async def worker() -> None:
        for first in numbers:
            await client.batch({key(number): rng.randbytes(256) for number in range(first, min(first + BATCH, keys))})

    await asyncio.gather(*(worker() for _ in range(4)))


async def mix(client: AsyncClient, keys: int, seconds: float) -> tuple[int, int, int]:
    """Puts and gets of random keys: (puts, gets, refused or timed out)."""
    done = [0, 0, 0]
    end = time.monotonic() + seconds
    rng = random.Random(2)

    async def worker(number: int) -> None:
        while time.monotonic() < end:
            name = key(rng.randrange(keys))
            try:
                if number % 2:
                    await client.put(name, bytes(256))
                    done[0] += 1
                else:
                    await client.get(name)
                    done[1] += 1
            except NebulaError:
                done[2] += 1

    await asyncio.gather(*(worker(number) for number in range(IN_FLIGHT)))
    return done[0], done[1], done[2]


async def run(
    cluster: Cluster, records: list[Path], keys: int, seconds: float, *, slow: bool
) -> tuple[float, float, int]:
    """All phases; the worst lag and the worst own lag in seconds, and the leader changes."""
    async with AsyncClient(cluster.endpoints, timeout=TIMEOUT) as client:

        async def told(phase: str, began: float, more: str = "") -> None:
            worst, own = await asyncio.to_thread(lambda: (watcher.worst, watcher.worst_own))
            changes = await asyncio.to_thread(lambda: watcher.leader_changes)
            late = await asyncio.to_thread(watcher.late)
            works = ", ".join(f"{work} {count}" for work, count in late.most_common(4))
            print(
                f"{phase}: {time.monotonic() - began:.1f} s, worst lag so far {worst * 1e3:.0f} ms, own "
                f"{own * 1e3:.0f} ms, "
                f"late turns so far: {works or 'none'}; leader changes {changes}{more}",
                flush=True,
            )

        began = time.monotonic()
        await load(client, keys)
        watcher = await asyncio.to_thread(Watcher, cluster)
        await told(f"load of {keys} keys", began)
        # What is measured begins here: with nodes that count from their start, and leaders that must stay.
        await asyncio.to_thread(restart, cluster)
        restarted = now()
        watcher = await asyncio.to_thread(Watcher, cluster)
        for path in records:
            powerfail.control(path, delay_ms=FLUSH_MS, match="/raft/", read_delay_ms=READ_MS)
        began = time.monotonic()
        puts, gets, refused = await mix(client, keys, seconds)
        waits = await asyncio.to_thread(watcher.rare, "slice waits for rows")
        await told("slow disk", began, f"; {puts} puts, {gets} gets, {refused} refused; {waits} slices waited for rows")
        for path in records if not slow else ():
            powerfail.control(path)
        began = time.monotonic()
        await client.delete(b"key/", b"key0")
        await told("range delete", began)
        began = time.monotonic()
        status = await client.status()
        revision = next(group.revision for group in status.groups if group.group == DEFAULT_GROUP)
        finished = await asyncio.to_thread(watcher.rare, COMPACTED)
        await client.compact(revision)
        while await asyncio.to_thread(watcher.rare, COMPACTED) < finished + len(cluster.running):  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        await told("compaction", began)
        began = time.monotonic()
        await client.state_hash(DEFAULT_GROUP)
        await told("hash", began)
        await asyncio.sleep(1)
        for line in late_turns(cluster, restarted):
            print(line)
        return watcher.worst, watcher.worst_own, watcher.leader_changes


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the slow disk")
    parser.add_argument("--memory", default="128MiB")
    parser.add_argument("--slow", action="store_true", help="the disk stays slow for all operations")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nebula-stall-") as scratch:
        directory = Path(scratch)
        library = powerfail.build(directory)
        if library is None:
            print("skipped: no C compiler, so a slow disk can't be simulated here")
            return 0
        records = [directory / f"n{node + 1}.synced" for node in range(3)]

        def environ(node: int) -> Mapping[str, str]:
            slow = powerfail.environ(library, records[node], cluster.data_dir(node))
            return {**slow, "SYNCSPY_READ_DELAY_MS": "0"}

        with Cluster(directory, environ={"NEBULA_MEMORY": options.memory}, node_environ=environ) as cluster:
            cluster.start()
            cluster.wait_ready()
            phases = run(cluster, records, options.keys, options.seconds, slow=options.slow)
            worst, own, changes = asyncio.run(phases)
    print(
        f"keys={options.keys} worst_lag_ms={worst * 1e3:.0f} worst_own_lag_ms={own * 1e3:.0f} leader_changes={changes}"
    )
    return 1 if own >= BAR_SECONDS or changes else 0


if __name__ == "__main__":
    sys.exit(main())

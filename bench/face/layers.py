"""Where a node's time goes, by layer: ``python -m bench.face.layers --pyspy FILE [--workload put] [--in-flight 256]``.

Three nodes are loaded as in `bench.face`, and py-spy (from PyPI, in an environment of its own) looks at the leader and
at a follower: which function holds the interpreter. A sample belongs to the innermost function of ours on its stack, so
that what a layer calls of the libraries is its own; a layer's microseconds are its share of the CPU time that the node
takes a call, which the kernel counts. On a busy machine a system call that lets others run looks longer than it is.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Final

import uvloop

from bench.face import requests
from bench.face.compare import PLAN, WARM_SECONDS
from bench.face.driver import Driver
from bench.face.ours import Ours
from bench.face.requests import KEYS
from bench.face.scene import scratch
from bench.idle import core_seconds

LAYERS: Final = (
    ("clients' connections", ("rpc/serving/", "rpc/http2/", "rpc/framing", "rpc/status")),
    ("links to the peers", ("rpc/peer", "rpc/channel/")),
    ("api: translate, check, answer", ("api/",)),
    ("pump and Host: requests, turns, batches", ("node/",)),
    ("Raft and its frames", ("raft/", "node/frame", "node/entry")),
    ("kv: apply, reads", ("kv/", "node/applier")),
    ("storage: RocksDB's writes, reads, syncs", ("storage/",)),
    ("metrics, watchdog, logs", ("server/",)),
)
"""Layer → beginnings of paths below ``nebuladb/``; the longest that fits counts."""
REST: Final = "the loop, threads' changes"
RATE: Final = 200
"""Samples a second."""
_FRAME: Final = re.compile(r"\(nebuladb/([^:)]+)")
_ENTRY: Final = "server/main"
_ASSEMBLY: Final = "server/assembly"


def layer(stack: str) -> str:
    """Of a sample: a line of py-spy's raw output, outermost function first."""
    for path in reversed(_FRAME.findall(stack)):
        if path.startswith((_ENTRY, _ASSEMBLY)):
            break
        fits = [(len(begin), name) for name, begins in LAYERS for begin in begins if path.startswith(begin)]
        if fits:
            return max(fits)[1]
    return REST


def shares(raw: str) -> Counter[str]:
    """Samples by layer."""
    found: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        found[layer(stack)] += int(count)
    return found


async def profile(ours: Ours, options: argparse.Namespace, folder: Path) -> None:
    """Load, look and print."""
    driver = Driver(ours.ports)
    await driver.connect(1)
    await driver.closed(requests.load(KEYS), 600.0, 256, calls=KEYS)
    plan = requests.plan(options.workload, PLAN, KEYS, seed=1)
    await driver.closed(plan, WARM_SECONDS, options.in_flight)
    leader = await asyncio.to_thread(ours.leader)
    watched = {"leader": leader, "follower": (leader + 1) % len(ours.pids)}
    spies = [
        await asyncio.create_subprocess_exec(
            *(options.pyspy, "record", "--gil", "--nonblocking", "--format", "raw", "--rate", str(RATE)),
            *("--duration", str(round(options.seconds)), "--output", str(folder / name), "--pid", str(ours.pids[node])),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for name, node in watched.items()
    ]
    before = [core_seconds(pid) for pid in ours.pids]
    run = await driver.closed(plan, options.seconds + 1, options.in_flight)
    used = [(core_seconds(pid) - start) / run.calls * 1e6 for pid, start in zip(ours.pids, before, strict=True)]
    for spy in spies:
        await spy.wait()
    print(f"{options.workload}, {options.in_flight} in flight: {run.rate:,.0f}/s\n")
    found = {name: shares(await asyncio.to_thread((folder / name).read_text)) for name in watched}
    print(f"| µs of CPU a {options.workload} | leader | follower |\n| --- | --- | --- |")
    for name in [*(name for name, _ in LAYERS), REST]:
        cells = (used[node] * found[side][name] / max(1, found[side].total()) for side, node in watched.items())
        print(f"| {name} | {' | '.join(f'{cell:.1f}' for cell in cells)} |")
    print(f"| all | {' | '.join(f'{used[node]:.1f}' for node in watched.values())} |")
    driver.close()


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pyspy", default="py-spy", help="its executable")
    parser.add_argument("--workload", choices=sorted(requests.PLANS), default="put")
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    with scratch(None) as (folder, stack):
        ours = stack.enter_context(Ours(folder / "nebula"))
        ours.start()
        ours.wait_ready()
        uvloop.run(profile(ours, options, folder))


if __name__ == "__main__":
    main()

"""Power-cut campaign: as crash, but what was not synced is lost too.

``python -m tests.integration.powercut --cycles 50 [--seed S] [--self-test]``. SIGKILL leaves the page cache alone, so
it can't find an acknowledgement before the sync. Here every node runs under a preloaded library that records what was
synced of each file; after SIGKILL the files are cut to that. The last line of stdout has the numbers; exit code 1 on a
violation. With --self-test the library swallows the syncs, and the exit code is 0 only if that was found. Without a C
compiler nothing is run, and the line says so.

Large values beside the checked writes, and little memory, see to it that the log goes from file to file.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from nebuladb.client import AsyncClient
from nebuladb.errors import NebulaError
from nebuladb.node.memory import MIN_MEMORY
from tests.integration import powerfail
from tests.integration.campaign import Campaign, Report
from tests.integration.cluster import Cluster
from tests.integration.crash import arguments, finish, say

SELF_TEST_CYCLES: Final = 5
EVERYBODY_SHARE: Final = 0.5
"""How often all nodes lose power at once: only then can an early acknowledgement be lost for good."""
FILLER_BYTES: Final = 128 << 10
FILLER_KEYS: Final = 16
FILLER_SECONDS: Final = 0.002
"""Between two puts of them; and how long to wait after one that failed."""
SKIPPED: Final = "skipped: no C compiler, so power cuts can't be simulated here"


def run(directory: Path, cycles: int, seed: int, library: Path, *, drop: bool = False, aloud: bool = False) -> Campaign:
    """Run the campaign in `directory` under the preload `library`.

    With `drop`, syncs are swallowed from the moment on when the cluster is ready, and every cut hits all nodes.
    """

    def records(node: int) -> Path:
        return directory / f"n{node + 1}.synced"

    def environ(node: int) -> Mapping[str, str]:
        return powerfail.environ(library, records(node), cluster.data_dir(node))

    cut_off = reverted = 0
    pages = random.Random(seed)

    def cut(nodes: list[int]) -> None:
        nonlocal cut_off, reverted
        for node in nodes:
            report = powerfail.cut(cluster.data_dir(node), records(node), pages)
            cut_off += report.lost - report.reverted
            reverted += report.reverted

    with Cluster(directory, environ={"NEBULA_MEMORY": f"{MIN_MEMORY}B"}, node_environ=environ) as cluster:
        cluster.start()
        cluster.wait_ready()
        for node in cluster.all if drop else ():
            powerfail.control(records(node), drop=1)

        async def campaign() -> Campaign:
            campaign = Campaign(
                cluster,
                seed,
                cut,
                say if aloud else lambda _: None,
                everybody_share=1.0 if drop else EVERYBODY_SHARE,
            )
            filling = asyncio.create_task(fill(cluster.endpoints, random.Random(seed)))
            await campaign.run(cycles)
            filling.cancel()
            await asyncio.wait([filling])
            if aloud:
                say(f"unsynced: {cut_off:,} bytes at files' ends, {reverted:,} amid files")
            return campaign

        return asyncio.run(campaign())


async def fill(endpoints: Sequence[str], rng: random.Random) -> None:
    """Put large values that nobody looks at, for ever."""
    async with AsyncClient(endpoints) as client:
        while True:
            with contextlib.suppress(NebulaError):
                await client.put(b"filler/%d" % rng.randrange(FILLER_KEYS), rng.randbytes(FILLER_BYTES))
            await asyncio.sleep(FILLER_SECONDS)


def caught(report: Report) -> bool:
    """Whether a run without syncs went as it must: writes were acknowledged, the power went, and it was found out."""
    return report.acknowledged > 0 and report.kills > 0 and bool(report.violations)


def main() -> int:
    """The command."""
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory(prefix="nebula-powercut-") as scratch:
        directory = options.keep or Path(scratch)
        library = powerfail.build(directory)
        if library is None:
            print(SKIPPED, flush=True)
            return 0
        cycles = SELF_TEST_CYCLES if options.self_test else options.cycles
        report = run(directory, cycles, options.seed, library, drop=options.self_test, aloud=True).report
    if not options.self_test:
        return finish(report, options.seed)
    verdict = "caught" if caught(report) else "missed"
    if report.violations:
        say(f"found: {report.violations[0]}")
    print(f"self_test={verdict} {report.line()} seed={options.seed}", flush=True)
    return 0 if caught(report) else 1


if __name__ == "__main__":
    sys.exit(main())

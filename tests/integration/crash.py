"""Crash campaign: SIGKILL of a random set of nodes under load, then restart; nothing acknowledged may be missing.

``python -m tests.integration.crash --cycles 50 [--seed S] [--self-test]``. The last line of stdout has the numbers;
exit code 1 on a violation. With --self-test one acknowledged write is taken out of what was read, and the exit code is
0 only if the checker found that.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.integration.campaign import Campaign, Report
from tests.integration.cluster import Cluster

SELF_TEST_CYCLES: Final = 1


def start(cluster: Cluster) -> None:
    """Start it and wait."""
    cluster.start()
    cluster.wait_ready()


def run(directory: Path, cycles: int, seed: int, *, aloud: bool = False) -> Campaign:
    """Run the campaign in `directory`; the result has report, history and observations."""
    with Cluster(directory) as cluster:
        start(cluster)

        async def campaign() -> Campaign:
            campaign = Campaign(cluster, seed, say=say if aloud else lambda _: None)
            await campaign.run(cycles)
            return campaign

        return asyncio.run(campaign())


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


def arguments(text: str | None) -> argparse.Namespace:
    """The campaigns' flags."""
    parser = argparse.ArgumentParser(description=(text or "").splitlines()[0])
    parser.add_argument("--cycles", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None, help="schedule of kills and operations; default: random")
    parser.add_argument("--self-test", action="store_true", help="exit 0 only if a broken variant is found")
    parser.add_argument("--keep", type=Path, default=None, help="work in this empty directory and keep it")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 32)
    return options


def finish(report: Report, seed: int) -> int:
    """Print violations and the last line; the exit code."""
    for violation in report.violations:
        say(f"violation: {violation}")
    print(f"{report.line()} seed={seed}", flush=True)
    return 1 if report.violations else 0


def main() -> int:
    """The command."""
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory(prefix="nebula-crash-") as scratch:
        cycles = SELF_TEST_CYCLES if options.self_test else options.cycles
        campaign = run(options.keep or Path(scratch), cycles, options.seed, aloud=True)
    if not options.self_test:
        return finish(campaign.report, options.seed)
    found = not campaign.report.violations and campaign.corrupted_is_found()
    print(f"self_test={'caught' if found else 'missed'} {campaign.report.line()} seed={options.seed}", flush=True)
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())

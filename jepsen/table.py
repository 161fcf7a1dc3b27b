"""``python -m jepsen.table``: many runs one after another, and their verdicts as a table for docs/testing.md.

Each pair of nemeses with the register workload, `churn` beside each of them, then each other workload with one of the
pairs. The column `faults` says how often each nemesis hurt something. The last line of stdout is key=value; the exit
code is 1 if any run's was.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence
from itertools import combinations
from typing import Final

from jepsen.verdict import parse
from jepsen.workloads import WORKLOADS

KINDS: Final = ("partition", "kill", "pause", "latency", "powercut")
FIRST: Final = "register"
COLUMNS: Final = (
    *("workload", "nemesis", "network", "seconds", "ok", "failed", "unknown", "leader_changes", "faults", "verdict"),
)


def runs() -> list[tuple[str, str]]:
    """(workload, nemeses) of each run."""
    pairs = [",".join(pair) for pair in combinations(KINDS, 2)]
    churning = [f"churn,{kind}" for kind in KINDS]
    others = [name for name in WORKLOADS if name != FIRST]
    return [
        *((FIRST, pair) for pair in (*pairs, *churning)),
        *((name, pairs[at % len(pairs)]) for at, name in enumerate(others)),
    ]


def row(cells: Sequence[str]) -> str:
    """Of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def run(workload: str, nemesis: str, arguments: Sequence[str]) -> tuple[int, str]:
    """Exit code and last line of a run. Ctrl-C reaches it, and it takes down what it built."""
    command = [sys.executable, "-m", "jepsen", "--workload", workload, "--nemesis", nemesis, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            lines = process.stdout.read().splitlines()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
        return process.wait(), lines[-1] if lines else ""


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m jepsen.table", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=100.0)
    options = parser.parse_args()
    arguments = ["--seconds", str(options.seconds), "--rate", str(options.rate)]
    print(row(COLUMNS))
    print(row(["---"] * len(COLUMNS)), flush=True)
    bad = 0
    chosen = runs()
    for workload, nemesis in chosen:
        code, line = run(workload, nemesis, arguments)
        found = parse(line) | ({} if line else {"workload": workload, "nemesis": nemesis, "verdict": "none"})
        found["faults"] = found.get("bit", "").replace(",", ", ").replace(":", " ")
        print(row([found.get(column, "") for column in COLUMNS]), flush=True)
        bad += code != 0
    print(f"runs={len(chosen)} not_valid={bad}", flush=True)
    return 1 if bad else 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

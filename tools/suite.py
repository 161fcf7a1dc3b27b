"""``make test``: the whole suite, in two runs of pytest at once, as two cores have room for.

The tests of real nodes wait, for elections and for timeouts, more than they compute; the others compute. The first run
shows its progress as ever; what the second printed follows when both have ended, and then the sum. The exit code is 0
only if both runs' are. Arguments go to both. ``pytest`` by itself runs the same tests one after another.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

ROOT: Final = Path(__file__).resolve().parent.parent
NODES: Final = "tests/integration"
HALVES: Final = ((NODES,), ("tests", f"--ignore={NODES}"))
"""Arguments of the two runs: between them they run each test once."""
OUTCOMES: Final = ("failed", "passed", "skipped", "error")


def outcomes(report: Path) -> Counter[str]:
    """Tests by outcome, of a report in JUnit's form; none if the run did not come to writing it."""
    found: Counter[str] = Counter()
    if report.exists():
        for suite in ET.parse(report).getroot().iter("testsuite"):
            failed, skipped, error, tests = (
                int(suite.attrib[name]) for name in ("failures", "skipped", "errors", "tests")
            )
            found.update(failed=failed, skipped=skipped, error=error, passed=tests - failed - skipped - error)
    return found


def line(counts: Counter[str]) -> str:
    """Of outcomes, as pytest writes them."""
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome]) or "no tests ran"


def run(halves: Sequence[Sequence[str]], root: Path = ROOT) -> int:
    """Pytest in `root` with the arguments of each half, all at once; the exit code of the first that failed, or 0."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nebula-suite-") as scratch:
        reports = [Path(scratch, f"{number}.xml") for number in range(len(halves))]
        runs: list[subprocess.Popen[bytes]] = []

        def terminate(*_: object) -> None:
            for process in runs:
                process.terminate()

        with Path(scratch, "kept.txt").open("w+b") as kept:
            for half, report in zip(halves, reports, strict=True):
                # Without the cache: each would write its own failures over the other's.
                command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}", *half]
                output = kept if runs else None
                runs.append(subprocess.Popen(command, cwd=root, stdin=subprocess.DEVNULL, stdout=output, stderr=output))
            # Ctrl-C reaches the runs themselves, which then stop their nodes; this waits until they have.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, terminate)
            codes = [process.wait() for process in runs]
            kept.seek(0)
            print(kept.read().decode(errors="replace"), flush=True)
        found = [outcomes(report) for report in reports]
    for half, code, counts in zip(halves, codes, found, strict=True):
        print(f"pytest {' '.join(half)}: {line(counts)}, exit code {code}")
    print(f"{line(sum(found, Counter()))} in {time.monotonic() - began:.2f}s", flush=True)
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(run([(*half, *sys.argv[1:]) for half in HALVES]))

"""``make test``: the whole suite, in four runs of pytest at once, as two cores have room for.

The tests of real nodes wait, for elections and for timeouts, more than they compute; the others compute. Either kind's
files are dealt to two runs. The first run shows its progress as ever; what the others printed follows when all have
ended, and then the sum. The exit code is 0 only if all runs' are. Arguments go to each. ``pytest`` by itself runs the
same tests one after another.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final
from xml.etree import ElementTree as ET

ROOT: Final = Path(__file__).resolve().parent.parent
NODES: Final = "tests/integration"
RUNS_A_KIND: Final = 2
OUTCOMES: Final = ("failed", "passed", "skipped", "error")


def parts() -> dict[str, list[str]]:
    """Files of tests by the name of the run that runs them: between them the runs run each file once."""
    files = sorted(str(file.relative_to(ROOT)) for file in Path(ROOT, "tests").rglob("test_*.py"))
    nodes = [file for file in files if file.startswith(f"{NODES}/")]
    kinds = {"nodes": nodes, "others": sorted(set(files) - set(nodes))}
    return {
        f"{kind} {number + 1} of {RUNS_A_KIND}": found[number::RUNS_A_KIND]
        for kind, found in kinds.items()
        for number in range(RUNS_A_KIND)
    }


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


def run(runs: Mapping[str, Sequence[str]], root: Path = ROOT) -> int:
    """Pytest in `root` with the arguments of each run, all at once; the exit code of the first that failed, or 0."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nebula-suite-") as scratch, ExitStack() as stack:
        reports = {name: Path(scratch, f"{name}.xml") for name in runs}
        kept: dict[str, BinaryIO] = {}
        processes: dict[str, subprocess.Popen[bytes]] = {}

        def terminate(*_: object) -> None:
            for process in processes.values():
                process.terminate()

        for name, arguments in runs.items():
            # Without the cache: each would write its own failures over the others'.
            options = ["-p", "no:cacheprovider", f"--junitxml={reports[name]}"]
            command = [sys.executable, "-m", "pytest", *options, *arguments]
            output = None
            if processes:
                output = kept[name] = stack.enter_context(Path(scratch, f"{name}.txt").open("w+b"))
            processes[name] = subprocess.Popen(
                command, cwd=root, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        # Ctrl-C reaches the runs themselves, which then stop their nodes; this waits until they have.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, terminate)
        codes = {name: process.wait() for name, process in processes.items()}
        for written in kept.values():
            written.seek(0)
            print(written.read().decode(errors="replace"), flush=True)
        found = {name: outcomes(report) for name, report in reports.items()}
    for name, code in codes.items():
        print(f"{name}: {line(found[name])}, exit code {code}")
    print(f"{line(sum(found.values(), Counter()))} in {time.monotonic() - began:.2f}s", flush=True)
    return next((code for code in codes.values() if code), 0)


if __name__ == "__main__":
    sys.exit(run({name: [*files, *sys.argv[1:]] for name, files in parts().items()}))

"""``make interop-upstream``: etcd's own integration tests of its API and its Go client, against clusters of nebulad.

They come with Debian's golang-etcd-server-dev and are compiled as they are there, but for the file that starts members
in the test's process: ours (``clusters.go``, ``members.go``) starts nebulad, that of ``NEBULAD`` or the environment's.
What isn't about the API as others see it is left out, by file or by test, each with its reason (``scope.py``). Every
test runs in a process of its own, which ends with all that it started.

    python -m tests.interop.upstream [--only REGEX] [--keep DIR] [--all]

One line a test, then one of ``key=value`` pairs; exit 1 if a test failed, 2 if there is nothing to run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.interop.upstream.scope import FILES, PACKAGES, TESTS

HERE: Final = Path(__file__).parent
GOPATH: Final = Path("/usr/share/gocode")
IMPORT: Final = "go.etcd.io/etcd/tests/integration"
SECONDS: Final = 120.0
"""For one test."""
NEEDED: Final = "etcd's tests, or Go, aren't installed: apt-get install golang-go golang-etcd-server-dev"


class Suite:
    """The tests, compiled."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        source = GOPATH / "src" / IMPORT
        replaced = {source / "cluster.go": HERE / "clusters.go", source / "cluster_proxy.go": HERE / "members.go"}
        overlay = {str(file): str(ours) for file, ours in replaced.items()}
        overlay |= {str(source / file): "" for file in FILES}
        self._overlay = directory / "overlay.json"
        self._overlay.write_text(json.dumps({"Replace": overlay}))
        self._environment = os.environ | {
            "GO111MODULE": "off",
            "GOPATH": str(GOPATH),
            "GOCACHE": os.environ.get("GOCACHE", str(directory / "cache")),
            "NEBULAD": os.environ.get("NEBULAD", str(Path(sys.executable).with_name("nebulad"))),
        }

    def compiled(self, package: str) -> Path:
        """The binary of a package's tests."""
        binary = self._directory / f"{package.replace('/', '-') or 'integration'}.test"
        command = ["go", "test", "-c", "-vet=off", "-overlay", str(self._overlay), "-o", str(binary)]
        subprocess.run([*command, f"{IMPORT}/{package}".rstrip("/")], check=True, env=self._environment)
        return binary

    def tests(self, binary: Path) -> list[str]:
        """The names of its tests and examples."""
        listed = subprocess.run(
            [binary, "-test.list", "."], check=True, capture_output=True, text=True, env=self._environment
        )
        return [name for name in listed.stdout.split() if name.startswith(("Test", "Example"))]

    def run(self, binary: Path, test: str, log: Path) -> str:
        """``ok``, ``skipped`` or ``FAILED``; what it said is in `log`."""
        command = [str(binary), "-test.run", f"^{test}$", "-test.v"]
        with log.open("wb") as said, tempfile.TemporaryDirectory(dir=self._directory) as scratch:
            environment = self._environment | {"TMPDIR": scratch}
            process = subprocess.Popen(
                command, stdout=said, stderr=said, env=environment, cwd=scratch, start_new_session=True
            )
            try:
                process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                said.write(f"\nended after {SECONDS:.0f} s\n".encode())
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # and the nodes that it left
                process.wait()
        if process.returncode:
            return "FAILED"
        text = log.read_bytes()
        return "skipped" if b"--- SKIP" in text and b"--- PASS" not in text else "ok"


def outcomes(suite: Suite, logs: Path, only: str, *, everything: bool) -> Iterator[tuple[str, str]]:
    """Each test's name and what became of it, as it ends."""
    for package in PACKAGES:
        binary = suite.compiled(package)
        for test in suite.tests(binary):
            if not re.search(only, test):
                continue
            if test in TESTS and not everything:
                yield test, f"not ours: {TESTS[test]}"
                continue
            begun = time.monotonic()
            outcome = suite.run(binary, test, logs / f"{test}.log")
            print(f"{outcome:8}{time.monotonic() - begun:6.1f} s  {package or '.'}: {test}", flush=True)
            yield test, outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="REGEX", help="of the tests' names")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep what the tests said there")
    parser.add_argument("--all", action="store_true", help="those that aren't ours, too")
    options = parser.parse_args(arguments)
    if shutil.which("go") is None or not (GOPATH / "src" / IMPORT).is_dir():
        print(NEEDED, file=sys.stderr)
        return 2
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="upstream-") as directory:
        logs = options.keep or Path(directory)
        logs.mkdir(parents=True, exist_ok=True)
        for test, outcome in outcomes(Suite(Path(directory)), logs, options.only, everything=options.all):
            counts[outcome.split(":")[0]] += 1
            if outcome == "FAILED":
                print(f"--- {test}\n{(logs / f'{test}.log').read_text(errors='replace')[-2_000:]}")
    print(" ".join(f"{name.replace(' ', '_').lower()}={count}" for name, count in sorted(counts.items())))
    return 1 if counts["FAILED"] or not counts else 0


if __name__ == "__main__":
    sys.exit(main())

"""Writes the lock files: ``make lock``, and ``make lock UPGRADE=1`` for the newest versions that pyproject.toml allows.

``requirements.lock`` is what runs: the container image installs it, and CI too. ``requirements-dev.lock`` is what CI
and developers need besides. Each line is a version with the hashes of all its files, for every platform, so that an
index that serves other bytes is refused. Without --upgrade versions that stand there and still fit stay.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
RUNTIME: Final = ROOT / "requirements.lock"
DEVELOPMENT: Final = ROOT / "requirements-dev.lock"
COMMAND: Final = "make lock"
"""What the files' heads say wrote them: not this machine's paths."""
PIN: Final = re.compile(r"^([a-z0-9][a-z0-9._-]*)==([^\s;\\]+)(?:\s*;\s*([^\\]+?))?\s*\\?$", re.MULTILINE)


def pins(text: str) -> dict[str, tuple[str, str]]:
    """Name → (version, environment marker or "") of every requirement in a lock file's `text`."""
    return {name: (version, marker or "") for name, version, marker in PIN.findall(text)}


def _compile(output: Path, extra: str, *options: str) -> None:
    """Resolve pyproject.toml and, on standard input, `extra`, into `output`."""
    subprocess.run(
        [
            *("uv", "pip", "compile", "--quiet", "--universal", "--generate-hashes", "--no-emit-index-url"),
            *("--custom-compile-command", COMMAND, *options, "--output-file", output.name, "pyproject.toml", "-"),
        ],
        input=extra,
        text=True,
        check=True,
        cwd=ROOT,
    )


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that are allowed")
    upgrade = ["--upgrade"] if parser.parse_args().upgrade else []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    # The build backend is needed wherever we are installed from source, so it is pinned with what runs.
    backend = "".join(f"{line}\n" for line in project["build-system"]["requires"])
    minimum = project["project"]["requires-python"].removeprefix(">=")
    _compile(RUNTIME, backend, "--python-version", minimum, *upgrade)
    shared = [f"--no-emit-package={name}" for name in sorted(pins(RUNTIME.read_text()))]
    _compile(
        DEVELOPMENT,
        backend,
        *("--python-version", minimum, "--extra", "dev", "--constraints", RUNTIME.name, *shared, *upgrade),
    )


if __name__ == "__main__":
    main()

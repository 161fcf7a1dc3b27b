"""Which lines of the replicated core the simulator runs, by itself: ``make sim-coverage`` (``docs/testing.md``).

    python -m tools.sim_coverage [--seeds 60] [--first-seed 1] [--nodes 0] [--lines]

Lines are those that the compiler made code for, without what runs at import (definitions, constants), docstrings, and
``Protocol`` stubs. Prints a line a file, what is left of it with ``--lines``, and one of ``key=value`` pairs; exit 1
below `FLOOR`. The tracer of the standard library's machinery is enough: a function is left alone once all of its lines
were seen, so that a run takes twice the time and not twenty times.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

import nebuladb
from nebuladb.sim.runner import run_seed

ROOT: Final = Path(nebuladb.__file__).parent
PACKAGES: Final = ("raft", "kv", "node")
FLOOR: Final = 85.0
"""Per cent of all lines together."""
SECONDS: Final = 5.0


class Lines:
    """Of one code object: those not seen yet."""

    __slots__ = ("left",)

    def __init__(self, code: CodeType) -> None:
        self.left = lines_of(code)


def lines_of(code: CodeType) -> set[int]:
    """Its own lines, without those of functions in it and the one that begins it."""
    return {line for _, _, line in code.co_lines() if line is not None and line > code.co_firstlineno}


class Tracer:
    """Notes lines of files below `PACKAGES`."""

    def __init__(self) -> None:
        self.seen: dict[str, set[int]] = {}
        self._codes: dict[CodeType, Lines | None] = {}
        self._folders = tuple(f"{ROOT / package}/" for package in PACKAGES)

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        if code not in self._codes:
            self._codes[code] = Lines(code) if code.co_filename.startswith(self._folders) else None
        lines = self._codes[code]
        if lines is None or not lines.left:
            return None
        left, seen = lines.left, self.seen.setdefault(code.co_filename, set())

        def line(frame: FrameType, event: str, _: Any) -> Any:
            if event == "line":
                left.discard(frame.f_lineno)
                seen.add(frame.f_lineno)
            return line

        return line


def functions(code: CodeType) -> Iterator[CodeType]:
    """All functions of a module's code, not the bodies of classes, which run at import."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_flags & 0x2:  # CO_NEWLOCALS: a function; a class's body has none
                yield constant
            yield from functions(constant)


def wanted(path: Path) -> set[int]:
    """The lines of a file that a run can reach."""
    found: set[int] = set()
    stubs = path.read_text(encoding="utf-8").splitlines()
    for code in functions(compile(path.read_text(encoding="utf-8"), str(path), "exec")):
        found |= {line for line in lines_of(code) if stubs[line - 1].strip() != "..."}
    return found


def ranges(lines: Sequence[int]) -> str:
    """``1-3, 7``."""
    parts: list[list[int]] = []
    for line in lines:
        if parts and line == parts[-1][1] + 1:
            parts[-1][1] = line
        else:
            parts.append([line, line])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tools.sim_coverage", description="Lines that the simulator runs.")
    parser.add_argument("--seeds", type=int, default=60, help="how many seeds (default: 60)")
    parser.add_argument("--first-seed", type=int, default=1, help="the first of them (default: 1)")
    parser.add_argument("--nodes", type=int, default=0, help="nodes of a cluster (default: as each seed draws)")
    parser.add_argument("--lines", action="store_true", help="say which lines are left")
    options = parser.parse_args(arguments)
    tracer = Tracer()
    violations = 0
    sys.settrace(tracer)
    try:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            violations += bool(run_seed(seed, nodes=options.nodes, seconds=SECONDS).violation)
    finally:
        sys.settrace(None)
    total = hit = 0
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            lines = wanted(path)
            left = sorted(lines - tracer.seen.get(str(path), set()))
            total, hit = total + len(lines), hit + len(lines) - len(left)
            if lines:
                print(f"{100 * (1 - len(left) / len(lines)):5.1f} % {path.relative_to(ROOT)}")
            if left and options.lines:
                print(f"        {ranges(left)}")
    percent = 100 * hit / total
    print(f"seeds={options.seeds} lines={total} hit={hit} percent={percent:.1f} violations={violations}")
    return 0 if percent >= FLOOR and not violations else 1


if __name__ == "__main__":
    sys.exit(main())

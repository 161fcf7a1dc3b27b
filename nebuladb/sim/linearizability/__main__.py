"""``python -m nebuladb.sim.linearizability FILE…``: one line a file on stdout, the reasons on stderr."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nebuladb.sim.linearizability.check import Report, check
from nebuladb.sim.linearizability.histories import History, read_history
from nebuladb.sim.linearizability.operation import Operation
from nebuladb.sim.linearizability.search import MAX_STATES, MAX_STEPS, Verdict
from nebuladb.sim.linearizability.timeline import draw, show_state


def main(arguments: Sequence[str] | None = None) -> int:
    """0: all files were decided; 1: not all; 2: wrong usage."""
    options = _parse(arguments)
    decided = True
    names: set[str] = set()
    for path in options.files:
        verdict = _check(path, options, names)
        print(f"{path}: {verdict.value}", flush=True)
        decided = decided and verdict is not Verdict.UNDECIDED
    return 0 if decided else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m nebuladb.sim.linearizability",
        description="Check recorded histories of a register or a key-value store; the form is seen from the content.",
        epilog="Exit status: 0 if all files were decided, 1 if not (the reason is on stderr), 2 for wrong usage.",
    )
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path)
    parser.add_argument("--html", metavar="DIR", type=Path, help="draw a time line of each file there")
    parser.add_argument(
        "--max-steps", metavar="N", type=_positive, default=MAX_STEPS, help="work of one search (default: %(default)s)"
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _check(path: Path, options: argparse.Namespace, names: set[str]) -> Verdict:
    try:
        history = read_history(path)
        report = check(history.operations, history.model, max_steps=options.max_steps)
        if options.html is not None:
            options.html.mkdir(parents=True, exist_ok=True)
            page = draw(path.name, report, history.model)
            (options.html / _page_name(path, names)).write_text(page, encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return Verdict.UNDECIDED
    for line in _reasons(history, report, options.max_steps):
        print(f"{path}: {line}", file=sys.stderr)
    return report.verdict


def _page_name(path: Path, names: set[str]) -> str:
    """The file's name, with a number if another file of this run had the same."""
    name, number = f"{path.name}.html", 1
    while name in names:
        number += 1
        name = f"{path.name}.{number}.html"
    names.add(name)
    return name


def _reasons(history: History, report: Report[Any, Any, Any], max_steps: int) -> Iterator[str]:
    for key in report.undecided:
        what = "the history" if key is None else f"key {key!r}"
        yield f"{what} is not decided after {max_steps} steps (--max-steps)"
    failed = report.failed
    if failed is None or failed.failure is None:
        return
    failure, describe = failed.failure, history.model.describe
    where = "" if failed.key is None else f" of key {failed.key!r}"
    yield f"nothing explains {_line(failure.operation, describe(failure.operation))}"
    if failure.states:
        more = " and others" if len(failure.states) == MAX_STATES else ""
        yield f"it can only have found {', '.join(map(show_state, failure.states))}{more}"
    if failure.order:
        yield f"one order that explains all before it leads to {failure.state!r}"
    kind = "smallest failing prefix" if failure.shortest else "failing prefix (a smaller one was not decided)"
    yield f"{kind}{where}: {len(failure.prefix)} operations"
    for operation in failure.prefix:
        yield f"  {_line(operation, describe(operation))}"


def _line(operation: Operation[Any, Any], text: str) -> str:
    end = "on" if operation.returned is None else f"to {operation.returned}"
    return f"process {operation.process}: {text} (lines {operation.call} {end})"


if __name__ == "__main__":
    sys.exit(main())

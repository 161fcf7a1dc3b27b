"""``make etcd-matrix``: each numbered line of what an etcd v3 server must get right, and the tests that hold it.

The lines are those of ``docs/etcd-lines.md``. A test names its lines by ``@pytest.mark.etcd(7, 8)``, or its docstring
begins so: ``etcd 4 to 8, 15``. Exit 1: a line has no test, a test names a line that isn't there, or the list from which
the page was made lies beside the repository and has other numbers.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
LIST: Final = ROOT / "docs" / "etcd-lines.md"
SOURCE: Final = ROOT.parent / "shared" / "etcd-v3.md"
"""Where the page's makers work, the list that it was made from; elsewhere there is none."""
PENDING: Final[dict[int, str]] = {
    43: "watches are checked when users and rights come; until then nobody is denied",
    57: "authentication is off, and answers as etcd does then; turning it on comes with users and rights",
}
"""Lines that wait, in whole or in part, for another piece of work."""
WIDTH: Final = 100


def lines(text: str) -> dict[int, str]:
    """Number → what the line says, of the list's `text`. Raises ValueError where two have one number."""
    found: dict[int, str] = {}
    for number, said in re.findall(r"^(\d+)\. (.*(?:\n +\S.*)*)", text, re.MULTILINE):
        if int(number) in found:
            raise ValueError(f"two lines have the number {number}")
        found[int(number)] = " ".join(said.split())
    return found


def differing(listed: Iterable[int], source: Path) -> list[int]:
    """Numbers that are in one of the page and `source` and not in the other; none where there is no `source`."""
    if not source.exists():
        return []
    return sorted(set(listed) ^ set(lines(source.read_text(encoding="utf-8"))))


def marks(source: str) -> Iterator[tuple[str, list[int]]]:
    """(function, lines that it holds) of a test file's `source`."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not node.name.startswith("test_"):
            continue
        for mark in node.decorator_list:
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.etcd":
                yield node.name, [ast.literal_eval(argument) for argument in mark.args]
        if numbers := named(ast.get_docstring(node) or ""):
            yield node.name, numbers


def named(docstring: str) -> list[int]:
    """The lines that a docstring begins with."""
    begins = re.match(r"etcd (\d+(?:(?:, | and | to )\d+)*)\b(?!\.\d)", docstring)
    found: list[int] = []
    for joint, number in re.findall(r"(, | and | to |^)(\d+)", begins[1] if begins else ""):
        found += range(found[-1] + 1, int(number) + 1) if joint == " to " else [int(number)]
    return found


def holders(tests: Path) -> dict[int, list[str]]:
    """Line → tests that hold it."""
    found: dict[int, list[str]] = defaultdict(list)
    for path in sorted(tests.rglob("test_*.py")):
        for name, numbers in marks(path.read_text(encoding="utf-8")):
            for number in numbers:
                found[number].append(f"{path.relative_to(tests.parent)}::{name}")
    return found


def report(listed: dict[int, str], held: dict[int, list[str]]) -> tuple[list[str], list[int]]:
    """What to print, and the lines that are gaps: held by no test and pending nowhere, or held and not listed."""
    printed, gaps = [], sorted(set(held) - set(listed))
    for number, line in sorted(listed.items()):
        printed.append(f"{number:3}. {line if len(line) <= WIDTH else line[: WIDTH - 1] + '…'}")
        printed += [f"       {test}" for test in held.get(number, [])]
        if number in PENDING:
            printed.append(f"       PENDING: {PENDING[number]}")
        elif number not in held:
            printed.append("       NO TEST")
            gaps.append(number)
    return printed, sorted(gaps)


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    listed, held = lines(LIST.read_text(encoding="utf-8")), holders(ROOT / "tests")
    printed, gaps = report(listed, held)
    print("\n".join(printed))
    tests = {test for number in listed for test in held.get(number, [])}
    pending = sorted(set(PENDING) & set(listed))
    print(
        f"lines={len(listed)} held={len(set(held) & set(listed))} tests={len(tests)} "
        f"pending={','.join(map(str, pending)) or 'none'} gaps={','.join(map(str, gaps)) or 'none'}"
    )
    if others := differing(listed, SOURCE):
        print(f"{LIST.name} and {SOURCE.name} differ in the numbers {', '.join(map(str, others))}")
    return 1 if gaps or others else 0


if __name__ == "__main__":
    sys.exit(main())

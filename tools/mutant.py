"""A mutant: a known bug as changes of the source, each a text to be found exactly once and what takes its place.

The file begins with ``rule:`` and ``bug:`` lines; then, for each change::

    file: nebuladb/raft/core.py
    <<<<
    the text as it is
    ====
    the text with the bug
    >>>>

Texts of several lines are whole lines. (Unlike a diff's, such a change survives edits around it, and one that doesn't
apply any more says so.)
"""

from __future__ import annotations

import ast
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
DIRECTORY: Final = ROOT / "tests" / "mutants"
HEAD: Final = re.compile(r"rule: (?P<rule>.+)\nbug: (?P<bug>.+)\n")
CHANGE: Final = re.compile(r"\nfile: (?P<file>\S+)\n<<<<\n(?P<old>.*?)\n====\n(?P<new>(?:.*?\n)??)>>>>\n", re.DOTALL)


_PARSING: Final = threading.Lock()
"""CPython 3.11 counts the depth of its recursion over all threads that parse, and fails at a mismatch."""


class MutantError(Exception):
    """The file can't be read or doesn't apply."""


@dataclass(frozen=True, slots=True)
class Change:
    """`old`, which `file` has exactly once, becomes `new`."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """`rule`: what it breaks, as ``docs/safety.md`` names it, or a section of the paper. `bug`: what it is."""

    name: str
    rule: str
    bug: str
    changes: tuple[Change, ...]

    def mutated(self, root: Path) -> dict[str, str]:
        """File → its text with the bug. Raises `MutantError` if a change doesn't apply or changes no code."""
        texts: dict[str, str] = {}
        for change in self.changes:
            if not change.file.startswith("nebuladb/") or change.file.startswith("nebuladb/sim/"):
                raise MutantError(f"{self.name}: {change.file} is not the product's")
            text = texts.get(change.file) or (root / change.file).read_text()
            if text.count(change.old) != 1:
                raise MutantError(f"{self.name}: {change.file} has this {text.count(change.old)} times:\n{change.old}")
            texts[change.file] = text.replace(change.old, change.new)
        for file, text in texts.items():
            if _code(text, file) == _code((root / file).read_text(), file):
                raise MutantError(f"{self.name}: no code of {file} is changed")
        return texts

    def apply(self, root: Path) -> None:
        """Put the bug into the package under `root`."""
        for file, text in self.mutated(root).items():
            (root / file).write_text(text)


def _code(text: str, file: str) -> str:
    """What Python makes of it, without comments and layout."""
    with _PARSING:
        return ast.dump(ast.parse(text, file))


def load(path: Path) -> Mutant:
    """Raises `MutantError`."""
    text = path.read_text()
    head = HEAD.match(text)
    changes = tuple(
        Change(found["file"], found["old"] + "\n", found["new"]) for found in CHANGE.finditer(text, head.end() - 1)
    ) if head else ()  # fmt: skip
    if head is None or not changes or len(CHANGE.sub("", text[head.end() - 1 :]).strip()):
        raise MutantError(f"{path.name} is not a mutant: see tools/mutant.py")
    return Mutant(path.stem, head["rule"], head["bug"], changes)

"""What clients asked, when, and what they were told: recorded, written and read as one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeAlias

Json: TypeAlias = Any
"""A value that JSON keeps as it is: texts, whole numbers, booleans, None, lists and dictionaries by text."""


class Outcome(StrEnum):
    """What a client may conclude."""

    OK = "ok"
    FAILED = "failed"
    """It certainly changed nothing."""
    UNKNOWN = "unknown"
    """It may have taken effect, or still may."""


@dataclass(frozen=True, slots=True)
class Op:
    """One operation. Times are of one monotonic clock, in ns since the run began."""

    process: int
    f: str
    """What was done: read, write, …"""
    key: str
    value: Json
    """What it was given."""
    call: int
    returned: int
    outcome: Outcome
    result: Json = None
    """What it answered, if `outcome` is OK."""
    error: str = ""


TOLD: Final = frozenset({"watch", "event", "broken"})
"""That there is a watch, and what it was told: nothing that a client asked for and waited for."""


@dataclass(frozen=True, slots=True)
class Moment:
    """An operation's call, or its return: what a checker that goes through time sees."""

    time: int
    returns: bool
    op: Op


def moments(ops: Iterable[Op]) -> Iterator[Moment]:
    """All calls and returns, in order of time; of one time calls come first, which is the lenient reading."""
    found = [Moment(op.call, False, op) for op in ops] + [Moment(op.returned, True, op) for op in ops]  # noqa: FBT003
    yield from sorted(found, key=lambda moment: (moment.time, moment.returns))


class History:
    """Operations of a run as they end."""

    def __init__(self) -> None:
        self.ops: list[Op] = []

    def add(self, op: Op) -> None:
        """It has ended."""
        self.ops.append(op)

    def count(self, outcome: Outcome, since: int = 0) -> int:
        """Operations that ended so, of those that began at `since` (ns) or later."""
        return sum(op.outcome is outcome and op.call >= since and op.f not in TOLD for op in self.ops)


def write(ops: Iterable[Op], path: Path) -> None:
    """By call."""
    with path.open("w", encoding="utf-8") as file:
        for op in sorted(ops, key=lambda op: op.call):
            file.write(json.dumps(asdict(op)) + "\n")


def read(path: Path) -> list[Op]:
    """What `write` wrote. Raises: OSError, ValueError."""
    found = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            fields = json.loads(line)
            found.append(Op(**(fields | {"outcome": Outcome(fields["outcome"])})))
    return found

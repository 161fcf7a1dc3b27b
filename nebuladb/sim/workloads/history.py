"""Histories for the linearizability checker."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final

from nebuladb.kv.store import Store
from nebuladb.sim.linearizability.check import check
from nebuladb.sim.linearizability.model import Model
from nebuladb.sim.linearizability.operation import UNKNOWN, Operation
from nebuladb.sim.linearizability.search import Verdict
from nebuladb.sim.violation import Violation

MAX_STEPS: Final = 300_000
"""Of the search for one key: a third of a second."""
SHOWN: Final = 12
"""Operations of a failing prefix that a violation quotes; `--trace` has the others."""


class History:
    """Operations of one group's clients; those that certainly did not happen are left out."""

    def __init__(self, group: int, model: Model[Any, Any, Any]) -> None:
        self._group = group
        self._model = model
        self._operations: list[Operation[Any, Any]] = []
        self.undecided = 0
        """Keys whose verdict the bound on work prevented."""

    def add(self, process: int, call: int, returned: int, given: Hashable, output: object) -> None:
        """It was done, and answered `output`."""
        self._operations.append(Operation(process, call, returned, given, output))

    def add_unknown(self, process: int, call: int, given: Hashable) -> None:
        """It may have been done, or will be."""
        self._operations.append(Operation(process, call, None, given, UNKNOWN))

    def check(self) -> None:
        report = check(self._operations, self._model, max_steps=MAX_STEPS)
        self.undecided = len(report.undecided)
        part = report.failed
        if report.verdict is not Verdict.NOT_LINEARIZABLE or part is None or part.failure is None:
            return
        lines = [
            f"  client {operation.process}, steps {operation.call} to {operation.returned or '?'}: "
            f"{self._model.describe(operation)}"
            for operation in part.failure.prefix[-SHOWN:]
        ]
        raise Violation(
            f"group {self._group}: the history of {part.key!r} is not linearizable; its shortest prefix that is not "
            f"has {len(part.failure.prefix)} operations and ends with {self._model.describe(part.failure.operation)} "
            f"of client {part.failure.operation.process}:\n" + "\n".join(lines)
        )

    def holds(self, store: Store) -> None:
        """The last reads of the history are checked with it; nothing more is to be seen here."""

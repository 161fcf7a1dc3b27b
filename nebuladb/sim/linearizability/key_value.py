"""A map of texts with get, put and append."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias

from nebuladb.sim.linearizability.model import REJECTED, Model, Step
from nebuladb.sim.linearizability.operation import UNKNOWN, Operation, Unknown


@dataclass(frozen=True, slots=True)
class Get:
    """Its output is the key's text, empty if it was never put."""

    key: Hashable

    def __str__(self) -> str:
        return f"get {self.key}"


@dataclass(frozen=True, slots=True)
class Put:
    """Its output is not looked at."""

    key: Hashable
    value: str

    def __str__(self) -> str:
        return f"put {self.key} {self.value!r}"


@dataclass(frozen=True, slots=True)
class Append:
    """Adds to the text's end. Its output is not looked at."""

    key: Hashable
    value: str

    def __str__(self) -> str:
        return f"append {self.key} {self.value!r}"


Input: TypeAlias = Get | Put | Append
KeyValueOperation: TypeAlias = Operation[Input, str]


class Unread(Enum):
    """The type of `UNREAD`."""

    UNREAD = "a text that nobody reads"


UNREAD: Final = Unread.UNREAD
"""Stands for every text with which no text that a get returned begins: until the next put, no get can follow."""

State: TypeAlias = str | Unread


class KeyValue(Model[State, Input, str]):
    """The state of one key is its text."""

    def initial(self) -> State:
        return ""

    def step(self, state: State, given: Input, output: str | Unknown) -> Step[State]:
        if isinstance(given, Append):
            return UNREAD if state is UNREAD else state + given.value
        if isinstance(given, Put):
            return given.value
        return state if output is UNKNOWN or output == state else REJECTED

    def key(self, given: Input) -> Hashable:
        return given.key

    def observes(self, operation: KeyValueOperation) -> bool:
        return isinstance(operation.input, Get)

    def merge(self, operations: Sequence[KeyValueOperation]) -> Callable[[State], State]:
        """Without this, n concurrent appends are n! states."""
        texts = sorted(
            operation.output
            for operation in operations
            if operation.returned is not None and isinstance(operation.output, str) and isinstance(operation.input, Get)
        )

        def merged(state: State) -> State:
            if state is UNREAD:
                return state
            at = bisect_left(texts, state)
            return state if at < len(texts) and texts[at].startswith(state) else UNREAD

        return merged

    def noticed(self, state: State) -> bool:
        """Between an operation that leads to a text that nobody reads and the next put comes no get, so nobody can
        tell whether it happened."""
        return state is not UNREAD

    def describe(self, operation: KeyValueOperation) -> str:
        if operation.returned is None or operation.output is UNKNOWN:
            return f"{operation.input} → ?"
        return f"{operation.input} → {operation.output!r}" if isinstance(operation.input, Get) else str(operation.input)

"""A register with read, write and compare-and-set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, TypeAlias

from nebuladb.sim.linearizability.model import REJECTED, Model, Step
from nebuladb.sim.linearizability.operation import UNKNOWN, Operation, Unknown

Value: TypeAlias = Hashable


@dataclass(frozen=True, slots=True)
class Read:
    """Its output is the value."""

    key: Hashable = None

    def __str__(self) -> str:
        return "read"


@dataclass(frozen=True, slots=True)
class Write:
    """Its output is not looked at."""

    value: Value
    key: Hashable = None

    def __str__(self) -> str:
        return f"write {self.value}"


@dataclass(frozen=True, slots=True)
class CompareAndSet:
    """Its output is whether the value was `old`; only then it became `new`."""

    old: Value
    new: Value
    key: Hashable = None

    def __str__(self) -> str:
        return f"cas {self.old}→{self.new}"


Input: TypeAlias = Read | Write | CompareAndSet
RegisterOperation: TypeAlias = Operation[Input, Value]


class Other(Enum):
    """The type of `OTHER`."""

    OTHER = "a value that nobody reads"


OTHER: Final = Other.OTHER
"""Stands for every value that is written but that no read and no compare names."""

MAX_PASSES: Final = 8
"""An unknown write that was seen may itself be a compare-and-set that saw another; chains are followed so far."""


class Register(Model[Value, Input, Value]):
    """Registers by key, each `initial` at first."""

    def __init__(self, initial: Value = None) -> None:
        self._initial = initial

    def initial(self) -> Value:
        return self._initial

    def step(self, state: Value, given: Input, output: Value | Unknown) -> Step[Value]:
        if isinstance(given, Write):
            return given.value
        if isinstance(given, Read):
            return state if output is UNKNOWN or output == state else REJECTED
        equal = given.old == state
        if output is not UNKNOWN and output != equal:
            return REJECTED
        return given.new if equal else state

    def key(self, given: Input) -> Hashable:
        return given.key

    def observes(self, operation: RegisterOperation) -> bool:
        return isinstance(operation.input, Read) or (
            isinstance(operation.input, CompareAndSet) and operation.output is False
        )

    def describe(self, operation: RegisterOperation) -> str:
        output = UNKNOWN if operation.returned is None else operation.output
        if output is UNKNOWN:
            return f"{operation.input} → ?"
        match operation.input:
            case Write():
                return str(operation.input)
            case CompareAndSet():
                return f"{operation.input} → {'done' if output else 'refused'}"
        return f"{operation.input} → {output}"

    def simplify(self, operations: Sequence[RegisterOperation]) -> Sequence[RegisterOperation | None]:
        """Leave out unknown reads. Make all values that nothing asks for one value, so that unknown writes of them are
        alike; leave those out unless a compare was refused, since nothing else could tell that they happened. If an
        unknown write was seen and is the only one of its value, give it a return: it took effect before the first call
        that saw it ended. So values that are written once make even long histories easy."""
        for _ in range(MAX_PASSES):
            uses = _Uses(self._initial, operations)
            settled = [uses.settled(operation) for operation in operations]
            if settled == operations:
                break
            operations = settled
        uses = _Uses(self._initial, operations)
        return [uses.renamed(operation) for operation in operations]


class _Uses:
    """Who writes, names and sees the values of one register."""

    def __init__(self, initial: Value, operations: Sequence[RegisterOperation]) -> None:
        self._writers: Counter[Value] = Counter([initial])
        self._named: set[Value] = {initial}
        self._seen: dict[Value, int] = {}
        """Value → when the first that certainly saw it returned."""
        self._refused = False
        """Whether a compare that certainly ran may have been refused."""
        for operation in operations:
            self._add(operation)

    def _add(self, operation: RegisterOperation) -> None:
        given, returned = operation.input, operation.returned
        output = UNKNOWN if returned is None else operation.output
        if isinstance(given, Write):
            self._writers[given.value] += 1
            return
        if isinstance(given, CompareAndSet):
            self._writers[given.new] += 1
            self._named.add(given.old)
            self._refused = self._refused or (returned is not None and output is not True)
            value: Value | Unknown = given.old if output is True else UNKNOWN
        else:
            value = output
        if returned is not None and value is not UNKNOWN:
            self._named.add(value)
            self._seen[value] = min(self._seen.get(value, returned), returned)

    def settled(self, operation: RegisterOperation) -> RegisterOperation:
        """With a return, if it is a write of unknown outcome that certainly took effect."""
        given = operation.input
        if operation.returned is not None or isinstance(given, Read):
            return operation
        value = given.value if isinstance(given, Write) else given.new
        seen = self._seen.get(value)
        if self._writers[value] > 1 or seen is None or seen < operation.call:
            return operation
        return replace(operation, returned=seen, output=True)

    def renamed(self, operation: RegisterOperation) -> RegisterOperation | None:
        """With `OTHER` for a value that nobody names; None if it can be left out."""
        given = operation.input
        if isinstance(given, Read):
            return None if operation.returned is None else operation
        if (given.value if isinstance(given, Write) else given.new) in self._named:
            return operation
        if operation.returned is None and not self._refused:
            return None
        other = Write(OTHER) if isinstance(given, Write) else CompareAndSet(given.old, OTHER)
        return replace(operation, input=other)

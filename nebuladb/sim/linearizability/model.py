"""What a checked object does when its operations run one after another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from enum import Enum
from typing import Final, Generic, Literal, TypeAlias, TypeVar

from nebuladb.sim.linearizability.operation import UNKNOWN, I, O, Operation, Unknown

S = TypeVar("S", bound=Hashable)
"""A state: immutable, and equal to another only if nothing can tell the two apart."""


class Rejected(Enum):
    """The type of `REJECTED`, which no state can equal."""

    REJECTED = "rejected"


REJECTED: Final = Rejected.REJECTED
"""What `Model.step` returns for an output that the state does not allow."""

Step: TypeAlias = S | Literal[Rejected.REJECTED]


class Model(ABC, Generic[S, I, O]):
    """A sequential object: `initial` and `step` define it; the rest makes the search short, or the report readable.

    Nothing of the rest may change whether a history is linearizable. `simplify` and `merge` see one part of a history,
    and see it again for each prefix that is searched, so that they may not remember anything."""

    @abstractmethod
    def initial(self) -> S:
        """The state before the first operation."""

    @abstractmethod
    def step(self, state: S, given: I, output: O | Unknown) -> Step[S]:
        """The state after an operation, or REJECTED if it can't have this output here. With UNKNOWN it takes effect
        whatever the answer was, so that is never rejected. Pure."""

    def key(self, given: I) -> Hashable:
        """The part of the object that an operation is about. Parts are checked apart, each from `initial`; that is
        right because linearizability is local (Herlihy and Wing 1990, theorem 1). Default: one part."""
        return None

    def observes(self, operation: Operation[I, O]) -> bool:
        """Whether this operation, with its output, changes no state that allows it: a read, a compare that was
        refused. Not a write of what is there already, for it would change another state."""
        return False

    def simplify(self, operations: Sequence[Operation[I, O]]) -> Sequence[Operation[I, O] | None]:
        """The same operations in the same order, each maybe replaced by a simpler one or by None (left out)."""
        return operations

    def merge(self, operations: Sequence[Operation[I, O]]) -> Callable[[S], S] | None:
        """A function that maps states that these operations can't tell apart to one of them. None: there are none."""
        return None

    def noticed(self, state: S) -> bool:
        """False if an operation of unknown outcome that leads to this (merged) state may as well not have happened."""
        return True

    def describe(self, operation: Operation[I, O]) -> str:
        """A short text for people."""
        unknown = operation.returned is None or operation.output is UNKNOWN
        return f"{operation.input} → {'?' if unknown else operation.output}"

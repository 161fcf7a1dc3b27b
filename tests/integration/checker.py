"""Was anything lost, doubled, brought back, or told twice? A pure function over a history.

Every key has one writer, which does one operation at a time and leaves the key alone for ever once an outcome is
unknown. So at any quiet moment a key must be exactly what its last acknowledged write made of it, or, where an unknown
one came after that, what that one would have made of it. No search is needed, and nothing slips through.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

MAX_VIOLATIONS: Final = 20
"""As many are reported; the first says enough."""


class Kind(Enum):
    """What was asked."""

    PUT = "put"
    CAS = "compare-and-set"
    DELETE = "delete"
    GET = "get"


class Result(Enum):
    """What the client was told."""

    ACKNOWLEDGED = "acknowledged"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Operation:
    """One finished operation. A history lists a key's operations in their order."""

    key: str
    kind: Kind
    result: Result
    floor: int
    """The highest revision that anybody had been told when this began."""
    revision: int = 0
    """That of the answer's header."""
    value: str | None = None
    """What put or compare-and-set would write; what get read, None = missing. Written values are unique."""
    matching: bool = True
    """Compare-and-set: whether its compare named the key's true state (else it has to be refused)."""
    succeeded: bool = True
    """Compare-and-set: whether the answer says so. Delete: whether a key was deleted."""
    mod_revision: int = 0
    """Get: the revision of what it read, 0 = missing."""

    @property
    def wrote(self) -> bool:
        """Whether the answer says that something changed."""
        return self.result is Result.ACKNOWLEDGED and self.kind is not Kind.GET and self.succeeded

    def __str__(self) -> str:
        return f"{self.kind.value} {self.key} {self.value or ''} ({self.result.value}, revision {self.revision})"


@dataclass(frozen=True, slots=True)
class Observation:
    """Every key of the cluster at a quiet moment."""

    after: int
    """How many operations of the history had finished."""
    revision: int
    keys: Mapping[str, tuple[str, int]]
    """Key → value, mod revision."""


@dataclass(slots=True)
class _Key:
    """What is known of a key: its certain state, and the one write that may or may not have come after it."""

    value: str | None = None
    revision: int = 0
    unknown: Operation | None = None
    unknown_seen: bool = False


@dataclass(slots=True)
class _Check:
    keys: dict[str, _Key] = field(default_factory=dict)
    refused: dict[str, Operation] = field(default_factory=dict)
    written: dict[int, Operation] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def complain(self, text: str) -> None:
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(text)

    def operation(self, operation: Operation) -> None:
        """Take the next one of the history."""
        key = self.keys.setdefault(operation.key, _Key())
        if key.unknown is not None:
            raise ValueError(f"the history goes on with {operation.key} after an unknown outcome")
        if operation.result is Result.UNKNOWN:
            if operation.kind is not Kind.GET:
                key.unknown = operation
            return
        if operation.result is Result.FAILED or not operation.succeeded:
            if operation.value is not None and operation.kind is not Kind.GET:
                self.refused[operation.value] = operation
            if operation.result is Result.FAILED:
                return
        self._revision(operation)
        match operation.kind:
            case Kind.GET:
                self._read(operation, key)
            case Kind.CAS if operation.succeeded != operation.matching:
                self.complain(f"{operation}: its compare was {'right' if operation.matching else 'wrong'}")
            case Kind.DELETE if operation.succeeded != (key.value is not None):
                self.complain(f"{operation}: it says deleted={operation.succeeded}, but the key held {key.value}")
        if operation.wrote:
            key.value = None if operation.kind is Kind.DELETE else operation.value
            key.revision = operation.revision

    def _revision(self, operation: Operation) -> None:
        """Revisions grow in real time; each belongs to one write."""
        if operation.revision < operation.floor + operation.wrote:
            self.complain(f"{operation}: revision {operation.floor} had been told before it began")
        if operation.wrote:
            other = self.written.setdefault(operation.revision, operation)
            if other is not operation:
                self.complain(f"{operation} has the revision of {other}")

    def _read(self, operation: Operation, key: _Key) -> None:
        revision = key.revision if key.value is not None else 0
        if (operation.value, operation.mod_revision) != (key.value, revision):
            self.complain(
                f"{operation} saw {operation.value} of revision {operation.mod_revision}, "
                f"but acknowledged was {key.value} of {revision}"
            )

    def observation(self, observation: Observation) -> None:
        """Compare the cluster's keys with what was acknowledged."""
        for name in sorted(observation.keys.keys() - self.keys.keys()):
            self.complain(f"{name} is there, and nobody wrote it")
        for name, key in self.keys.items():
            value, revision = observation.keys.get(name, (None, 0))
            self._state(f"after {observation.after} operations", name, key, value, revision)
            if revision > observation.revision:
                self.complain(f"{name} has revision {revision}, above the shard's {observation.revision}")

    def _state(self, when: str, name: str, key: _Key, value: str | None, revision: int) -> None:
        certain = (key.value, key.revision if key.value is not None else 0)
        unknown = key.unknown
        if unknown is not None and _is_effect(unknown, key, value, revision):
            # A delete of a missing key looks the same either way: nothing was seen.
            key.unknown_seen = (value, revision) != certain
            return
        if (value, revision) == certain and not key.unknown_seen:
            return
        if value is not None and value in self.refused:
            self.complain(f"{when}: {name} holds a refused write: {self.refused[value]}")
            return
        expected = f"{certain[0]} of revision {certain[1]}"
        if unknown is not None:
            expected = str(unknown) if key.unknown_seen else f"{expected} or {unknown}"
        self.complain(f"{when}: {name} is {value} of revision {revision}, but must be {expected}")


def _is_effect(unknown: Operation, key: _Key, value: str | None, revision: int) -> bool:
    """Whether a key in this state is what the unknown write would have made of it."""
    if unknown.kind is Kind.CAS and not unknown.matching:
        return False
    if unknown.kind is Kind.DELETE:
        return value is None
    return value == unknown.value and revision > max(key.revision, unknown.floor)


def check(history: Sequence[Operation], observations: Iterable[Observation]) -> list[str]:
    """What is wrong, in words; empty if nothing is. `observations` in their order."""
    state = _Check()
    done = 0
    for observation in observations:
        for operation in history[done : observation.after]:
            state.operation(operation)
        done = observation.after
        state.observation(observation)
    for operation in history[done:]:
        state.operation(operation)
    return state.violations


def drop_acknowledged(history: Sequence[Operation], observation: Observation) -> Observation | None:
    """The observation as if the newest acknowledged put or compare-and-set had been lost, or None if none is seen.

    For self-tests: a checker that can't see this is no checker.
    """
    # An unknown delete explains an absence: only a key without any shows the loss for certain.
    uncertain = {operation.key for operation in history if operation.result is Result.UNKNOWN}
    for operation in reversed(history[: observation.after]):
        if operation.key in uncertain:
            continue
        held = observation.keys.get(operation.key)
        if operation.wrote and held == (operation.value, operation.revision):
            kept = {key: pair for key, pair in observation.keys.items() if key != operation.key}
            before = next(
                (
                    earlier
                    for earlier in reversed(history)
                    if earlier.key == operation.key and earlier.wrote and earlier.revision < operation.revision
                ),
                None,
            )
            if before is not None and before.value is not None and before.kind is not Kind.DELETE:
                kept[operation.key] = (before.value, before.revision)
            return Observation(observation.after, observation.revision, kept)
    return None

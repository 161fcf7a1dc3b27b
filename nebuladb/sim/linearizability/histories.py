"""Reading recorded histories: Jepsen's log lines and its maps, told apart by their content."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from nebuladb.sim.linearizability.key_value import Append, Get, KeyValue, Put
from nebuladb.sim.linearizability.model import Model
from nebuladb.sim.linearizability.operation import UNKNOWN, Operation
from nebuladb.sim.linearizability.register import CompareAndSet, Read, Register, Write

Scalar: TypeAlias = "str | int | bool | Keyword | None"
Value: TypeAlias = "Scalar | tuple[Scalar, ...]"

_LOG_LINE: Final = re.compile(r"INFO\s+jepsen\.util - ")
_TOKEN: Final = re.compile(r"""[\s,]*(?:(?P<text>"(?:[^"\\]|\\.)*")|(?P<word>[^\s,"{}\[\]]+)|(?P<mark>[{}\[\]]))""")
_LOG_FIELDS: Final = (":process", ":type", ":f", ":value")
_WORDS: Final[Mapping[str, Scalar]] = {"nil": None, "true": True, "false": False}
_REGISTER: Final = frozenset({":read", ":write", ":cas"})
_KEY_VALUE: Final = frozenset({":get", ":put", ":append"})


class Keyword(str):
    """A word like ``:ok``, which is no text."""

    __slots__ = ()


class History(NamedTuple):
    """What a file holds. Times are the numbers of its lines."""

    model: Model[Any, Any, Any]
    operations: list[Operation[Any, Any]]


@dataclass(frozen=True, slots=True)
class _Event:
    """One line about a client."""

    line: int
    process: int
    type: Value
    function: Value
    value: Value
    key: Value
    error: Value


def read_history(path: Path) -> History:
    """Raises: OSError; ValueError with the line if it is no history of a known form."""
    return parse_history(path.read_text(encoding="utf-8"))


def parse_history(text: str) -> History:
    """Of a process, a line ``:invoke`` begins an operation, and ``:ok``, ``:fail`` or ``:info`` ends it. A read, write
    or cas is of a register, which is nil at first; a get, put or append of texts by key, empty at first.

    ``:info``, and no end, mean unknown. ``:fail`` means that it did not happen; only a cas that fails with its two
    values again, and no ``:error``, is an answer: the compare was false.

    Raises: ValueError with the line if it is no history of a known form."""
    events = list(_events(text))
    functions = {event.function for event in events}
    if not events:
        raise ValueError("there are no operations in it")
    if functions <= _REGISTER:
        return History(Register(), _operations(events))
    if functions <= _KEY_VALUE:
        return History(KeyValue(), _operations(events))
    raise ValueError(f"no model has all of its functions: {' '.join(sorted(map(str, functions)))}")


def _events(text: str) -> Iterator[_Event]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            fields = _fields(line.strip())
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        process, kind, function = fields[":process"], fields[":type"], fields[":f"]
        # The nemesis and other bystanders have names where clients have numbers.
        if isinstance(process, int):
            value, key, error_field = fields.get(":value"), fields.get(":key"), fields.get(":error")
            yield _Event(number, process, kind, function, value, key, error_field)


def _fields(line: str) -> dict[Value, Value]:
    """By the names that they have in a map."""
    logged = _LOG_LINE.match(line)
    if logged is not None:
        values = _values(line[logged.end() :])
        if len(values) != len(_LOG_FIELDS):
            raise ValueError("a log line is process, type, function, value")
        return dict(zip(_LOG_FIELDS, values, strict=True))
    if not (line.startswith("{") and line.endswith("}")):
        raise ValueError("neither a log line of Jepsen nor a map")
    values = _values(line[1:-1])
    if len(values) % 2:
        raise ValueError("a map without its last value")
    fields = dict(zip(values[::2], values[1::2], strict=True))
    missing = [name for name in _LOG_FIELDS[:3] if name not in fields]
    if missing:
        raise ValueError(f"a map without {' '.join(missing)}")
    return fields


def _values(text: str) -> list[Value]:
    """Words, texts, and flat vectors of them."""
    values: list[Value] = []
    vector: list[Scalar] | None = None
    at = 0
    text = text.rstrip(" \t,")
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            raise ValueError(f"can't be read from {text[at : at + 20]!r} on")
        at = token.end()
        mark = token["mark"]
        if mark is None:
            scalar: Scalar = json.loads(token["text"]) if token["text"] else _word(token["word"])
            (values if vector is None else vector).append(scalar)
        elif mark == "[" and vector is None:
            vector = []
        elif mark == "]" and vector is not None:
            values.append(tuple(vector))
            vector = None
        else:
            raise ValueError(f"{mark} is not expected")
    if vector is not None:
        raise ValueError("a vector has no end")
    return values


def _word(word: str) -> Scalar:
    if word in _WORDS:
        return _WORDS[word]
    return Keyword(word) if word.startswith(":") else int(word)


def _operations(events: list[_Event]) -> list[Operation[Any, Any]]:
    operations: list[Operation[Any, Any]] = []
    pending: dict[int, _Event] = {}
    for event in events:
        where = f"line {event.line}: process {event.process}"
        if event.type == ":invoke":
            if event.process in pending:
                raise ValueError(f"{where} has not ended what it began in line {pending[event.process].line}")
            pending[event.process] = event
            continue
        if event.type not in (":ok", ":fail", ":info"):
            raise ValueError(f"{where} has the unknown type {event.type}")
        begun = pending.pop(event.process, None)
        if begun is None or begun.function != event.function or begun.key != event.key:
            raise ValueError(f"{where} ends {event.function}, which it did not begin")
        operations += _operation(begun, event)
    for begun in pending.values():
        operations += _operation(begun, None)
    return operations


def _operation(begun: _Event, ended: _Event | None) -> list[Operation[Any, Any]]:
    """The operation, or nothing if it certainly did not happen."""
    given = _input(begun)
    if ended is None or ended.type == ":info":
        return [Operation(begun.process, begun.line, None, given, UNKNOWN)]
    output = ended.value
    if isinstance(given, CompareAndSet):
        refused = ended.type == ":fail" and isinstance(output, tuple) and ended.error is None
        if ended.type == ":ok" or refused:
            return [Operation(begun.process, begun.line, ended.line, given, not refused)]
    if ended.type == ":fail":
        return []
    if isinstance(given, Get):
        output = "" if output is None else _text(ended)
    return [Operation(begun.process, begun.line, ended.line, given, output)]


def _input(begun: _Event) -> Read | Write | CompareAndSet | Get | Put | Append:
    value, key, where = begun.value, begun.key, f"line {begun.line}"
    match begun.function:
        case ":read":
            return Read(key)
        case ":write":
            return Write(value, key)
        case ":cas":
            if not isinstance(value, tuple) or len(value) != 2:
                raise ValueError(f"{where}: a cas has two values")
            return CompareAndSet(*value, key)
        case ":get":
            return Get(key)
        case _:
            return Put(key, _text(begun)) if begun.function == ":put" else Append(key, _text(begun))


def _text(event: _Event) -> str:
    if not isinstance(event.value, str) or isinstance(event.value, Keyword):
        raise ValueError(f"line {event.line}: {event.function} has no text")
    return event.value

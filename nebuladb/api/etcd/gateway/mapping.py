"""Messages as JSON and back: protobuf's mapping with the names of the .proto files (etcd 59).

Out: 64-bit integers as strings, bytes in base64, enums by name, what is zero left out. In: names also in camelCase,
integers as numbers or strings, base64 of either alphabet, padded or not, enums by name or number; null is as if it were
not there, and so is a field that nobody knows. What can't be meant is refused, with etcd's words: a field that comes
twice, by whichever of its names, a second one of a oneof, a value of another type.

Both directions go through the values one by one, in Python: what is large is done in a thread, and nothing here keeps
the interpreter from the loop for long, nor builds a second tree of what it reads or writes.
"""

from __future__ import annotations

import binascii
import json
import re
from functools import lru_cache
from typing import Any, Final, Generic, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from nebuladb.api.etcd.gateway.scalars import KINDS, scalar
from nebuladb.errors import InvalidArgument

MAX_DEPTH: Final = 64
"""Messages within messages: as deep as a transaction may be nested, and far below what Python's stack holds."""
BATCH: Final = 100
"""Messages that `Reader.batch` takes."""
MAX_SHOWN: Final = 100
"""Characters of a wrong value that a refusal repeats."""
_WIDE: Final = (FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT64)
_BLANKS: Final = re.compile(r"[ \t\r\n]*")
_ENDS: Final = {"{": "}", "[": "]"}
_NO_BLANKS: Final = frozenset('{}[]:,"')

M = TypeVar("M", bound=Message)


def to_json(message: Message) -> bytes:
    """As compact as Go's encoder."""
    out = bytearray(b"{")
    for field, value in message.ListFields():
        out += b'%b"%b":' % (b"," if len(out) > 1 else b"", field.name.encode())
        if field.is_repeated and field.type == FieldDescriptor.TYPE_MESSAGE:
            # Here is what makes a message large: the keys of a range, the events of a watch.
            out += b"["
            for place, item in enumerate(value):
                out += b"," * (place > 0) + _object(item).encode("utf-8", "replace")
            out += b"]"
        else:
            out += _value(field, value).encode("utf-8", "replace")
    out += b"}"
    return bytes(out)


# --- in


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=str, parse_float=str)
"""Numbers as they are written: they are read exactly, once it is known for which field."""


@lru_cache(maxsize=256)
def _fields(descriptor: Descriptor) -> dict[str, FieldDescriptor]:
    """By either name."""
    return {name: field for field in descriptor.fields for name in (field.json_name, field.name)}


class Reader(Generic[M]):
    """Reads the values of a text as messages. It lets go of the text as soon as nothing but blanks is left of it."""

    def __init__(self, kind: type[M], text: str) -> None:
        self._kind = kind
        self._text = text
        self._at = 0
        self._start = 0
        """Where the value begins that is being read: places in refusals count from there."""

    @property
    def left(self) -> int:
        """Characters that are not read yet, and held."""
        return len(self._text) - self._at

    def message(self) -> M | None:
        """The next message; None: there are no more. Raises `InvalidArgument` at a value that is none, and is at its
        end then."""
        message = self._kind()
        try:
            self._start = self._skip(self._at)
            if self._start == len(self._text):
                self.close()
                return None
            self._at = self._skip(self._message(message, self._start, 0))
        except BaseException:
            self.close()
            raise
        if not self.left:
            self.close()
        return message

    def only(self) -> bytes:
        """The first message, encoded, or an empty one; the rest is passed over, as etcd does. Raises as `message`."""
        raw = (self.message() or self._kind()).SerializeToString()
        self.close()
        return raw

    def batch(self) -> list[bytes]:
        """The next messages, encoded; none: there are no more. Raises `InvalidArgument` if the first is none; one that
        comes later ends them."""
        found: list[bytes] = []
        try:
            while len(found) < BATCH and (message := self.message()) is not None:
                found.append(message.SerializeToString())
        except InvalidArgument:
            if not found:
                raise
        return found

    def close(self) -> None:
        """Let go of the text; there are no more messages."""
        self._text, self._at, self._start = "", 0, 0

    # What follows takes a position of the text, where something begins, and gives the one behind it.

    def _skip(self, at: int) -> int:
        """Blanks."""
        if self._text[at : at + 1] in _NO_BLANKS:
            return at
        found = _BLANKS.match(self._text, at)
        return found.end() if found else at

    def _scan(self, at: int) -> tuple[Any, int]:
        """Any value, and the position behind it."""
        try:
            return _DECODER.raw_decode(self._text, at)
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(f"proto: syntax error: {str(error)[:MAX_SHOWN]}") from error

    def _message(self, message: Message, at: int, depth: int) -> int:
        text = self._text
        if text[at : at + 1] != "{":
            raise self._unexpected(at)
        if depth > MAX_DEPTH:
            raise InvalidArgument(f"proto: messages are nested deeper than {MAX_DEPTH}")
        fields = _fields(message.DESCRIPTOR)
        seen: set[int] = set()
        at = self._skip(at + 1)
        if text[at : at + 1] == "}":
            return at + 1
        while True:
            named = at
            name, at = self._name(at)
            field = fields.get(name)
            if field is None:
                at = self._pass(at)
            else:
                if field.number in seen:
                    raise self._refused(named, f"duplicate field {self._token(named)}")
                seen.add(field.number)
                at = at + 4 if text.startswith("null", at) else self._field(message, field, named, at, depth)
            at = self._skip(at)
            if text[at : at + 1] == "}":
                return at + 1
            if text[at : at + 1] != ",":
                raise self._unexpected(at)
            at = self._skip(at + 1)

    def _name(self, at: int) -> tuple[str, int]:
        """A name with its colon, and the position behind them."""
        if self._text[at : at + 1] != '"':
            raise self._unexpected(at)
        name, at = self._scan(at)
        at = self._skip(at)
        if self._text[at : at + 1] != ":":
            raise self._unexpected(at)
        return name, self._skip(at + 1)

    def _pass(self, at: int) -> int:
        """A value that nobody wants. Not in one call, for all of which the decoder would hold the interpreter."""
        text = self._text
        ends: list[str] = []
        while True:
            opened = _ENDS.get(text[at : at + 1])
            if opened is None:
                _, at = self._scan(at)
            else:
                ends.append(opened)
                at = self._skip(at + 1)
                if text[at : at + 1] != opened:
                    at = self._name(at)[1] if opened == "}" else at
                    continue
            while ends:
                at = self._skip(at)
                if text[at : at + 1] != ends[-1]:
                    break
                ends.pop()
                at += 1
            if not ends:
                return at
            if text[at : at + 1] != ",":
                raise self._unexpected(at)
            at = self._skip(at + 1)
            at = self._name(at)[1] if ends[-1] == "}" else at

    def _field(self, message: Message, field: FieldDescriptor, named: int, at: int, depth: int) -> int:
        if field.is_repeated:
            return self._list(message, field, at, depth)
        choice = field.containing_oneof
        if choice is not None and message.WhichOneof(choice.name) is not None:
            why = f"error parsing {self._token(named)}, oneof {choice.full_name} is already set"
            raise self._refused(named, why)
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            inner = getattr(message, field.name)
            inner.SetInParent()
            return self._message(inner, at, depth + 1)
        value, at = self._scalar(field, at)
        setattr(message, field.name, value)
        return at

    def _list(self, message: Message, field: FieldDescriptor, at: int, depth: int) -> int:
        text = self._text
        if text[at : at + 1] != "[":
            raise self._unexpected(at)
        items = getattr(message, field.name)
        at = self._skip(at + 1)
        if text[at : at + 1] == "]":
            return at + 1
        while True:
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                at = self._message(items.add(), at, depth + 1)
            else:
                value, at = self._scalar(field, at)
                items.append(value)
            at = self._skip(at)
            if text[at : at + 1] == "]":
                return at + 1
            if text[at : at + 1] != ",":
                raise self._unexpected(at)
            at = self._skip(at + 1)

    def _scalar(self, field: FieldDescriptor, at: int) -> tuple[Any, int]:
        first, found, end = self._text[at : at + 1], None, at
        if first not in _ENDS:
            said, end = self._scan(at)
            found = scalar(field, said, quoted=first == '"')
        if found is None:
            what = f"{KINDS[field.type]} field {field.json_name}"
            raise self._refused(at, f"invalid value for {what}: {self._token(at)}")
        return found, end

    # Refusals.

    def _token(self, at: int) -> str:
        """What stands there, as it is written; of what has parts, how it begins."""
        if self._text[at : at + 1] in "{}[]:,":
            return self._text[at : at + 1] or "EOF"
        return self._text[at : self._scan(at)[1]][:MAX_SHOWN]

    def _place(self, at: int) -> str:
        lines = self._text[self._start : at].split("\n")
        return f"(line {len(lines)}:{len(lines[-1]) + 1})"

    def _refused(self, at: int, why: str) -> InvalidArgument:
        return InvalidArgument(f"proto: {self._place(at)}: {why}")

    def _unexpected(self, at: int) -> InvalidArgument:
        return InvalidArgument(f"proto: syntax error {self._place(at)}: unexpected token {self._token(at)}")


# --- out


def _object(message: Message) -> str:
    return "{" + ",".join([f'"{field.name}":{_value(field, value)}' for field, value in message.ListFields()]) + "}"


def _value(field: FieldDescriptor, value: Any) -> str:
    if field.is_repeated:
        return "[" + ",".join([_item(field, one) for one in value]) + "]"
    return _item(field, value)


def _item(field: FieldDescriptor, value: Any) -> str:
    kind = field.type
    if kind == FieldDescriptor.TYPE_BYTES:
        return f'"{binascii.b2a_base64(value, newline=False).decode()}"'
    if kind in _WIDE:
        return f'"{value}"'
    if kind == FieldDescriptor.TYPE_MESSAGE:
        return _object(value)
    if kind == FieldDescriptor.TYPE_ENUM and field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return f'"{known.name}"' if known else str(value)
    return json.dumps(value, ensure_ascii=False)

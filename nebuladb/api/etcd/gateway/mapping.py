"""Messages as JSON and back: protobuf's mapping with the names of the .proto files (etcd 59).

Out: 64-bit integers as strings, bytes in base64, enums by name, what is zero left out. In: names also in camelCase,
integers as numbers or strings, base64 of either alphabet, padded or not, enums by name or number; null is as if it were
not there, and so is a field that nobody knows. What can't be meant is refused: etcd's clients send what they are told.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from nebuladb.errors import InvalidArgument

MAX_DEPTH: Final = 64
"""Messages within messages: as deep as a transaction may be nested, and far below what Python's stack holds."""
_INTEGERS: Final = {
    FieldDescriptor.TYPE_INT64: ("int64", -(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_UINT64: ("uint64", 0, (1 << 64) - 1),
    FieldDescriptor.TYPE_INT32: ("int32", -(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_UINT32: ("uint32", 0, (1 << 32) - 1),
}
_WIDE: Final = (FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT64)
_WHOLE: Final = re.compile(r"-?[0-9]{1,20}")
_NUMBER: Final = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]*={0,2}")
_URL_SAFE: Final = str.maketrans("-_", "+/")
_BLANKS: Final = re.compile(r"[ \t\r\n]*")
MAX_SHOWN: Final = 100
"""Characters of a wrong value that a refusal repeats."""

M = TypeVar("M", bound=Message)


def from_json(kind: type[M], text: str) -> M:
    """The first value of `text`, as a message; no value is an empty one. What follows is passed over, as etcd does.

    Raises `InvalidArgument`.
    """
    return next(all_from_json(kind, text), None) or kind()


def all_from_json(kind: type[M], text: str) -> Iterator[M]:
    """All values of `text`, one after the other, as messages. Raises `InvalidArgument` at one that is none."""
    position = _blanks(text, 0)
    while position < len(text):
        try:
            value, position = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(f"proto: syntax error: {str(error)[:MAX_SHOWN]}") from error
        if not isinstance(value, dict):
            raise InvalidArgument(f"proto: syntax error: unexpected token {_shown(value)}")
        message = kind()
        _fill(message, value, 0)
        yield message
        position = _blanks(text, position)


def to_json(message: Message) -> bytes:
    """As compact as Go's encoder."""
    return json.dumps(_plain(message), separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


# --- in


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant)


def _blanks(text: str, position: int) -> int:
    found = _BLANKS.match(text, position)
    return found.end() if found else position


@lru_cache(maxsize=256)
def _fields(descriptor: Descriptor) -> dict[str, FieldDescriptor]:
    """By either name."""
    return {name: field for field in descriptor.fields for name in (field.json_name, field.name)}


def _fill(message: Message, values: dict[str, Any], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidArgument(f"proto: messages are nested deeper than {MAX_DEPTH}")
    fields = _fields(message.DESCRIPTOR)
    for name, value in values.items():
        field = fields.get(name)
        if field is None or value is None:
            continue
        choice = field.containing_oneof
        if choice is not None and message.WhichOneof(choice.name) is not None:
            raise InvalidArgument(f"proto: oneof {choice.full_name} is already set")
        if not field.is_repeated:
            _set(message, field, value, depth)
            continue
        if not isinstance(value, list):
            raise InvalidArgument(f"proto: syntax error: unexpected token {_shown(value)}")
        items = getattr(message, field.name)
        for item in value:
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                _nested(items.add(), item, depth)
            elif (one := _scalar(field, item)) is not None:
                items.append(one)


def _set(message: Message, field: FieldDescriptor, value: Any, depth: int) -> None:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        inner = getattr(message, field.name)
        inner.SetInParent()
        _nested(inner, value, depth)
    else:
        setattr(message, field.name, _scalar(field, value))


def _nested(inner: Message, value: Any, depth: int) -> None:
    if not isinstance(value, dict):
        raise InvalidArgument(f"proto: syntax error: unexpected token {_shown(value)}")
    _fill(inner, value, depth + 1)


def _scalar(field: FieldDescriptor, value: Any) -> Any:
    """Raises `InvalidArgument`."""
    kind = field.type
    found: Any = None
    if kind in _INTEGERS:
        what, least, most = _INTEGERS[kind]
        found = _integer(value)
        if found is not None and not least <= found <= most:
            found = None
    elif kind == FieldDescriptor.TYPE_BYTES:
        what, found = "bytes", _bytes(value)
    elif kind == FieldDescriptor.TYPE_STRING:
        what, found = "string", value if isinstance(value, str) and value.isascii() | _is_text(value) else None
    elif kind == FieldDescriptor.TYPE_BOOL:
        what, found = "bool", value if isinstance(value, bool) else None
    else:
        what, found = "enum", _enum(field, value)
    if found is None:
        raise InvalidArgument(f"proto: invalid value for {what} field {field.name}: {_shown(value)}")
    return found


def _integer(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, str):
        if _WHOLE.fullmatch(value):
            return int(value)
        if not _NUMBER.fullmatch(value):
            return None
        value = float(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return None


def _bytes(value: Any) -> bytes | None:
    if not isinstance(value, str) or not _BASE64.fullmatch(value):
        return None
    bare = value.rstrip("=").translate(_URL_SAFE)
    try:
        return binascii.a2b_base64(bare + "=" * (-len(bare) % 4))
    except binascii.Error:
        return None


def _is_text(value: str) -> bool:
    """Whether it has no lone surrogates, which UTF-8 can't say."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _enum(field: FieldDescriptor, value: Any) -> int | None:
    kind = field.enum_type
    if isinstance(value, str) and kind is not None:
        # A name that nobody knows is refused: to take it for the first one would answer something else than was asked.
        known = kind.values_by_name.get(value)
        return known.number if known else None
    number = _integer(value) if not isinstance(value, str) else None
    return number if number is not None and -(1 << 31) <= number < 1 << 31 else None


def _shown(value: Any) -> str:
    return json.dumps(value)[:MAX_SHOWN]


# --- out


def _plain(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.is_repeated:
            found[field.name] = [_item(field, one) for one in value]
        else:
            found[field.name] = _item(field, value)
    return found


def _item(field: FieldDescriptor, value: Any) -> Any:
    kind = field.type
    if kind == FieldDescriptor.TYPE_MESSAGE:
        return _plain(value)
    if kind == FieldDescriptor.TYPE_BYTES:
        return binascii.b2a_base64(value, newline=False).decode()
    if kind in _WIDE:
        return str(value)
    if kind == FieldDescriptor.TYPE_ENUM and field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else value
    return value

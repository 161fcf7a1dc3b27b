"""Numbers, bytes, texts, booleans and enums of JSON, as Go's protojson takes them for a field (etcd 59)."""

from __future__ import annotations

import binascii
import re
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor

KINDS: Final = {
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_ENUM: "enum",
}
"""What a refusal calls a field's type."""
_LIMITS: Final = {
    FieldDescriptor.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_UINT64: (0, (1 << 64) - 1),
    FieldDescriptor.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.TYPE_ENUM: (-(1 << 31), (1 << 31) - 1),
}
_MAX_DIGITS: Final = 20
"""Of the largest 64-bit integer."""
_WHOLE: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,19})")
_NUMBER: Final = re.compile(r"(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?)0*([0-9]+))?")
_STANDARD: Final = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_URL_SAFE: Final = re.compile(r"[A-Za-z0-9_-]*={0,2}")
_TO_STANDARD: Final = str.maketrans("-_", "+/")


def scalar(field: FieldDescriptor, value: str | bool | None, *, quoted: bool) -> Any:
    """The value for `field`; None if it is none for a field of this type.

    `value` is what JSON said: the content of a string (`quoted`), a number as it is written, true, false or null.
    """
    kind = field.type
    if kind == FieldDescriptor.TYPE_BOOL:
        return value if isinstance(value, bool) else None
    if not isinstance(value, str):
        return None
    if kind == FieldDescriptor.TYPE_BYTES:
        return _bytes(value) if quoted else None
    if kind == FieldDescriptor.TYPE_STRING:
        return value if quoted and _is_text(value) else None
    if kind == FieldDescriptor.TYPE_ENUM and quoted:
        # A name that nobody knows is refused: to take it for the first one would answer something else than was asked.
        known = field.enum_type.values_by_name.get(value) if field.enum_type is not None else None
        return known.number if known else None
    found = _integer(value)
    least, most = _LIMITS[kind]
    return found if found is not None and least <= found <= most else None


def _integer(value: str) -> int | None:
    """A number as JSON writes it, without rounding: ``1.50e1`` is 15, ``1.5`` and ``01`` are none."""
    if _WHOLE.fullmatch(value):
        return int(value)
    match = _NUMBER.fullmatch(value)
    if match is None:
        return None
    sign, whole, fraction, minus, power = match.groups()
    fraction = (fraction or "").rstrip("0")
    digits = (whole + fraction).lstrip("0")
    if not digits:
        return 0
    if len(power or "") > _MAX_DIGITS:
        return None
    shift = (-1 if minus == "-" else 1) * int(power or 0) - len(fraction)
    size = len(digits) + shift
    if not 0 < size <= _MAX_DIGITS or digits[size:].strip("0"):
        return None
    found = int(digits[:size].ljust(size, "0"))
    return -found if sign else found


def _bytes(value: str) -> bytes | None:
    """Base64 of one alphabet or the other. Padded if the length is a multiple of four, else without padding; line ends
    in it are passed over. As in Go: what is left of the last character's bits doesn't matter."""
    padded = len(value) % 4 == 0
    bare = value.replace("\n", "").replace("\r", "") if "\n" in value or "\r" in value else value
    if not (_STANDARD.fullmatch(bare) or _URL_SAFE.fullmatch(bare)):
        return None
    if padded and len(bare) % 4 != 0:
        return None
    if not padded:
        if bare.endswith("=") or len(bare) % 4 == 1:
            return None
        bare += "=" * (-len(bare) % 4)
    return binascii.a2b_base64(bare.translate(_TO_STANDARD))


def _is_text(value: str) -> bool:
    """Whether it has no lone surrogates, which UTF-8 can't say."""
    try:
        value.isascii() or value.encode()
    except UnicodeEncodeError:
        return False
    return True

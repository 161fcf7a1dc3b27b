"""The one place where what a caller gives becomes a message of the wire."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, ParamSpec, TypeVar

from nebuladb.errors import InvalidArgument

Fields = ParamSpec("Fields")
Request = TypeVar("Request")

NEVER_NEGATIVE: Final = frozenset({"limit", "revision", "start_revision"})
"""Fields that the wire has as signed numbers. (A lease's id may be negative: etcd's may.)"""

ARGUMENTS: Final = {"id": "lease", "number": "what is compared with"}
"""Fields that callers know by another name."""


def built(kind: Callable[Fields, Request], *given: Fields.args, **fields: Fields.kwargs) -> Request:
    """A message with these fields. Raises `InvalidArgument` for a value that a field can't have, TypeError for one of
    another type."""
    for name, value in fields.items():
        if name in NEVER_NEGATIVE and isinstance(value, int) and value < 0:
            raise InvalidArgument(f"{name} is {value}; give 0 or more")
    try:
        return kind(*given, **fields)
    except (ValueError, OverflowError) as error:
        raise _refusal(kind, fields) from error


def check_mapping(name: str, given: object) -> None:
    """Raises TypeError for what is none, before anything is made of it."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{name} is of type {type(given).__name__}; give a mapping, a dict say")


def _refusal(kind: Callable[..., object], fields: Mapping[str, object]) -> InvalidArgument:
    """Which field it is: protobuf doesn't say."""
    for name, value in fields.items():
        try:
            kind(**{name: value})
        except (ValueError, OverflowError):
            name = ARGUMENTS.get(name, name)
            if not isinstance(value, int):
                return InvalidArgument(f"{name} is {value!r}, which is no valid text; give another one")
            return InvalidArgument(f"{name} is {value}; give a {'smaller' if value > 0 else 'larger'} number")
    return InvalidArgument("a field has a value that it can't have; give another one")

"""One operation of a client, as a history holds it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, TypeVar

I = TypeVar("I")  # noqa: E741 - input, output: the letters that the whole package uses
O = TypeVar("O")  # noqa: E741


class Unknown(Enum):
    """The type of `UNKNOWN`, which no answer of a real operation can equal."""

    UNKNOWN = "unknown"


UNKNOWN: Final = Unknown.UNKNOWN
"""An output that nobody knows."""


@dataclass(frozen=True, slots=True)
class Operation(Generic[I, O]):
    """What a process asked, when, and what it was told. Times are of any one clock: `a` came before `b` only if
    `a.returned < b.call`; operations that meet in one instant are concurrent, which is the lenient reading."""

    process: int
    call: int
    returned: int | None
    """None: of unknown outcome. It may take effect at any time after `call`, or never."""
    input: I
    """Hashable; equal inputs do the same to the same state."""
    output: O | Unknown
    """Not looked at if `returned` is None. UNKNOWN with a time: it took effect by then, but the answer isn't known."""

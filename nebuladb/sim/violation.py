"""What an oracle raises."""

from __future__ import annotations

import traceback
from typing import Final

PACKAGE: Final = "nebuladb."
HELPERS: Final = (f"{__name__}.", "nebuladb.errors.")
"""They raise on behalf of whoever called them."""


class Violation(Exception):
    """Something that may never happen did; the text says what, where and how one can tell."""


def require(condition: bool, text: str) -> None:
    """Raise `Violation` with `text` unless `condition`."""
    if not condition:
        raise Violation(text)


def raised_in(error: BaseException) -> str:
    """The module, without the package's name, that an error comes from: of a `Violation` the oracle."""
    name = "?"
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = f"{frame.f_globals.get('__name__', '')}."
        if module.startswith(PACKAGE) and module not in HELPERS:
            name = module[len(PACKAGE) : -1].removeprefix("sim.")
    return name

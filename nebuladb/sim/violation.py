"""What an oracle raises."""

from __future__ import annotations


class Violation(Exception):
    """Something that may never happen did; the text says what, where and how one can tell."""


def require(condition: bool, text: str) -> None:
    """Raise `Violation` with `text` unless `condition`."""
    if not condition:
        raise Violation(text)

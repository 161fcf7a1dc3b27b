"""Which turn of the loop it is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest


class Turns:
    """Counts from when it is made, as long as the loop runs."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.now = 0
        self._count()

    def _count(self) -> None:
        self.now += 1
        self._loop.call_soon(self._count)


def turns_of_calls(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> list[int]:
    """For each call of `owner`'s function `name` from now on, the turn of the loop in which it came."""
    turns, found = Turns(), list[int]()
    function = getattr(owner, name)

    def noted(*arguments: Any, **options: Any) -> Any:
        found.append(turns.now)
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, noted)
    return found

"""A part of what the node may hold that several holders use together: memory, mostly."""

from __future__ import annotations


class Share:
    """Bytes, or whatever its holders count, taken and not given back, against a bound. Whoever takes asks `fits` first,
    and decides what refusal means.

    A holder may exceed the bound by one item where it would otherwise never move: see each `take`.
    """

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def fits(self, size: int) -> bool:
        """Whether `size` bytes more stay within the bound."""
        return self.used + size <= self.limit

    def take(self, size: int) -> None:
        """Count `size` bytes as held."""
        self.used += size

    def give(self, size: int) -> None:
        """Count them as free again."""
        self.used -= size

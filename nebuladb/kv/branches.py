"""A transaction taken apart, once for all who look at it.

To reach for a repeated field of a message makes an object, which protobuf enters into a table of those that live: half
a microsecond each time, ten times what a plain field costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

Operation = tuple[str, Any]
"""Its kind, a name of the union in ``kv.proto``, and what it asks for; of "txn" a `Branches`."""


class Branches(NamedTuple):
    """Messages are of ``nebula.v1``, or such as have the same names for keys and ends of ranges."""

    compares: Sequence[Any]
    success: Sequence[Operation]
    failure: Sequence[Operation]

    def spans(self) -> Iterator[tuple[bytes, bytes]]:
        """What it reads or writes, nested ones included, whichever branches run: keys, and ends of ranges."""
        for compare in self.compares:
            yield compare.key, compare.range_end
        for which, asked in (*self.success, *self.failure):
            if which == "txn":
                yield from asked.spans()
            else:
                yield asked.key, b"" if which == "put" else asked.range_end

    def plain(self) -> Iterator[Operation]:
        """All operations that are no transactions, those of nested ones in their place."""
        for which, asked in (*self.success, *self.failure):
            if which == "txn":
                yield from asked.plain()
            else:
                yield which, asked

    @property
    def puts(self) -> bool:
        """Whether a branch puts anything."""
        return any(which == "put" for which, _ in self.plain())

    @property
    def writes(self) -> bool:
        """Whether a branch writes; if none does, the transaction needs no log entry (etcd 23)."""
        return any(which != "range" for which, _ in self.plain())

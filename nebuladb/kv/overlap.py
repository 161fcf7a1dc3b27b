"""Which transactions write a key twice (etcd 18).

As etcd tells it: a branch may put a key once, with all transactions nested in it; only the two branches of a nested one
may both put it, since one of them runs. A key that is put must lie in no deletion of the same branch, and a nested
transaction's in none of an earlier one. A deletion up to ``\\0``, and one whose end lies below its start, cover nothing
in this: etcd lets them pass, and then both happen, in their order, at one revision.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from nebuladb.errors import DuplicateKey
from nebuladb.kv.branches import Branches, Operation


class KeyRanges:
    """Ranges of keys, [start, end) each, kept apart and in order."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[bytes] = []
        self._ends: list[bytes] = []

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, start: bytes, end: bytes) -> None:
        """Also [start, end), which isn't empty."""
        low, high = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if low < high:
            start, end = min(start, self._starts[low]), max(end, self._ends[high - 1])
        self._starts[low:high] = [start]
        self._ends[low:high] = [end]

    def join(self, other: KeyRanges) -> KeyRanges:
        """Both; one of the two is used up."""
        more, less = (self, other) if len(self) >= len(other) else (other, self)
        for start, end in zip(less._starts, less._ends, strict=True):
            more.add(start, end)
        return more

    def meets(self, keys: Iterable[bytes]) -> bool:
        """Whether one of `keys` lies in a range."""
        starts, ends = self._starts, self._ends
        return bool(starts) and any((place := bisect_right(starts, key)) > 0 and key < ends[place - 1] for key in keys)


def check_once(operations: Sequence[Operation]) -> None:
    """A branch of a transaction. Raises `DuplicateKey`."""
    if len(operations) > 1 or (operations and operations[0][0] == "txn"):
        written(operations)


def written(operations: Sequence[Operation]) -> tuple[set[bytes], KeyRanges]:
    """What a branch puts, and what it deletes. Raises `DuplicateKey`."""
    deleted, put, own = KeyRanges(), set[bytes](), list[bytes]()
    nested: list[Branches] = []
    for which, asked in operations:
        if which == "put":
            own.append(asked.key)
        elif which == "delete":
            start, end = asked.key, asked.range_end
            if not end:
                deleted.add(start, start + b"\0")
            elif start < end:
                deleted.add(start, end)
        elif which == "txn":
            nested.append(asked)
    for child in nested:
        (then, gone), (other, gone_too) = written(child.success), written(child.failure)
        both = _union(then, other)
        if not put.isdisjoint(both) or deleted.meets(both):
            raise DuplicateKey("the transaction writes a key twice, in a nested transaction")
        put = _union(put, both)
        deleted = deleted.join(gone).join(gone_too)
    for key in own:
        if key in put:
            raise DuplicateKey(f"the transaction puts key {key[:100]!r} twice")
        put.add(key)
    if deleted.meets(own):
        raise DuplicateKey("the transaction puts a key that it deletes")
    return put, deleted


def _union(one: set[bytes], other: set[bytes]) -> set[bytes]:
    """Both sets, in the larger of them: a chain of nested transactions costs each key once."""
    more, less = (one, other) if len(one) >= len(other) else (other, one)
    more |= less
    return more

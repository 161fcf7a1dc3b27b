"""What a range asks for beyond its keys: filters, an order, a limit (etcd 4 to 8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from operator import attrgetter
from typing import Any, Final, NamedTuple

from nebuladb.kv.answer import KeyValue
from nebuladb.kv.rows import Record
from nebuladb.kv.sorting import in_order
from nebuladb.pb.nebula.v1.kv_pb2 import RangeRequest

_KEYS: Final[dict[int, Callable[[KeyValue], Any]]] = {
    RangeRequest.KEY: attrgetter("key"),
    RangeRequest.VERSION: attrgetter("version"),
    RangeRequest.CREATE: attrgetter("create_revision"),
    RangeRequest.MOD: attrgetter("mod_revision"),
    RangeRequest.VALUE: attrgetter("value"),
}


class Selection(NamedTuple):
    """The fields are those of ``nebula.v1.RangeRequest``. What is equal in an order stays in the order of keys."""

    limit: int = 0
    keys_only: bool = False
    count_only: bool = False
    order: int = RangeRequest.NONE
    target: int = RangeRequest.KEY
    min_mod: int = 0
    max_mod: int = 0
    min_create: int = 0
    max_create: int = 0

    @staticmethod
    def of(request: RangeRequest) -> Selection:
        """What `request` says."""
        return Selection(
            request.limit,
            request.keys_only,
            request.count_only,
            request.order,
            request.target,
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        )

    @property
    def filtered(self) -> bool:
        """Whether some keys of the range are left out."""
        return bool(self.min_mod or self.max_mod or self.min_create or self.max_create)

    @property
    def sorted(self) -> bool:
        """Whether the order is another than that of the range itself."""
        return self.target != RangeRequest.KEY or self.order == RangeRequest.DESCEND

    @property
    def enough(self) -> int:
        """How many of the first keys decide the result; 0 = all do.

        etcd takes one more than the limit, and everything if an order is named; a target alone names none, and then
        it sorts what it took. So do we: a client can't tell.
        """
        if self.limit <= 0 or self.filtered or (self.order != RangeRequest.NONE and self.sorted):
            return 0
        return self.limit + 1 if self.sorted else self.limit

    @property
    def blank(self) -> bool:
        """Whether values needn't be read: sorting by them needs them, though they aren't shown."""
        return self.keys_only and not (self.sorted and self.target == RangeRequest.VALUE)

    @property
    def keep(self) -> Callable[[Record], bool] | None:
        """What tells the records that pass the filters; None if all do."""
        return self.passes if self.filtered else None

    def passes(self, record: Record) -> bool:
        """Whether the filters let `record` through; bounds are inclusive."""
        main, create = record.main, record.create
        return not (
            (self.max_mod and main > self.max_mod)
            or (self.min_mod and main < self.min_mod)
            or (self.max_create and create > self.max_create)
            or (self.min_create and create < self.min_create)
        )

    def finish(self, kvs: Sequence[KeyValue], *, beside: bool = False) -> tuple[Sequence[KeyValue], bool]:
        """`kvs`, which passed and are in the order of keys, as they are answered; and whether the limit cut some.
        `beside`: it is a thread beside the loop that asks."""
        more = 0 < self.limit < len(kvs)
        shown = self.limit if more else len(kvs)
        if self.sorted:
            key, descending = _KEYS[self.target], self.order == RangeRequest.DESCEND
            # Python keeps the order of equals in a reversed sort, too.
            ordered = in_order(kvs, key, reverse=descending) if beside else sorted(kvs, key=key, reverse=descending)
            kvs = list(islice(ordered, shown))
        elif more:
            kvs = kvs[:shown]
        if self.keys_only and not self.blank:
            kvs = [kv._replace(value=b"") for kv in kvs]
        return kvs, more


ALL: Final = Selection()
"""Every key, in order."""

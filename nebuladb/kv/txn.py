"""Transactions: compares, then one branch's operations, all or nothing, in one revision."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final

from nebuladb.errors import Compacted, FutureRevision, ResultTooLarge
from nebuladb.kv.answer import DeleteResult, KeyValue, PutResult, RangeResult, TxnResult
from nebuladb.kv.change import key_value
from nebuladb.kv.draft import Draft
from nebuladb.kv.limits import MAX_RESULT_BYTES, MAX_RESULT_ROWS, MAX_TXN_ROWS, ROW_OVERHEAD
from nebuladb.kv.rows import KEY_AT, Record, decode_record
from nebuladb.kv.source import Source, close
from nebuladb.kv.view import page
from nebuladb.pb.nebula.v1 import kv_pb2

_COMPARE: Final[dict[int, Callable[[Any, Any], bool]]] = {
    kv_pb2.Compare.EQUAL: operator.eq,
    kv_pb2.Compare.GREATER: operator.gt,
    kv_pb2.Compare.LESS: operator.lt,
    kv_pb2.Compare.NOT_EQUAL: operator.ne,
}

_TARGET: Final[dict[int, Callable[[Record], int]]] = {
    kv_pb2.Compare.VERSION: lambda record: record.version,
    kv_pb2.Compare.CREATE: lambda record: record.create,
    kv_pb2.Compare.MOD: lambda record: record.main,
    kv_pb2.Compare.LEASE: lambda record: record.lease,
}


class Budget:
    """What one command may still look at and answer with (S23). Spending more raises `ResultTooLarge`."""

    __slots__ = ("_allowed", "rows", "size")

    def __init__(self, rows: int = MAX_TXN_ROWS, size: int = MAX_RESULT_BYTES) -> None:
        self._allowed = rows
        self.rows = rows
        self.size = size

    @property
    def examined(self) -> int:
        """Rows looked at so far."""
        return self._allowed - self.rows

    def spend(self, rows: int, size: int) -> None:
        """Count rows looked at and bytes answered."""
        self.rows -= rows
        self.size -= size
        if self.rows < 0 or self.size < 0:
            raise ResultTooLarge


def check_revision(revision: int, floor: int, current: int) -> None:
    """Raises `Compacted` or `FutureRevision` unless a read may name `revision`."""
    if revision > current:
        raise FutureRevision(f"revision {revision} has not happened yet; the newest is {current}")
    if revision < floor:
        raise Compacted(f"revision {revision} has been compacted; the oldest is {floor}", floor)


class Txn:
    """One transaction over `draft`, which the caller merges if `run` returns and drops if it raises.

    `main` is the revision that its writes get, one above the published one.
    """

    def __init__(self, draft: Draft, main: int) -> None:
        self.draft = draft
        self.main = main
        self.sub = 0
        """Changes so far; 0 at the end = it wrote nothing and steps no revision."""
        self.budget = Budget()

    def run(self, request: kv_pb2.TxnRequest) -> TxnResult:
        """Raises `LeaseNotFound`, `Compacted`, `FutureRevision` or `ResultTooLarge`."""
        # All compares see the state before it: nothing has been written yet (etcd 19).
        succeeded = all(self._holds(compare) for compare in request.compare)
        results = tuple(self._operation(o) for o in (request.success if succeeded else request.failure))
        return TxnResult(succeeded, results)

    def _operation(self, operation: kv_pb2.Operation) -> PutResult | DeleteResult | RangeResult:
        match operation.WhichOneof("operation"):
            case "range":
                return self._range(operation.range)
            case "put":
                return self._put(operation.put)
            case _:
                request = operation.delete
                return self.delete(request.key, request.range_end, prev_kv=request.prev_kv)

    def _put(self, request: kv_pb2.TxnPut) -> PutResult:
        self.draft.require_lease(request.lease)
        key = request.key
        self.budget.spend(1, 0)
        previous = self.draft.put(self.main, self.sub, key, request.value, request.lease)
        self.sub += 1
        if not request.prev_kv or previous is None:
            return PutResult()
        self.budget.spend(0, len(key) + len(previous.value) + ROW_OVERHEAD)
        return PutResult(key_value(key, previous))

    def delete(self, key: bytes, end: bytes, *, prev_kv: bool) -> DeleteResult:
        """Delete a range, of at most `MAX_RESULT_ROWS` keys: only a delete that stands alone can be sliced."""
        found = live_keys(self.draft, key, end, self.budget, values=prev_kv)
        for name, record in found:
            self.draft.delete(self.main, self.sub, name, record)
            self.sub += 1
        return DeleteResult(len(found), tuple(key_value(*pair) for pair in found) if prev_kv else ())

    def _range(self, request: kv_pb2.RangeRequest) -> RangeResult:
        draft, budget = self.draft, self.budget
        revision = request.revision
        if revision > 0:
            check_revision(revision, draft.floor, self.main - 1)
        else:
            revision = self.main  # sees what earlier operations wrote
        span = draft.keys.span(request.key, request.range_end)
        return collect(
            draft, span, revision, budget, 0 if request.count_only else request.limit, count_only=request.count_only,
            keys_only=request.keys_only,
        )  # fmt: skip

    def _holds(self, compare: kv_pb2.Compare) -> bool:
        if not compare.range_end:
            self.budget.spend(1, 0)
            record = self.draft.newest(compare.key)
            return _satisfied(compare, record if record is not None and record.version else None)
        found = live_keys(self.draft, compare.key, compare.range_end, self.budget, values=False)
        if not found:
            # etcd: an empty range is compared as one missing key.
            return _satisfied(compare, None)
        return all(_satisfied(compare, record) for _, record in found)


def _satisfied(compare: kv_pb2.Compare, record: Record | None) -> bool:
    holds = _COMPARE[compare.result]
    if compare.target == kv_pb2.Compare.VALUE:
        return record is not None and holds(record.value, compare.value)
    return holds(0 if record is None else _TARGET[compare.target](record), compare.number)


def live_keys(draft: Draft, key: bytes, end: bytes, budget: Budget, *, values: bool) -> list[tuple[bytes, Record]]:
    """The keys of a range that exist, newest records, charged to `budget`, with their bytes if `values`."""
    if not end:
        budget.spend(1, 0)
        record = draft.newest(key)
        found = [(key, record)] if record is not None and record.version else []
    else:
        found = []
        rows = draft.scan(*draft.keys.span(key, end))
        try:
            for row, data in rows:
                budget.spend(1, 0)
                record = decode_record(data)
                if record.version:
                    found.append((row[KEY_AT:], record))
                    # One limit for what is answered and what is removed: also keys without values take memory here.
                    if len(found) > MAX_RESULT_ROWS:
                        raise ResultTooLarge("the range has too many keys for one command; take it in parts")
        finally:
            close(rows)
    if values:
        budget.spend(0, sum(len(name) + len(record.value) + ROW_OVERHEAD for name, record in found))
    return found


def collect(
    source: Source,
    span: tuple[bytes, bytes],
    revision: int,
    budget: Budget,
    limit: int,
    *,
    count_only: bool = False,
    keys_only: bool = False,
) -> RangeResult:
    """A whole range with its count, charged to `budget`. Raises `ResultTooLarge`."""
    kvs: tuple[KeyValue, ...] = ()
    count, cursor = 0, span[0][KEY_AT:]
    if not count_only:
        asked = min(limit, MAX_RESULT_ROWS) if limit > 0 else MAX_RESULT_ROWS
        part = page(
            source, span, revision, limit=asked, max_bytes=budget.size + 1, max_rows=budget.rows, keys_only=keys_only
        )
        budget.spend(part.examined, part.size)
        kvs, count, cursor = part.kvs, part.counted, part.cursor
        if not cursor:
            return RangeResult(kvs, count, False)  # noqa: FBT003
        if len(kvs) < asked or asked != limit:
            raise ResultTooLarge
    low = span[0][:KEY_AT] + cursor
    rest = page(source, (low, span[1]), revision, limit=0, max_bytes=0, max_rows=budget.rows)
    budget.spend(rest.examined, 0)
    if rest.cursor:
        raise ResultTooLarge("the range has too many keys to be counted at once; use Scan")
    return RangeResult(kvs, count + rest.counted, rest.counted > 0)

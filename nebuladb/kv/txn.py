"""Transactions: compares, then one branch's operations, all or nothing, in one revision."""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, Final, NamedTuple

from nebuladb.env import probe
from nebuladb.errors import Compacted, FutureRevision, KeyNotFound, ResultTooLarge
from nebuladb.kv.answer import NO_PREVIOUS, DeleteResult, KeyValue, OperationResult, PutResult, RangeResult, TxnResult
from nebuladb.kv.branches import Branches, Operation
from nebuladb.kv.change import key_value
from nebuladb.kv.dead import Dead
from nebuladb.kv.draft import Draft
from nebuladb.kv.limits import MAX_RESULT_BYTES, MAX_RESULT_ROWS, MAX_TXN_BYTES, MAX_TXN_ROWS, ROW_OVERHEAD
from nebuladb.kv.loans import FIRST_ROWS, Misses
from nebuladb.kv.rows import KEY_AT, Record, decode_record
from nebuladb.kv.selection import Selection
from nebuladb.kv.source import Source, close
from nebuladb.kv.view import UNBOUNDED, Look, at, page
from nebuladb.pb.nebula.v1 import kv_pb2

_COMPARE: Final[dict[int, Callable[[Any, Any], bool]]] = {
    kv_pb2.Compare.EQUAL: operator.eq,
    kv_pb2.Compare.GREATER: operator.gt,
    kv_pb2.Compare.LESS: operator.lt,
    kv_pb2.Compare.NOT_EQUAL: operator.ne,
}

_TARGET: Final[dict[int, Callable[[Record], int]]] = {
    kv_pb2.Compare.VERSION: operator.attrgetter("version"),
    kv_pb2.Compare.CREATE: operator.attrgetter("create"),
    kv_pb2.Compare.MOD: operator.attrgetter("main"),
    kv_pb2.Compare.LEASE: operator.attrgetter("lease"),
}

EXAMINED_BYTES: Final = 4 << 10
"""So many bytes that were looked at count as a row more: a slice is some 4 MiB."""
MAX_REVISION: Final = (1 << 64) - 1


class Budget:
    """What one command may still look at and answer with (S23). Spending more raises `ResultTooLarge`.

    Every replica must spend the same. Newest records and those of the history that a revision above the floor shows are
    replicated state, and so are their bytes. What background deletion may or may not have removed by now, tombstones
    below the floor, is never charged; `dead` bounds it.
    """

    __slots__ = ("_allowed", "_readable", "dead", "look", "read", "rows", "size")

    def __init__(self, rows: int = MAX_TXN_ROWS, size: int = MAX_RESULT_BYTES) -> None:
        self._allowed = rows
        self.rows = rows
        self.size = size
        self.read = self._readable = MAX_TXN_BYTES
        """Bytes of rows that may still be looked at."""
        self.dead = Dead()
        self.look: Look = at
        """What finds out how a key was."""

    def unbind(self) -> None:
        """Any number of bytes may be looked at."""
        self.read = self._readable = UNBOUNDED

    @property
    def examined(self) -> int:
        """Rows looked at so far, large ones as several: for the slice's bound."""
        return self._allowed - self.rows + (self._readable - self.read) // EXAMINED_BYTES + self.dead.passed

    def spend(self, rows: int, size: int, read: int = 0) -> None:
        """Count rows looked at, bytes answered, and bytes looked at."""
        self.rows -= rows
        self.size -= size
        self.read -= read
        if self.rows < 0 or self.size < 0:
            raise ResultTooLarge
        if self.read < 0:
            raise ResultTooLarge(
                f"the request would read more than {MAX_TXN_BYTES >> 20} MiB at once, also to count or to delete; "
                "divide it into smaller ranges, use Scan, or delete the range outside of a transaction"
            )


def check_revision(revision: int, floor: int, current: int) -> None:
    """Raises `Compacted` or `FutureRevision` unless a read may name `revision`."""
    if revision > current:
        raise FutureRevision(f"revision {revision} has not happened yet; the newest is {current}")
    if revision < floor:
        raise Compacted(f"revision {revision} has been compacted; the oldest is {floor}", floor)


class _Chosen(NamedTuple):
    """What a transaction does once its compares are decided: its branch's operations, by kind."""

    succeeded: bool
    operations: list[Operation]
    """A nested transaction as a `_Chosen`."""


class Txn:
    """One transaction over `draft`, in which nothing is changed if `run` raises.

    `main` is the revision that its writes get, one above the published one. Where a half-done deletion may lie under
    that, as for a reader between two slices, `seen` is the published one, and nothing newer is looked at. `ranges` is
    where ranges are read from, if it isn't the draft; `look` finds out how a key was. Without `bounded` it may read
    more than `MAX_TXN_BYTES`.
    """

    __slots__ = ("_doubtful", "_known", "_ranges", "_seen", "budget", "draft", "main", "sub")

    def __init__(
        self,
        draft: Draft,
        main: int,
        seen: int = 0,
        ranges: Source | None = None,
        look: Look = at,
        *,
        bounded: bool = True,
    ) -> None:
        self.draft = draft
        self.main = main
        self.sub = 0
        """Changes so far; 0 at the end = it wrote nothing and steps no revision."""
        self.budget = Budget()
        self.budget.look = look
        if not bounded:
            self.budget.unbind()
        self._seen = seen or main
        self._ranges: Source = draft if ranges is None else ranges
        self._known: dict[bytes, Record | None] = {}
        """Newest records before it, of keys that it has looked at."""
        self._doubtful: list[tuple[str, Any]] = []
        """Chosen operations that the state may refuse, by kind and in their order, nested ones too."""

    def run(self, branches: Branches) -> TxnResult:
        """Raises `KeyNotFound`, `LeaseNotFound`, `Compacted`, `FutureRevision` or `ResultTooLarge`."""
        # All compares see the state before it, those of nested ones too (etcd 19); then what can be refused is, in
        # etcd's order: all puts, all ranges.
        chosen = self._decide(branches)
        if self._doubtful:
            self._check_puts()
            self._check_ranges()
            self._look_back()
        if len(chosen.operations) == 1 and chosen.operations[0][0] != "txn":
            return self._apply(chosen)  # an operation that is refused has written nothing
        outer = self.draft
        self.draft = Draft(outer, outer.floor)
        if self._ranges is outer:
            self._ranges = self.draft
        result = self._apply(chosen)
        outer.merge(self.draft)
        return result

    def _decide(self, branches: Branches) -> _Chosen:
        succeeded = True
        for compare in branches.compares:
            if not self._holds(compare):
                succeeded = False
                break
        operations: list[Operation] = []
        for which, asked in branches.success if succeeded else branches.failure:
            if which == "txn":
                self.budget.spend(1, 0)
                operations.append((which, self._decide(asked)))
                continue
            operations.append((which, asked))
            if (which == "put" and (asked.lease or asked.ignore_value or asked.ignore_lease)) or (
                which == "range" and asked.revision
            ):
                self._doubtful.append((which, asked))
        return _Chosen(succeeded, operations)

    def _check_puts(self) -> None:
        for which, put in self._doubtful:
            if which == "put":
                if put.ignore_value or put.ignore_lease:
                    self._now(put.key, 0)
                    self.draft.kept(put)
                if put.lease:
                    self.draft.require_lease(put.lease)

    def _check_ranges(self) -> None:
        for which, asked in self._doubtful:
            if which == "range":
                revision = asked.revision
                # A negative one stands for now, unless something was compacted: etcd compares it with what was.
                if revision > 0 or self.draft.floor or revision < -1:
                    check_revision(revision, self.draft.floor or 1, self.main - 1)

    def _look_back(self) -> None:
        """Meet all rows that reads of old revisions lack at once: one by one, each would begin the transaction anew."""
        budget, missing = self.budget, list[bytes]()
        rows, size = budget.rows, budget.read
        for which, asked in self._doubtful:
            if which == "range" and asked.revision > 0 and not asked.range_end:
                try:
                    newest = self.draft.newest(asked.key)
                    _, steps, read = budget.look(self.draft, asked.key, newest, asked.revision, budget.read, None)
                except Misses as misses:
                    missing += misses.rows
                else:
                    rows, size = rows - steps, size - read
                if rows < 0 or size < 0 or len(missing) >= FIRST_ROWS:
                    break
        if missing:
            raise Misses(missing)

    def _apply(self, chosen: _Chosen) -> TxnResult:
        results: list[OperationResult] = []
        for which, operation in chosen.operations:
            if which == "put":
                results.append(self._put(operation))
            elif which == "range":
                results.append(self._range(operation))
            elif which == "txn":
                results.append(self._apply(operation))
            else:
                results.append(self.delete(operation.key, operation.range_end, prev_kv=operation.prev_kv))
        return TxnResult(chosen.succeeded, tuple(results))

    def _put(self, request: kv_pb2.TxnPut) -> PutResult:
        key, value, lease, rows = request.key, request.value, request.lease, 1
        if request.ignore_value or request.ignore_lease:
            self.budget.spend(1, 0)
            rows = 0
            try:
                value, lease = self.draft.kept(request)
            except KeyNotFound:
                probe("put keeps what its transaction deleted")  # a deletion up to `\0` went before it (etcd 64)
                raise
        newest = self.draft.records.get(key)
        if newest is None:
            newest = self._known[key] if key in self._known else self.draft.newest(key)
        # All that may raise, before anything is written.
        size = 0 if newest is None else len(newest.value)
        self.budget.spend(rows, 0, size)
        shown = None
        if request.prev_kv and newest is not None and newest.version:
            self.budget.spend(0, len(key) + size + ROW_OVERHEAD)
            shown = key_value(key, newest)
        self.draft.put(newest, self.main, self.sub, key, value, lease)
        self.sub += 1
        return NO_PREVIOUS if shown is None else PutResult(shown)

    def delete(self, key: bytes, end: bytes, *, prev_kv: bool) -> DeleteResult:
        """Delete a range, of at most `MAX_RESULT_ROWS` keys: only a delete that stands alone can be sliced."""
        found: list[tuple[bytes, Record]] = []
        # All before the first is deleted, hence within what a transaction may read.
        with closing(self._live(self.draft, key, end, self.main)) as keys:
            for name, record in keys:
                if prev_kv:
                    self.budget.spend(0, len(name) + len(record.value) + ROW_OVERHEAD)
                found.append((name, record))
        for name, record in found:
            self.draft.delete(self.main, self.sub, name, record)
            self.sub += 1
        return DeleteResult(len(found), tuple(key_value(*pair) for pair in found) if prev_kv else ())

    def _range(self, request: kv_pb2.RangeRequest) -> RangeResult:
        revision = request.revision if request.revision > 0 else self._seen  # sees what earlier operations wrote
        selection, key, end = Selection.of(request), request.key, request.range_end
        if end:
            source = self._ranges
            return collect(source, source.keys.span(key, end), revision, self.budget, selection, self.draft.floor)
        record = self._now(key, 1, revision)
        if record is None:
            return RangeResult((), 0, False)  # noqa: FBT003
        if selection.count_only or not selection.passes(record):
            return RangeResult((), 1, False)  # noqa: FBT003
        kv = key_value(key, record if not selection.keys_only else record._replace(value=b""))
        self.budget.spend(0, len(key) + len(kv.value) + ROW_OVERHEAD)
        return RangeResult((kv,), 1, False)  # noqa: FBT003

    def _holds(self, compare: kv_pb2.Compare) -> bool:
        if not compare.range_end:
            return _satisfied(compare, self._now(compare.key, 1, self._seen))
        found, holds = False, True
        with closing(self._live(self._ranges, compare.key, compare.range_end, self._seen)) as keys:
            for _, record in keys:  # to the end in any case: a range that is too large is refused whatever it holds
                found, holds = True, holds and _satisfied(compare, record)
        # etcd: an empty range is compared as one missing key.
        return holds if found else _satisfied(compare, None)

    def _now(self, key: bytes, rows: int, revision: int = MAX_REVISION) -> Record | None:
        """A key as it was at `revision`, if it existed; charged as `rows` and what it took."""
        newest = self.draft.newest(key)
        if not self.sub:
            self._known[key] = newest
        if newest is None:
            self.budget.spend(rows, 0)
            return None
        if newest.main <= revision:
            self.budget.spend(rows, 0, len(newest.value))
            return newest if newest.version else None
        record, steps, read = self.budget.look(self.draft, key, newest, revision, self.budget.read, None)
        self.budget.spend(rows + steps, 0, read + len(newest.value))
        return record

    def _live(self, source: Source, key: bytes, end: bytes, seen: int) -> Generator[tuple[bytes, Record], None, None]:
        """The keys of a range that exist at `seen`, which nothing but a half-done deletion is above, `MAX_RESULT_ROWS`
        at most, each charged as it comes. To be closed."""
        if not end:
            record = self._now(key, 1, seen)
            if record is not None:
                yield key, record
            return
        budget, floor, count, joined = self.budget, self.draft.floor, 0, False
        rows = source.scan(*source.keys.span(key, end))
        try:
            for row, data in rows:
                name = row[KEY_AT:]
                newest = decode_record(data)
                if not newest.version and newest.main < floor:
                    budget.dead.passes(row, data, joined=joined)
                    joined = True
                    continue  # another replica may have deleted it already
                joined = False
                record, steps, read = at(source, name, newest, seen)
                budget.spend(1 + steps, 0, len(row) + len(data) + read)
                if record is not None:
                    count += 1
                    # One limit for what is answered and what is removed: also keys without values take memory here.
                    if count > MAX_RESULT_ROWS:
                        raise ResultTooLarge("the range has too many keys for one command; take it in parts")
                    yield name, record
        finally:
            close(rows)


def _satisfied(compare: kv_pb2.Compare, record: Record | None) -> bool:
    holds = _COMPARE[compare.result]
    if compare.target == kv_pb2.Compare.VALUE:
        return record is not None and holds(record.value, compare.value)
    return holds(0 if record is None else _TARGET[compare.target](record), compare.number)


def collect(
    source: Source, span: tuple[bytes, bytes], revision: int, budget: Budget, selection: Selection, floor: int
) -> RangeResult:
    """A whole range with its count, charged to `budget`. Raises `ResultTooLarge`."""
    found: tuple[KeyValue, ...] = ()
    count, cursor = 0, span[0][KEY_AT:]
    if not selection.count_only:
        enough = selection.enough
        asked = min(enough or MAX_RESULT_ROWS, MAX_RESULT_ROWS)
        part = page(
            source, span, revision, limit=asked, max_bytes=budget.size + 1, max_rows=budget.rows,
            keys_only=selection.blank, keep=selection.keep, floor=floor, max_read=budget.read + 1, dead=budget.dead,
            look=budget.look,
        )  # fmt: skip
        budget.spend(part.examined, part.size, part.read)
        found, count, cursor = part.kvs, part.counted, part.cursor
        if cursor and (len(found) < asked or asked != enough):
            raise ResultTooLarge
    rest = 0
    if cursor:
        low = span[0][:KEY_AT] + cursor
        others = page(
            source, (low, span[1]), revision, limit=0, max_bytes=0, max_rows=budget.rows, floor=floor,
            max_read=budget.read + 1, dead=budget.dead, look=budget.look,
        )  # fmt: skip
        budget.spend(others.examined, 0, others.read)
        if others.cursor:
            raise ResultTooLarge("the range has too many keys to be counted at once; use Scan")
        rest = others.counted
    kvs, more = selection.finish(found)
    return RangeResult(tuple(kvs), count + rest, more or (rest > 0 and not selection.count_only))

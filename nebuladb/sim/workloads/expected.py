"""What a transaction answers and leaves, told from what there was before it: too simple to be wrong, and of no use but
to an oracle. What it can't know (which leases there are, what is compacted) it leaves open."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

from nebuladb.errors import Reason
from nebuladb.kv.answer import DeleteResult, KeyValue, OperationResult, PutResult, RangeResult, TxnResult
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.sim.invariants.past import Contents

RESULTS: Final[tuple[Callable[[Any, Any], bool], ...]] = (operator.eq, operator.gt, operator.lt, operator.ne)
FIELDS: Final = ("version", "create_revision", "mod_revision", "value", "lease")
"""What a compare names, by the number of its target."""
ORDERS: Final = ("key", "version", "create_revision", "mod_revision", "value")
"""What a range is sorted by, likewise."""
MISSING: Final = KeyValue(b"", 0, 0, 0, 0, b"")

Then = Callable[[int], Contents | None]
"""What there was at a revision; None: nobody knows any more."""


class Refused(Exception):
    """The transaction is refused, and changes nothing."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.name)
        self.reason = reason


class Unknown(Exception):
    """It reads what nobody knows any more."""


class Expected(NamedTuple):
    """The outcome of one that is done."""

    result: TxnResult
    contents: Contents
    """All there is after it."""
    changes: int


class _Branch(NamedTuple):
    """The branch of a transaction that runs: its operations, and nested ones decided likewise."""

    succeeded: bool
    steps: tuple[tuple[str, Any], ...]

    def flat(self) -> Iterator[tuple[str, Any]]:
        """With the operations of nested ones in their places."""
        for kind, step in self.steps:
            if kind == "txn":
                yield from step.flat()
            else:
                yield kind, step


class Expectation:
    """Of one transaction on `before`, what there was at `revision`; `then` tells of older ones."""

    def __init__(self, request: kv_pb2.TxnRequest, before: Contents, revision: int, then: Then) -> None:
        self._before = before
        self._revision = revision
        self._then = then
        self._now = dict(before)
        self._changes = 0
        self._request = request
        self._branch = self._decide(request)
        steps = list(self._branch.flat())
        self.ranges: list[kv_pb2.RangeRequest] = [step for kind, step in steps if kind == "range"]
        """Those that are read."""
        self.puts: list[kv_pb2.TxnPut] = [step for kind, step in steps if kind == "put"]

    def outcome(self, floor: int) -> Expected:
        """`floor`: what is compacted; 0 if that isn't known. Raises `Refused` or `Unknown`."""
        for branch in (self._request.success, self._request.failure):
            written(branch)
        for put in self.puts:
            if (put.ignore_value or put.ignore_lease) and put.key not in self._before:
                raise Refused(Reason.KEY_NOT_FOUND)
        for asked in self.ranges:
            if asked.revision > self._revision:
                raise Refused(Reason.FUTURE_REVISION)
            if 0 < asked.revision < floor:
                raise Refused(Reason.COMPACTED)
        return Expected(self._run(self._branch), self._now, self._changes)

    def _decide(self, request: kv_pb2.TxnRequest | kv_pb2.NestedTxn) -> _Branch:
        """All compares see what was before, those of nested ones too."""
        succeeded = all(map(self._holds, request.compare))
        steps: list[tuple[str, Any]] = []
        for one in request.success if succeeded else request.failure:
            kind = one.WhichOneof("operation") or ""
            steps.append((kind, self._decide(one.txn) if kind == "txn" else getattr(one, kind)))
        return _Branch(succeeded, tuple(steps))

    def _holds(self, compare: kv_pb2.Compare) -> bool:
        found = [kv for key, kv in self._before.items() if inside(key, compare.key, compare.range_end)]
        return all(_satisfies(compare, kv) for kv in found or [MISSING])

    # --- operations: each sees what those before it did

    def _run(self, branch: _Branch) -> TxnResult:
        do: dict[str, Callable[[Any], OperationResult]] = {
            "range": self._range, "put": self._put, "delete": self._delete, "txn": self._run,
        }  # fmt: skip
        return TxnResult(branch.succeeded, tuple(do[kind](step) for kind, step in branch.steps))

    def _range(self, asked: kv_pb2.RangeRequest) -> RangeResult:
        contents = self._then(asked.revision) if asked.revision else self._now
        if contents is None:
            raise Unknown
        return select(contents, asked)

    def _put(self, put: kv_pb2.TxnPut) -> PutResult:
        old = self._now.get(put.key)
        if old is None and (put.ignore_value or put.ignore_lease):
            raise Refused(Reason.KEY_NOT_FOUND)
        new = MISSING._replace(
            key=put.key, create_revision=self._revision + 1, mod_revision=self._revision + 1, version=1,
            value=put.value, lease=put.lease,
        )  # fmt: skip
        if old is not None:
            new = new._replace(create_revision=old.create_revision, version=old.version + 1)
            new = new._replace(value=old.value) if put.ignore_value else new
            new = new._replace(lease=old.lease) if put.ignore_lease else new
        self._now[put.key] = new
        self._changes += 1
        return PutResult(old if put.prev_kv else None)

    def _delete(self, delete: kv_pb2.TxnDelete) -> DeleteResult:
        names = sorted(key for key in self._now if inside(key, delete.key, delete.range_end))
        gone = tuple(self._now.pop(key) for key in names)
        self._changes += len(gone)
        return DeleteResult(len(gone), gone if delete.prev_kv else ())


def inside(key: bytes, start: bytes, end: bytes) -> bool:
    """Whether a key lies in a range; without an end that is one key."""
    return start <= key < end if end else key == start


def select(contents: Contents, asked: kv_pb2.RangeRequest) -> RangeResult:
    """A range of `contents` with its filters, its order, its limit."""
    everything = [contents[key] for key in sorted(contents) if inside(key, asked.key, asked.range_end)]
    if asked.count_only:
        return RangeResult((), len(everything), more=False)
    bounds = (
        ("mod_revision", asked.min_mod_revision, asked.max_mod_revision),
        ("create_revision", asked.min_create_revision, asked.max_create_revision),
    )
    kvs = everything
    in_order = asked.order == asked.NONE or (asked.order == asked.ASCEND and asked.target == asked.KEY)
    if asked.limit and in_order and not any(low or high for _, low, high in bounds):
        kvs = kvs[: asked.limit + 1]  # no more are looked at, and only these are sorted
    for field, low, high in bounds:
        kvs = [kv for kv in kvs if low <= getattr(kv, field) and (not high or getattr(kv, field) <= high)]
    kvs = sorted(kvs, key=operator.attrgetter(ORDERS[asked.target]), reverse=asked.order == asked.DESCEND)
    shown = kvs[: asked.limit] if asked.limit else kvs
    if asked.keys_only:
        shown = [kv._replace(value=b"") for kv in shown]
    return RangeResult(tuple(shown), len(everything), more=len(shown) < len(kvs))


def written(branch: Iterable[kv_pb2.Operation]) -> tuple[set[bytes], list[tuple[bytes, bytes]]]:
    """What a branch may put, and the ranges that it may delete. Raises `Refused` if a key is written twice."""
    kinds = [(one.WhichOneof("operation"), one) for one in branch]
    puts: set[bytes] = set()
    deletes = [(one.delete.key, one.delete.range_end) for kind, one in kinds if kind == "delete"]
    for nested in (one.txn for kind, one in kinds if kind == "txn"):
        (then, gone), (other, gone_too) = written(nested.success), written(nested.failure)
        _check(then | other, puts, deletes)
        puts |= then | other
        deletes += gone + gone_too
    for key in (one.put.key for kind, one in kinds if kind == "put"):
        _check({key}, puts, deletes)
        puts.add(key)
    return puts, deletes


def _check(keys: set[bytes], puts: set[bytes], deletes: list[tuple[bytes, bytes]]) -> None:
    if keys & puts or any(inside(key, *span) for key in keys for span in deletes):
        raise Refused(Reason.DUPLICATE_KEY)


def _satisfies(compare: kv_pb2.Compare, kv: KeyValue) -> bool:
    field = FIELDS[compare.target]
    if field == "value":
        return kv is not MISSING and RESULTS[compare.result](kv.value, compare.value)
    return RESULTS[compare.result](getattr(kv, field), compare.number)

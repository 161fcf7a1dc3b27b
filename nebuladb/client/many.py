"""Many keys at once: one request a shard, all shards at the same time. Nothing here spans shards atomically."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

from nebuladb.client import methods
from nebuladb.client.methods import Method
from nebuladb.client.requests import built, check_mapping
from nebuladb.client.shardmap import ShardMap
from nebuladb.client.transport import Transport
from nebuladb.client.txn import txn_result, written
from nebuladb.client.types import BatchResult, KeyValue, RangeResult, TxnResult
from nebuladb.errors import DuplicateKey, NebulaError, Outcome, ResultTooLarge, UnknownOutcome, WrongEpoch, WrongShard
from nebuladb.pb.nebula.v1 import keyspace_pb2, kv_pb2

MAX_OPERATIONS: Final = 128
"""Of one request: a transaction's bound."""
MAX_BYTES: Final = 1 << 20
"""Of one request, keys and values together; a larger pair has a request of its own."""
MAX_IN_FLIGHT: Final = 32

Keyed = tuple[bytes, kv_pb2.Operation]
Part = tuple[int, TxnResult]
"""The shard that answered, and what."""
Sent = tuple[list[Keyed], Part | BaseException]
"""A request's operations, and what became of it."""
Send = Callable[[kv_pb2.TxnRequest], Awaitable[Part]]
Stale = (WrongEpoch, WrongShard)
"""What says that the map is an old one: the keyspace was dropped, say, and made anew with other shards."""


class Many:
    """`get_many` and `batch` of one keyspace, with the map of shards that they need."""

    def __init__(self, transport: Transport, keyspace: str) -> None:
        self._transport = transport
        self._keyspace = keyspace
        self._map: ShardMap | None = None
        self._in_flight = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def get(self, keys: Iterable[bytes]) -> dict[bytes, KeyValue | None]:
        """Each key's value now; not all of one revision. Raises what the first part that failed did."""
        found: dict[bytes, KeyValue | None] = dict.fromkeys(keys)
        operations = [(key, kv_pb2.Operation(range=kv_pb2.RangeRequest(key=key))) for key in found]
        for part in await self._run(operations, self._read):
            if isinstance(part, BaseException):
                raise part
            for result in part[1].results:
                if isinstance(result, RangeResult):
                    found.update((kv.key, kv) for kv in result.kvs)
        return found

    async def batch(self, puts: Mapping[bytes, bytes], deletes: Iterable[bytes]) -> BatchResult:
        """Write all of it; see `AsyncClient.batch`. Raises `DuplicateKey` before anything is sent: its requests are
        under way at the same time, so nothing would say which of two writes of a key comes last."""
        check_mapping("puts", puts)
        deletes = list(deletes)
        for key, times in Counter([*puts, *deletes]).items():
            if times > 1:
                raise DuplicateKey(f"the batch writes key {key[:100]!r} twice; leave one, or write in two batches")
        operations = [
            (key, kv_pb2.Operation(put=kv_pb2.TxnPut(key=key, value=written(value)))) for key, value in puts.items()
        ] + [(key, kv_pb2.Operation(delete=kv_pb2.TxnDelete(key=key))) for key in deletes]
        parts = await self._run(operations, self._write)
        if errors := [part for part in parts if isinstance(part, BaseException)]:
            raise _together(errors, len(parts))
        revisions: dict[int, int] = {}
        for group, result in (part for part in parts if not isinstance(part, BaseException)):
            revisions[group] = max(revisions.get(group, 0), result.revision)
        return BatchResult(revisions)

    async def _write(self, request: kv_pb2.TxnRequest) -> Part:
        return await self._divided(methods.TXN, request)

    async def _read(self, request: kv_pb2.TxnRequest) -> Part:
        return await self._divided(methods.TXN_READ, request)

    async def _divided(self, method: Method[kv_pb2.TxnResponse], request: kv_pb2.TxnRequest) -> Part:
        """In halves, if the values that are there are too large for one answer, or to be written over at once: how
        large they are nobody knows before, and what is refused for it did nothing."""
        try:
            return await self._txn(method, request)
        except ResultTooLarge:
            middle = len(request.success) // 2
            if not middle:
                raise
        halves = request.success[:middle], request.success[middle:]
        _, first = await self._divided(method, kv_pb2.TxnRequest(keyspace=request.keyspace, success=halves[0]))
        try:
            group, second = await self._divided(method, kv_pb2.TxnRequest(keyspace=request.keyspace, success=halves[1]))
        except NebulaError as error:
            if method is methods.TXN and error.outcome is Outcome.FAILED:
                error.outcome = Outcome.UNKNOWN  # the first half is done
            raise
        return group, TxnResult(second.revision, second.succeeded, first.results + second.results)

    async def _txn(self, method: Method[kv_pb2.TxnResponse], request: kv_pb2.TxnRequest) -> Part:
        response = await self._transport.call(method, request)
        return response.header.group, txn_result(response)

    async def _run(self, operations: list[Keyed], send: Send) -> list[Part | BaseException]:
        """Send them; what became of each request. Those that were refused by an old map, and so did nothing, go once
        more by the new one, unless another has failed for good."""
        self._transport.check_home()
        fresh = self._map is None
        sent = await self._round(operations, send)
        parts = [part for _, part in sent]
        refused = [one for those, part in sent if not fresh and _refused(part) for one in those]
        if not refused:
            return parts
        if (cause := _failed(parts)) is not None:
            again: list[Sent] = [(refused, cause)]
        else:
            try:
                again = await self._round(refused, send)
            except NebulaError as error:  # there is no new map to be had; other parts may be done
                again = [(refused, error)]
        return [part for part in parts if not _refused(part)] + [part for _, part in again]

    async def _round(self, operations: list[Keyed], send: Send) -> list[Sent]:
        """A request for each `MAX_OPERATIONS` of a shard, and what became of it. Once one has failed for good none is
        begun any more; what wasn't begun has its error. A map that proves to be old is forgotten."""
        shards = await self._shards()
        requests: list[tuple[list[Keyed], int]] = []
        filling: dict[int, tuple[list[Keyed], int]] = {}
        for key, operation in operations:
            group, weight = shards.group(key), operation.ByteSize()
            those, size = filling.get(group, (None, 0))
            if those is None or len(those) >= MAX_OPERATIONS or size + weight > MAX_BYTES:
                those, size = [], 0
                requests.append((those, group))
            those.append((key, operation))
            filling[group] = (those, size + weight)
        failures: list[BaseException] = []
        sends = (self._send(those, send, failures) for those, _ in requests)
        parts = await asyncio.gather(*sends, return_exceptions=True)
        failures.clear()  # what an error refers to would refer to it
        for (_, group), part in zip(requests, parts, strict=True):
            old = isinstance(part, Stale) if isinstance(part, BaseException) else part[0] != group
            if old and self._map is shards:
                self._map = None
        return [(those, part) for (those, _), part in zip(requests, parts, strict=True)]

    async def _send(self, operations: list[Keyed], send: Send, failures: list[BaseException]) -> Part | BaseException:
        """What came of them, or where there are `failures` before they are begun, the first of those."""
        async with self._in_flight:
            if failures:
                return failures[0]
            request = kv_pb2.TxnRequest(keyspace=self._keyspace, success=[operation for _, operation in operations])
            try:
                return await send(request)
            except BaseException as error:
                if not _refused(error):
                    failures.append(error)
                raise

    async def _shards(self) -> ShardMap:
        if self._map is None:
            request = built(keyspace_pb2.KeyspaceDescribeRequest, name=self._keyspace)
            self._map = ShardMap((await self._transport.call(methods.KEYSPACE_DESCRIBE, request)).keyspace)
        return self._map


def _refused(part: Part | BaseException) -> bool:
    """Whether it shows that the map is old, and nothing was done."""
    return isinstance(part, Stale) and part.outcome is Outcome.FAILED


def _failed(parts: Iterable[Part | BaseException]) -> BaseException | None:
    """Why one of them failed for good, if one did."""
    return next((part for part in parts if isinstance(part, BaseException) and not _refused(part)), None)


def _together(errors: list[BaseException], parts: int) -> BaseException:
    """One error for all parts of a write: *failed* only if every one certainly did nothing (house rule 5)."""
    failed = all(isinstance(error, NebulaError) and error.outcome is Outcome.FAILED for error in errors)
    if not isinstance(errors[0], NebulaError) or (failed and len(errors) == parts):
        return errors[0]
    return UnknownOutcome(
        f"{len(errors)} of {parts} parts were not done, or may not have been; the first: {errors[0].message}"
    )

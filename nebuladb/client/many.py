"""Many keys at once: one request a shard, all shards at the same time. Nothing here spans shards atomically."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

from nebuladb.client import methods
from nebuladb.client.shardmap import ShardMap
from nebuladb.client.transport import Transport
from nebuladb.client.txn import txn_result
from nebuladb.client.types import BatchResult, KeyValue, RangeResult, TxnResult
from nebuladb.errors import NebulaError, Outcome, ResultTooLarge, UnknownOutcome, WrongEpoch, WrongShard
from nebuladb.pb.nebula.v1 import keyspace_pb2, kv_pb2

MAX_OPERATIONS: Final = 128
"""Of one request: a transaction's bound."""
MAX_BYTES: Final = 1 << 20
"""Of one request, keys and values together; a larger pair has a request of its own."""
MAX_IN_FLIGHT: Final = 32

Commit = Callable[[kv_pb2.TxnRequest], Awaitable[TxnResult]]


class Many:
    """`get_many` and `batch` of one keyspace, with the map of shards that they need."""

    def __init__(self, transport: Transport, keyspace: str, commit: Commit) -> None:
        """`commit` sends a transaction that writes."""
        self._transport = transport
        self._keyspace = keyspace
        self._commit = commit
        self._map: ShardMap | None = None
        self._in_flight = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def get(self, keys: Iterable[bytes]) -> dict[bytes, KeyValue | None]:
        """Each key's value now; not all of one revision."""
        found: dict[bytes, KeyValue | None] = dict.fromkeys(keys)
        operations = [(key, kv_pb2.Operation(range=kv_pb2.RangeRequest(key=key))) for key in found]
        for part, _ in await self._run(operations, self._read):
            for result in part.results:
                if isinstance(result, RangeResult):
                    found.update((kv.key, kv) for kv in result.kvs)
        return found

    async def batch(self, puts: Mapping[bytes, bytes], deletes: Iterable[bytes]) -> BatchResult:
        """Write all of it; see `AsyncClient.batch`."""
        operations = [
            (key, kv_pb2.Operation(put=kv_pb2.TxnPut(key=key, value=value))) for key, value in puts.items()
        ] + [(key, kv_pb2.Operation(delete=kv_pb2.TxnDelete(key=key))) for key in deletes]
        revisions: dict[int, int] = {}
        for part, group in await self._run(operations, self._commit):
            revisions[group] = max(revisions.get(group, 0), part.revision)
        return BatchResult(revisions)

    async def _read(self, request: kv_pb2.TxnRequest) -> TxnResult:
        """In halves, if the values are too large for one answer: how large they are nobody knows before."""
        try:
            return txn_result(await self._transport.call(methods.TXN_READ, request))
        except ResultTooLarge:
            middle = len(request.success) // 2
            if not middle:
                raise
        parts = request.success[:middle], request.success[middle:]
        first, second = [await self._read(kv_pb2.TxnRequest(keyspace=request.keyspace, success=part)) for part in parts]
        return TxnResult(second.revision, second.succeeded, first.results + second.results)

    async def _run(self, operations: list[tuple[bytes, kv_pb2.Operation]], send: Commit) -> list[tuple[TxnResult, int]]:
        """Send them, a request for each `MAX_OPERATIONS` of a shard; the results with their shards."""
        shards = await self._shards()
        requests: list[tuple[kv_pb2.TxnRequest, int]] = []
        filling: dict[int, tuple[kv_pb2.TxnRequest, int]] = {}
        for key, operation in operations:
            group, weight = shards.group(key), operation.ByteSize()
            request, size = filling.get(group, (None, 0))
            if request is None or len(request.success) >= MAX_OPERATIONS or size + weight > MAX_BYTES:
                request, size = kv_pb2.TxnRequest(keyspace=self._keyspace), 0
                requests.append((request, group))
            request.success.append(operation)
            filling[group] = (request, size + weight)
        results = await asyncio.gather(*(self._send(request, send) for request, _ in requests), return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        if any(isinstance(error, WrongEpoch | WrongShard) for error in errors):
            self._map = None
        if errors:
            raise _together(errors, len(requests))
        groups = [group for _, group in requests]
        return [(part, group) for part, group in zip(results, groups, strict=True) if isinstance(part, TxnResult)]

    async def _send(self, request: kv_pb2.TxnRequest, send: Commit) -> TxnResult:
        async with self._in_flight:
            return await send(request)

    async def _shards(self) -> ShardMap:
        if self._map is None:
            request = keyspace_pb2.KeyspaceDescribeRequest(name=self._keyspace)
            self._map = ShardMap((await self._transport.call(methods.KEYSPACE_DESCRIBE, request)).keyspace)
        return self._map


def _together(errors: list[BaseException], parts: int) -> BaseException:
    """One error for all parts: *failed* only if every one certainly did nothing (house rule 5)."""
    failed = all(isinstance(error, NebulaError) and error.outcome is Outcome.FAILED for error in errors)
    if not isinstance(errors[0], NebulaError) or (failed and len(errors) == parts):
        return errors[0]
    return UnknownOutcome(
        f"{len(errors)} of {parts} parts were not done, or may not have been; the first: {errors[0].message}"
    )

"""A constant load of puts, compare-and-sets, deletes and gets, over raw calls: what was told is kept, nothing retried.

The SDK would hide what this is about. A call goes to a random node; without an answer its outcome is unknown, and with
an error it is what the error says.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.message import Message

from nebuladb.client.transport import Link
from nebuladb.ids import DEFAULT_GROUP
from nebuladb.pb.nebula.v1 import cluster_pb2, common_pb2, kv_pb2
from tests.integration.checker import Kind, Observation, Operation, Result

WRITERS: Final = 16
KEYS_PER_WRITER: Final = 3
CALL_SECONDS: Final = 3.0
OBSERVE_SECONDS: Final = 20.0
CONNECT_SECONDS: Final = 0.3
BACKOFF_SECONDS: Final = 0.02
"""After a refusal: without a leader every call is refused at once, and nothing is gained by asking in a circle."""
DETAIL: Final = "nebula-error-bin"
PREFIX: Final = b"load/"
WRONG_REVISION: Final = 1 << 40


@dataclass(slots=True)
class _Key:
    """What its writer knows of it."""

    name: str
    value: str | None = None
    revision: int = 0
    """0 = missing."""


class Load:
    """Writers over `endpoints`, and the history of what they were told."""

    def __init__(self, endpoints: Sequence[str], rng: random.Random, think: float = 0.0) -> None:
        """`think`: seconds of each writer between two operations."""
        self._links = [Link(endpoint) for endpoint in endpoints]
        self._rng = rng
        self._think = think
        self.history: list[Operation] = []
        self.acknowledged = 0
        """Writes that took effect and were acknowledged."""
        self._highest = 0
        self._names = 0
        self._busy = 0
        self._open = asyncio.Event()
        self._changed = asyncio.Condition()
        self._writers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the writers."""
        self._open.set()
        self._writers = [asyncio.create_task(self._write(random.Random(self._rng.random()))) for _ in range(WRITERS)]

    async def close(self) -> None:
        """End writers and connections; what was in flight is of no interest any more."""
        for writer in self._writers:
            writer.cancel()
        await asyncio.gather(*self._writers, return_exceptions=True)
        for link in self._links:
            await link.channel.close()

    async def pause(self) -> None:
        """Let what is in flight finish and begin nothing."""
        self._open.clear()
        async with self._changed:
            await self._changed.wait_for(lambda: not self._busy or self._failed())
        self._check()

    def resume(self) -> None:
        """Go on."""
        self._open.set()

    async def wait_acknowledged(self, count: int, seconds: float) -> bool:
        """Until `count` writes in all were acknowledged; False if that takes longer than `seconds`."""
        try:
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(lambda: self.acknowledged >= count or self._failed())
        except TimeoutError:
            return False
        self._check()
        return True

    async def observe(self, node: int) -> Observation:
        """Every key, by one linearizable scan through `node`. Only while paused."""
        keys: dict[str, tuple[str, int]] = {}
        revision = 0
        call = self._links[node].channel.unary_stream(
            "/nebula.v1.KV/Scan",
            request_serializer=_serialize,
            response_deserializer=kv_pb2.ScanResponse.FromString,
        )
        request = kv_pb2.ScanRequest(key=PREFIX, range_end=PREFIX[:-1] + b"0")
        async for page in call(request, timeout=OBSERVE_SECONDS, wait_for_ready=True):
            revision = max(revision, page.header.revision, *(shard.revision for shard in page.revisions))
            for kv in page.kvs:
                keys[kv.key.decode()] = (kv.value.decode(), kv.mod_revision)
        return Observation(len(self.history), revision, keys)

    async def state_hashes(self, group: int) -> list[bytes]:
        """Each node's hash of a group's state, all at one applied index."""
        index = (await self._hash(0, cluster_pb2.StateHashRequest(group=group))).index
        request = cluster_pb2.StateHashRequest(group=group, index=index)
        return [(await self._hash(node, request)).hash for node in range(len(self._links))]

    async def _hash(self, node: int, request: cluster_pb2.StateHashRequest) -> cluster_pb2.StateHashResponse:
        call = self._call(node, "/nebula.v1.Cluster/StateHash", cluster_pb2.StateHashResponse)
        answer: cluster_pb2.StateHashResponse = await call(request, timeout=OBSERVE_SECONDS, wait_for_ready=True)
        return answer

    def _call(self, node: int, path: str, answer: type[Message]) -> Any:
        return self._links[node].channel.unary_unary(
            path, request_serializer=_serialize, response_deserializer=answer.FromString
        )

    def _failed(self) -> bool:
        return any(writer.done() for writer in self._writers)

    def _check(self) -> None:
        """A writer that ended is a bug of this file; say so instead of waiting for ever."""
        for writer in self._writers:
            if writer.done():
                writer.result()

    async def _write(self, rng: random.Random) -> None:
        keys = [self._new_key() for _ in range(KEYS_PER_WRITER)]
        try:
            while True:
                while not self._open.is_set():  # it may be cleared again before this task runs
                    await self._open.wait()
                self._busy += 1
                try:
                    await self._one(rng, keys)
                finally:
                    self._busy -= 1
                    async with self._changed:
                        self._changed.notify_all()
                if self._think:
                    await asyncio.sleep(self._think)
        finally:
            async with self._changed:
                self._changed.notify_all()

    async def _one(self, rng: random.Random, keys: list[_Key]) -> None:
        """One operation on one of a writer's keys."""
        place = rng.randrange(len(keys))
        key, node = keys[place], rng.randrange(len(self._links))
        if not await self._links[node].connected(CONNECT_SECONDS):
            await asyncio.sleep(BACKOFF_SECONDS)
            return
        kind = rng.choices(list(Kind), [50, 25, 12, 13])[0]
        operation = await self._ask(node, key, kind, right=rng.random() < 0.8)
        self.history.append(operation)
        self._highest = max(self._highest, operation.revision)
        if operation.wrote:
            self.acknowledged += 1
            key.value = operation.value
            key.revision = operation.revision if operation.value is not None else 0
        elif operation.result is Result.UNKNOWN and kind is not Kind.GET:
            keys[place] = self._new_key()
        elif operation.result is Result.FAILED:
            await asyncio.sleep(BACKOFF_SECONDS)

    def _new_key(self) -> _Key:
        self._names += 1
        return _Key(f"{PREFIX.decode()}{self._names:06}")

    async def _ask(self, node: int, key: _Key, kind: Kind, *, right: bool) -> Operation:
        floor = self._highest
        self._names += 1
        value = f"value {self._names} of {key.name}"
        name = key.name.encode()
        try:
            match kind:
                case Kind.PUT:
                    put = kv_pb2.PutRequest(key=name, value=value.encode())
                    header = (await self._unary(node, "Put", put, kv_pb2.PutResponse)).header
                    return _done(key, kind, floor, header, value)
                case Kind.DELETE:
                    answer = await self._unary(node, "Delete", kv_pb2.DeleteRequest(key=name), kv_pb2.DeleteResponse)
                    return _done(key, kind, floor, answer.header, None, succeeded=answer.deleted == 1)
                case Kind.CAS:
                    request = _compare_and_set(name, value, key.revision if right else WRONG_REVISION)
                    answer = await self._unary(node, "Txn", request, kv_pb2.TxnResponse)
                    return _done(key, kind, floor, answer.header, value, matching=right, succeeded=answer.succeeded)
                case Kind.GET:
                    answer = await self._unary(node, "Get", kv_pb2.GetRequest(key=name), kv_pb2.GetResponse)
                    found = answer.kv if answer.HasField("kv") else None
                    return Operation(
                        key.name,
                        kind,
                        Result.ACKNOWLEDGED,
                        floor,
                        answer.header.revision,
                        found.value.decode() if found else None,
                        mod_revision=found.mod_revision if found else 0,
                    )
        except grpc.aio.AioRpcError as error:
            written = value if kind in (Kind.PUT, Kind.CAS) else None
            matching = kind is not Kind.CAS or right
            return Operation(key.name, kind, outcome(error), floor, 0, written, matching, succeeded=False)

    async def _unary(self, node: int, method: str, request: Message, answer: type[Message]) -> Any:
        return await self._call(node, f"/nebula.v1.KV/{method}", answer)(request, timeout=CALL_SECONDS)


def _serialize(message: Message) -> bytes:
    # Message.SerializeToString itself won't do: called on the base class it yields nothing.
    return message.SerializeToString()


def _compare_and_set(name: bytes, value: str, revision: int) -> kv_pb2.TxnRequest:
    """Put `value` if the key's mod revision is `revision`, 0 = it is missing."""
    return kv_pb2.TxnRequest(
        compare=[kv_pb2.Compare(result=kv_pb2.Compare.EQUAL, target=kv_pb2.Compare.MOD, key=name, number=revision)],
        success=[kv_pb2.Operation(put=kv_pb2.TxnPut(key=name, value=value.encode()))],
    )


def _done(
    key: _Key,
    kind: Kind,
    floor: int,
    header: common_pb2.Header,
    value: str | None,
    *,
    matching: bool = True,
    succeeded: bool = True,
) -> Operation:
    return Operation(key.name, kind, Result.ACKNOWLEDGED, floor, header.revision, value, matching, succeeded)


def outcome(error: grpc.aio.AioRpcError) -> Result:
    """What a client may conclude. Without our servers' detail the transport broke, and nobody knows."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAIL and isinstance(value, bytes):
            detail = common_pb2.ErrorDetail.FromString(value)
            return Result.FAILED if detail.outcome == common_pb2.FAILED else Result.UNKNOWN
    return Result.UNKNOWN


HASHED_GROUPS: Final = (1, int(DEFAULT_GROUP), 3)
"""Those that every cluster has."""

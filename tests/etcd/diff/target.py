"""One server, as the differential test speaks to it: bytes over grpcio."""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Final

import grpc
from google.protobuf.message import Message

from nebuladb.pb.etcd import lease_pb2, maintenance_pb2, watch_pb2
from tests.etcd.diff.calls import ANSWERS, Call, Failure
from tests.etcd.diff.normal import normal
from tests.etcd.diff.upkeep_ops import SELF

SECONDS: Final = 60.0
"""Patience with one answer."""
OPTIONS: Final = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
SNAPSHOT_BLOB: Final = 32 << 10
INVALID: Final = -1
"""The watcher of answers that are about none."""
SENT_TO_INVALID: Final = -(1 << 62)


def failure(error: Any) -> Failure:
    """What a client sees of it."""
    return Failure(error.code().name, error.details())


class Outbox:
    """What we say on a stream; None ends it."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def put(self, message: Message | None) -> None:
        """Say it."""
        self._queue.put(None if message is None else message.SerializeToString())

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._queue.get, None)


class WatchStream:
    """One watch stream and, by watcher, what came on it: control answers whole, each event alone.

    How many revisions one message carries, and so where fragments are cut, is timing and not compared; that no revision
    is split, unless by fragments, is, and that fragments end. What comes for two watchers has no order among them.
    """

    def __init__(self, channel: grpc.Channel, leases: dict[int, int]) -> None:
        self.came: dict[int, list[str]] = defaultdict(list)
        self.created = 0
        """Answers to creations so far."""
        self.seen: dict[int, int] = defaultdict(int)
        """Watcher → newest revision that it was told of."""
        self._fragments: set[int] = set()
        """Watchers whose last message was a fragment."""
        self.changed = threading.Condition()
        self._leases = leases
        self._refused = False
        self._out = Outbox()
        stub: Any = channel.stream_stream("/etcdserverpb.Watch/Watch")
        self._call: Any = stub(iter(self._out))
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def say(self, request: watch_pb2.WatchRequest) -> None:
        """A message of the client."""
        self._out.put(request)

    def _read(self) -> None:
        try:
            for raw in self._call:
                response = watch_pb2.WatchResponse.FromString(raw)
                with self.changed:
                    self._take(response)
                    self.changed.notify_all()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.CANCELLED:
                with self.changed:
                    self.came[INVALID].append(repr(failure(error)))
                    self.changed.notify_all()

    def _take(self, response: watch_pb2.WatchResponse) -> None:
        normal(response, self._leases)
        self._refused = response.canceled
        watcher = response.watch_id
        # A client may name a watcher -1, and refusals go by that name, too, in no order with what that one is sent.
        came = self.came[SENT_TO_INVALID if watcher == INVALID and not response.created else watcher]
        if response.created:
            self.created += 1
            self.seen[watcher] = 0
        if not response.events:
            came.append(f"{response}")
            return
        first, last = response.events[0].kv.mod_revision, response.events[-1].kv.mod_revision
        if watcher not in self._fragments and first <= self.seen[watcher]:
            came.append(f"revision {first} was split, or came again")
        came += [f"event {event}" for event in response.events]
        if response.header.revision < last:
            came.append("its header's revision is below its events'")
        self._fragments.discard(watcher)
        if response.fragment:
            self._fragments.add(watcher)
        self.seen[watcher] = last

    def amount(self) -> int:
        """How much has come since it was last compared."""
        return sum(map(len, list(self.came.values())))

    def refused(self) -> bool:
        """Whether what came last ended a watcher."""
        return self._refused

    def same(self, other: WatchStream) -> bool:
        """Whether the same has come on both, and no revision is half told."""
        ids = {*self.came, *other.came}
        return (
            not self._fragments
            and not other._fragments
            and all(self.came.get(at, []) == other.came.get(at, []) for at in ids)
        )

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Until `condition()`, which may look at all this has; False: not in time."""
        with self.changed:
            return self.changed.wait_for(condition, seconds)

    def close(self) -> None:
        """End it."""
        self._call.cancel()
        self._out.put(None)
        self._thread.join(SECONDS)


class Target:
    """A server under test. `leases`: ids that it chose → ids that the reference chose for the same grant."""

    def __init__(self, endpoint: str) -> None:
        self.leases: dict[int, int] = {}
        self.streams: dict[int, WatchStream] = {}
        self._own: dict[int, int] = {}
        self._channel = grpc.insecure_channel(endpoint, options=OPTIONS)
        self._stubs: dict[str, Any] = {
            method: self._channel.unary_unary(f"/etcdserverpb.{method}") for method in ANSWERS
        }
        self._renewals = Outbox()
        self._renewed: Any = None
        status = self._stubs["Maintenance/Status"]
        self._member = 0
        with contextlib.suppress(grpc.RpcError):  # it will show
            self._member = maintenance_pb2.StatusResponse.FromString(status(b"", timeout=SECONDS)).header.member_id

    def close(self) -> None:
        """End all streams."""
        for stream in self.streams.values():
            stream.close()
        self._renewals.put(None)
        self._channel.close()

    def learn(self, own: int, reference: int) -> None:
        """A lease's id was left to the servers, and they chose."""
        self.leases[own] = reference
        self._own[reference] = own

    def send(self, call: Call) -> Any:
        """A future of the answer's bytes."""
        request = type(call.request).FromString(call.request.SerializeToString())
        self._localise(request)
        return self._stubs[call.method].future(request.SerializeToString(), timeout=SECONDS)

    def answer(self, call: Call, future: Any) -> Message | Failure:
        """What came of it, normal."""
        try:
            answer = ANSWERS[call.method].FromString(future.result())
        except grpc.RpcError as error:
            return failure(error)
        normal(answer, self.leases)
        return answer

    def _localise(self, message: Message) -> None:
        """Put this server's own ids for what stands for them."""
        for field, value in message.ListFields():
            if field.name in {"lease", "ID"}:
                setattr(message, field.name, self._own.get(value, value))
            elif field.name in {"memberID", "targetID"} and value == SELF:
                setattr(message, field.name, self._member)
            elif field.message_type is not None:
                for part in value if field.is_repeated else (value,):
                    self._localise(part)

    def keep_alive(self, lease: int) -> Message | Failure:
        """One renewal on the one stream for them."""
        if self._renewed is None:
            self._renewals = Outbox()
            stub: Any = self._channel.stream_stream("/etcdserverpb.Lease/LeaseKeepAlive")
            self._renewed = stub(iter(self._renewals))
        self._renewals.put(lease_pb2.LeaseKeepAliveRequest(ID=self._own.get(lease, lease)))
        try:
            answer = lease_pb2.LeaseKeepAliveResponse.FromString(next(self._renewed))
        except grpc.RpcError as error:
            self._renewals.put(None)
            self._renewed = None
            return failure(error)
        normal(answer, self.leases)
        return answer

    def snapshot(self) -> str:
        """Its form: sizes that agree, headers, and the digest at the end (etcd 54)."""
        stub: Any = self._channel.unary_stream("/etcdserverpb.Maintenance/Snapshot")
        try:
            parts = [maintenance_pb2.SnapshotResponse.FromString(raw) for raw in stub(b"", timeout=SECONDS)]
        except grpc.RpcError as error:
            return repr(failure(error))
        blobs = [part.blob for part in parts]
        left = sum(map(len, blobs[:-1]))
        said = True
        for part in parts[:-1]:
            left -= len(part.blob)
            said = said and part.remaining_bytes == left
        whole = hashlib.sha256(b"".join(blobs[:-1])).digest() == blobs[-1]
        # etcd's first ones are short where its file is: what is fixed is the bound.
        bounded = max(map(len, blobs)) <= SNAPSHOT_BLOB
        return f"{said=} {whole=} {bounded=} last={parts[-1].remaining_bytes} header={parts[0].HasField('header')}"

    def open(self, stream: int) -> None:
        """A watch stream."""
        self.streams[stream] = WatchStream(self._channel, self.leases)

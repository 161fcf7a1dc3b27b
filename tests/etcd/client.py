"""A small client of etcd's API for tests: bytes over grpcio, one answer at a time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Self, TypeVar

import grpc
from google.protobuf.message import Message

from nebuladb.pb.etcd import kv_pb2 as kv
from nebuladb.pb.etcd import lease_pb2 as leases
from nebuladb.pb.etcd import maintenance_pb2 as maintenance
from nebuladb.pb.etcd import mvcc_pb2
from nebuladb.pb.etcd import watch_pb2 as watches

SECONDS: Final = 20.0
OPTIONS: Final = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
Metadata = Sequence[tuple[str, str]]
Answer = TypeVar("Answer", bound=Message)


class Refused(Exception):
    """A status that isn't OK."""

    def __init__(self, error: Any) -> None:
        self.code: str = error.code().name
        self.text: str = error.details()
        super().__init__(f"{self.code} {self.text}")


class Client:
    """Of one endpoint."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.channel = grpc.insecure_channel(endpoint, options=OPTIONS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def call(
        self, method: str, request: Message, answer: type[Answer], metadata: Metadata = (), seconds: float = SECONDS
    ) -> Answer:
        """One unary call; `method` with its service, without the package of most. Raises `Refused`."""
        path = method if method.startswith("v3") else f"etcdserverpb.{method}"
        stub: Any = self.channel.unary_unary(f"/{path}")
        try:
            return answer.FromString(stub(request.SerializeToString(), timeout=seconds, metadata=metadata))
        except grpc.RpcError as error:
            raise Refused(error) from None

    def stream(self, method: str, request: Message, answer: type[Answer]) -> Iterator[Answer]:
        """A call with many answers."""
        stub: Any = self.channel.unary_stream(f"/etcdserverpb.{method}")
        try:
            for raw in stub(request.SerializeToString(), timeout=SECONDS):
                yield answer.FromString(raw)
        except grpc.RpcError as error:
            raise Refused(error) from None

    def range(self, key: bytes, range_end: bytes = b"", seconds: float = SECONDS, **more: Any) -> kv.RangeResponse:
        return self.call(
            "KV/Range", kv.RangeRequest(key=key, range_end=range_end, **more), kv.RangeResponse, seconds=seconds
        )

    def get(self, key: bytes, **more: Any) -> mvcc_pb2.KeyValue | None:
        """The one key, if it is there."""
        found = self.range(key, **more).kvs
        return found[0] if found else None

    def put(self, key: bytes, value: bytes = b"", **more: Any) -> kv.PutResponse:
        return self.call("KV/Put", kv.PutRequest(key=key, value=value, **more), kv.PutResponse)

    def delete(self, key: bytes, range_end: bytes = b"", **more: Any) -> kv.DeleteRangeResponse:
        request = kv.DeleteRangeRequest(key=key, range_end=range_end, **more)
        return self.call("KV/DeleteRange", request, kv.DeleteRangeResponse)

    def txn(
        self,
        compare: Sequence[kv.Compare] = (),
        success: Sequence[Message] = (),
        failure: Sequence[Message] = (),
        seconds: float = SECONDS,
    ) -> kv.TxnResponse:
        """A transaction; operations are plain requests."""
        return self.call("KV/Txn", txn(compare, success, failure), kv.TxnResponse, seconds=seconds)

    def compact(self, revision: int) -> kv.CompactionResponse:
        return self.call("KV/Compact", kv.CompactionRequest(revision=revision, physical=True), kv.CompactionResponse)

    def revision(self) -> int:
        """The store's."""
        return self.range(b"nothing").header.revision

    def grant(self, ttl: int, lease: int = 0) -> leases.LeaseGrantResponse:
        return self.call("Lease/LeaseGrant", leases.LeaseGrantRequest(TTL=ttl, ID=lease), leases.LeaseGrantResponse)

    def revoke(self, lease: int) -> leases.LeaseRevokeResponse:
        return self.call("Lease/LeaseRevoke", leases.LeaseRevokeRequest(ID=lease), leases.LeaseRevokeResponse)

    def lease_ids(self) -> set[int]:
        """Those that there are."""
        answer = self.call("Lease/LeaseLeases", leases.LeaseLeasesRequest(), leases.LeaseLeasesResponse)
        return {lease.ID for lease in answer.leases}

    def time_to_live(self, lease: int, *, keys: bool = False) -> leases.LeaseTimeToLiveResponse:
        request = leases.LeaseTimeToLiveRequest(ID=lease, keys=keys)
        return self.call("Lease/LeaseTimeToLive", request, leases.LeaseTimeToLiveResponse)

    def keep_alive(self, lease: int) -> leases.LeaseKeepAliveResponse:
        """One renewal, on a stream of its own."""
        stub: Any = self.channel.stream_stream("/etcdserverpb.Lease/LeaseKeepAlive")
        call = stub(iter([leases.LeaseKeepAliveRequest(ID=lease).SerializeToString()]), timeout=SECONDS)
        try:
            return leases.LeaseKeepAliveResponse.FromString(next(call))
        except grpc.RpcError as error:
            raise Refused(error) from None

    def status(self) -> maintenance.StatusResponse:
        return self.call("Maintenance/Status", maintenance.StatusRequest(), maintenance.StatusResponse)

    def watch(self, metadata: Metadata = ()) -> Watch:
        """A new watch stream."""
        return Watch(self.channel, metadata)


def txn(
    compare: Sequence[kv.Compare] = (), success: Sequence[Message] = (), failure: Sequence[Message] = ()
) -> kv.TxnRequest:
    """A transaction of plain requests."""
    return kv.TxnRequest(compare=compare, success=map(operation, success), failure=map(operation, failure))


def operation(request: Message) -> kv.RequestOp:
    """A request as an operation of a transaction."""
    match request:
        case kv.RangeRequest():
            return kv.RequestOp(request_range=request)
        case kv.PutRequest():
            return kv.RequestOp(request_put=request)
        case kv.DeleteRangeRequest():
            return kv.RequestOp(request_delete_range=request)
        case kv.TxnRequest():
            return kv.RequestOp(request_txn=request)
    assert isinstance(request, kv.RequestOp)
    return request


class Watch:
    """A watch stream."""

    def __init__(self, channel: grpc.Channel, metadata: Metadata = ()) -> None:
        self._say: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._came: queue.SimpleQueue[watches.WatchResponse | Refused] = queue.SimpleQueue()
        stub: Any = channel.stream_stream("/etcdserverpb.Watch/Watch")
        self._call = stub(iter(self._say.get, None), metadata=metadata)
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._call.cancel()
        self._say.put(None)

    def _read(self) -> None:
        try:
            for raw in self._call:
                self._came.put(watches.WatchResponse.FromString(raw))
        except grpc.RpcError as error:
            self._came.put(Refused(error))

    def send(self, **which: Any) -> None:
        """``create_request=``, ``cancel_request=`` or ``progress_request=``."""
        self._say.put(watches.WatchRequest(**which).SerializeToString())

    def create(self, key: bytes, range_end: bytes = b"", **more: Any) -> watches.WatchResponse:
        """The answer to a creation."""
        self.send(create_request=watches.WatchCreateRequest(key=key, range_end=range_end, **more))
        return self.next()

    def cancel(self, watch_id: int) -> None:
        self.send(cancel_request=watches.WatchCancelRequest(watch_id=watch_id))

    def progress(self) -> None:
        self.send(progress_request=watches.WatchProgressRequest())

    def next(self, seconds: float = SECONDS) -> watches.WatchResponse:
        """What comes next. Raises `Refused` at the stream's end and `queue.Empty` if nothing comes."""
        came = self._came.get(timeout=seconds)
        if isinstance(came, Refused):
            raise came
        return came

    def until(self, last: Callable[[watches.WatchResponse], bool]) -> list[watches.WatchResponse]:
        """What comes, to the first of which `last` holds."""
        came = [self.next()]
        while not last(came[-1]):
            came.append(self.next())
        return came

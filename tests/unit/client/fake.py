"""Nodes over one `fake_store.Store`, served by gRPC, with faults on demand."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, NoReturn

import grpc
from google.protobuf.message import Message

from nebuladb import errors
from nebuladb.pb.nebula.v1 import cluster_pb2, common_pb2, keyspace_pb2, kv_pb2, lease_pb2, session_pb2
from tests.unit.client.fake_store import GROUP, Store

LOST = "lost"
"""As a fault: the connection breaks without a word from the server."""


PASS = "pass"
"""As a fault: none, this time."""


GONE, LATER = 3, 4
"""Shards that there are only if a test wants them."""


class Fault(NamedTuple):
    method: str
    """Its last part: Put."""
    error: errors.NebulaError | str
    after: bool = False
    """The request is executed, then the answer is lost."""
    leader: str = ""


class Node:
    """One endpoint. Faults are used up in order, each by the first call of its method."""

    def __init__(self, store: Store, node_id: int = 1) -> None:
        self.store = store
        self.node_id = node_id
        self.name = f"n{node_id}"
        self.faults: list[Fault] = []
        self.calls: list[tuple[str, Message]] = []
        self.peers: list[Node] = [self]
        self.break_scan_after = 0
        self.stopping = False
        self.bad_hash = False
        self.lost_hashes = 0
        """So many times it will say that it has lost what was ordered."""
        self.more_shards = ""
        """If set, GONE and LATER are among the shards; GONE has no hash, and if "dropped" it isn't in a second list."""
        self.leaderless: set[int] = set()
        """Shards for which no hash can be ordered."""
        self.die_after = 0
        """So many unary calls; then every connection breaks."""
        self._server = grpc.server(ThreadPoolExecutor(16), options=(("grpc.so_reuseport", 0),))
        self._server.add_generic_rpc_handlers(
            tuple(grpc.method_handlers_generic_handler(name, handlers) for name, handlers in self._handlers().items())
        )
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()

    def stop(self) -> None:
        self.stopping = True
        with self.store.changed:
            self.store.changed.notify_all()
        self._server.stop(None).wait()

    def count(self, method: str) -> int:
        return sum(name == method for name, _ in self.calls)

    # Plumbing

    def _handlers(self) -> dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]]:
        unary: dict[str, list[tuple[str, type[Message], Callable[[Any], Message]]]] = {
            "KV": [
                ("Get", kv_pb2.GetRequest, self.get),
                ("Put", kv_pb2.PutRequest, self.put),
                ("Delete", kv_pb2.DeleteRequest, self.delete),
                ("Txn", kv_pb2.TxnRequest, self.txn),
                ("Compact", kv_pb2.CompactRequest, self.compact),
            ],
            "Lease": [
                ("Grant", lease_pb2.LeaseGrantRequest, self.grant),
                ("Revoke", lease_pb2.LeaseRevokeRequest, self.revoke),
                ("KeepAlive", lease_pb2.LeaseKeepAliveRequest, self.keep_alive),
                ("TimeToLive", lease_pb2.LeaseTimeToLiveRequest, self.time_to_live),
                ("List", lease_pb2.LeaseListRequest, self.leases),
            ],
            "Session": [
                ("Open", session_pb2.SessionOpenRequest, self.open),
                ("Close", session_pb2.SessionCloseRequest, self.close),
            ],
            "Keyspace": [
                ("List", keyspace_pb2.KeyspaceListRequest, self.keyspaces),
                ("Describe", keyspace_pb2.KeyspaceDescribeRequest, self.describe),
                ("Create", keyspace_pb2.KeyspaceCreateRequest, self.create_keyspace),
                ("Drop", keyspace_pb2.KeyspaceDropRequest, self.drop_keyspace),
            ],
            "Cluster": [
                ("Status", cluster_pb2.StatusRequest, self.status),
                ("Members", cluster_pb2.MembersRequest, self.members),
                ("Shards", cluster_pb2.ShardsRequest, self.shards),
                ("StateHash", cluster_pb2.StateHashRequest, self.state_hash),
                ("TransferLeadership", cluster_pb2.TransferLeadershipRequest, self.transfer),
            ],
        }
        handlers: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {
            f"nebula.v1.{service}": {
                name: grpc.unary_unary_rpc_method_handler(
                    self._wrap(name, run), request.FromString, lambda answer: answer.SerializeToString()
                )
                for name, request, run in calls
            }
            for service, calls in unary.items()
        }
        streams: list[tuple[str, str, type[Message], Callable[[Any, grpc.ServicerContext], Iterator[Message]]]] = [
            ("KV", "Scan", kv_pb2.ScanRequest, self.scan),
            ("KV", "Watch", kv_pb2.WatchRequest, self.watch),
            ("Cluster", "Snapshot", cluster_pb2.SnapshotRequest, self.snapshot),
        ]
        for service, name, kind, run in streams:
            handlers[f"nebula.v1.{service}"][name] = grpc.unary_stream_rpc_method_handler(
                self._wrap_stream(name, run),
                kind.FromString,
                lambda answer: answer.SerializeToString(),
            )
        return handlers

    def _wrap(self, name: str, run: Callable[[Any], Message]) -> Callable[[Any, grpc.ServicerContext], Message]:
        def handler(request: Message, context: grpc.ServicerContext) -> Message:
            self.calls.append((name, request))
            if len(self.calls) == self.die_after:
                self._server.stop(None)
            fault = self._fault(name)
            if fault and not fault.after:
                self._abort(context, fault.error, fault.leader)
            try:
                if getattr(request, "keyspace", "") not in ("", "default"):
                    raise errors.KeyspaceNotFound
                if getattr(request, "epoch", 0) not in (0, self.store.epoch):
                    raise errors.WrongEpoch("an old one", self.store.epoch)
                answer = run(request)
            except errors.NebulaError as error:
                self._abort(context, error)
            if fault:
                self._abort(context, fault.error, fault.leader)
            return answer

        return handler

    def _wrap_stream(
        self, name: str, run: Callable[[Any, grpc.ServicerContext], Iterator[Message]]
    ) -> Callable[[Any, grpc.ServicerContext], Iterator[Message]]:
        def handler(request: Message, context: grpc.ServicerContext) -> Iterator[Message]:
            self.calls.append((name, request))
            fault = self._fault(name)
            if fault:
                self._abort(context, fault.error, fault.leader)
            try:
                yield from run(request, context)
            except errors.NebulaError as error:
                self._abort(context, error)

        return handler

    def _fault(self, name: str) -> Fault | None:
        for place, fault in enumerate(self.faults):
            if fault.method == name:
                del self.faults[place]
                return None if fault.error == PASS else fault
        return None

    def _abort(self, context: grpc.ServicerContext, error: errors.NebulaError | str, leader: str = "") -> NoReturn:
        if isinstance(error, str):
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        detail = common_pb2.ErrorDetail(
            reason=error.reason,
            outcome=common_pb2.UNKNOWN if error.outcome is errors.Outcome.UNKNOWN else common_pb2.FAILED,
            retryable=error.retryable,
            leader_address=leader,
            compact_revision=getattr(error, "floor", 0),
            leader_node=getattr(error, "leader", 0),
        )
        if isinstance(error, errors.WrongEpoch):
            detail.descriptor.CopyFrom(self._shard())
        context.set_trailing_metadata((("nebula-error-bin", detail.SerializeToString()),))
        context.abort(grpc.StatusCode[error.code], error.message)

    # KV

    def get(self, request: kv_pb2.GetRequest) -> Message:
        with self.store.lock:
            return kv_pb2.GetResponse(header=self.store.header(), kv=self.store.read(request.key, request.revision))

    def put(self, request: kv_pb2.PutRequest) -> Message:
        def run() -> Message:
            self.store.executed.append("put")
            old = self.store.step(lambda: self.store.put(request.key, request.value, request.lease))
            return kv_pb2.PutResponse(header=self.store.header(), prev_kv=old if request.prev_kv else None)

        return self.store.once(request.session, run)

    def delete(self, request: kv_pb2.DeleteRequest) -> Message:
        def run() -> Message:
            self.store.executed.append("delete")
            gone = self.store.step(lambda: self.store.delete(request.key, request.range_end))
            prev = gone if request.prev_kv else []
            return kv_pb2.DeleteResponse(header=self.store.header(), deleted=len(gone), prev_kvs=prev)

        return self.store.once(request.session, run)

    def txn(self, request: kv_pb2.TxnRequest) -> Message:
        def run() -> Message:
            self.store.executed.append("txn")
            return self.store.txn(request)

        return self.store.once(request.session, run)

    def compact(self, request: kv_pb2.CompactRequest) -> Message:
        self.store.floor = max(self.store.floor, request.revision)
        return kv_pb2.CompactResponse(header=self.store.header())

    def scan(self, request: kv_pb2.ScanRequest, context: grpc.ServicerContext) -> Iterator[Message]:
        for number, page in enumerate(self.store.scan(request), 1):
            yield page
            if number == self.break_scan_after:
                self.break_scan_after = 0
                self._abort(context, LOST)

    def watch(self, request: kv_pb2.WatchRequest, context: grpc.ServicerContext) -> Iterator[Message]:
        store = self.store
        with store.lock:
            if self._fault("WatchHang"):
                while context.is_active() and not self.stopping:
                    store.changed.wait(0.05)
            starts = {pair.group: pair.revision for pair in request.start_revisions}
            start = starts.get(GROUP) or request.start_revision or store.revision + 1
            if start <= store.floor:
                yield kv_pb2.WatchResponse(header=store.header(), canceled=True, compact_revision=store.floor)
                return
            yield kv_pb2.WatchResponse(header=store.header(), created=True)
        while context.is_active() and not self.stopping:
            with store.changed:
                if store.revision < start:
                    store.changed.wait(0.05)
                happened = [(r, e) for r, e in store.events if r >= start and self._covers(request, e.kv.key)]
                start = max(start, store.revision + 1)
                if fault := self._fault("WatchBreak"):
                    self._abort(context, fault.error)
                header = store.header()
            for _, events in itertools.groupby(happened, key=lambda pair: pair[0]):
                yield kv_pb2.WatchResponse(header=store.header(), events=[e for _, e in events])
                if self._fault("WatchBreakAfterEvent"):
                    self._abort(context, LOST)
            if self._fault("WatchProgress"):
                yield kv_pb2.WatchResponse(header=header)

    @staticmethod
    def _covers(request: kv_pb2.WatchRequest, key: bytes) -> bool:
        if not request.range_end:
            return key == request.key
        return key >= request.key and (request.range_end == b"\0" or key < request.range_end)

    # Leases, sessions

    def grant(self, request: lease_pb2.LeaseGrantRequest) -> Message:
        self.store.granted += 1
        lease = request.id or (GROUP << 40) + self.store.granted
        if lease in self.store.leases:
            raise errors.LeaseExists
        self.store.leases[lease] = request.ttl
        return lease_pb2.LeaseGrantResponse(header=self.store.header(), id=lease, ttl=request.ttl)

    def revoke(self, request: lease_pb2.LeaseRevokeRequest) -> Message:
        if request.id not in self.store.leases:
            raise errors.LeaseNotFound
        self.store.end_lease(request.id)
        return lease_pb2.LeaseRevokeResponse(header=self.store.header())

    def keep_alive(self, request: lease_pb2.LeaseKeepAliveRequest) -> Message:
        ttl = self.store.leases.get(request.id, 0)
        return lease_pb2.LeaseKeepAliveResponse(header=self.store.header(), id=request.id, ttl=ttl)

    def time_to_live(self, request: lease_pb2.LeaseTimeToLiveRequest) -> Message:
        ttl = self.store.leases.get(request.id, -1)
        keys = [k for k in self.store.history if (kv := self.store.read(k)) and kv.lease == request.id]
        return lease_pb2.LeaseTimeToLiveResponse(
            header=self.store.header(), id=request.id, ttl=ttl, granted_ttl=max(ttl, 0), keys=keys
        )

    def leases(self, request: lease_pb2.LeaseListRequest) -> Message:
        return lease_pb2.LeaseListResponse(header=self.store.header(), ids=sorted(self.store.leases))

    def open(self, request: session_pb2.SessionOpenRequest) -> Message:
        session = (len(self.store.sessions) + 1) << 16
        self.store.sessions[session] = {}
        self.store.lowest[session] = 1
        return session_pb2.SessionOpenResponse(header=self.store.header(), group=GROUP, id=session)

    def close(self, request: session_pb2.SessionCloseRequest) -> Message:
        self.store.sessions.pop(request.id, None)
        return session_pb2.SessionCloseResponse(header=self.store.header())

    # The cluster

    def _shard(self) -> common_pb2.ShardDescriptor:
        replicas = [common_pb2.Replica(replica_id=n.node_id, node_id=n.node_id) for n in self.peers]
        return common_pb2.ShardDescriptor(group=GROUP, keyspace="default", epoch=self.store.epoch, replicas=replicas)

    def _keyspace(self) -> keyspace_pb2.KeyspaceInfo:
        return keyspace_pb2.KeyspaceInfo(name="default", partitioning=keyspace_pb2.RANGE, shards=[self._shard()])

    def keyspaces(self, request: keyspace_pb2.KeyspaceListRequest) -> Message:
        return keyspace_pb2.KeyspaceListResponse(header=self.store.header(), keyspaces=[self._keyspace()])

    def describe(self, request: keyspace_pb2.KeyspaceDescribeRequest) -> Message:
        if request.name != "default":
            raise errors.KeyspaceNotFound
        return keyspace_pb2.KeyspaceDescribeResponse(header=self.store.header(), keyspace=self._keyspace())

    def create_keyspace(self, request: keyspace_pb2.KeyspaceCreateRequest) -> Message:
        if self.store.keyspaces.setdefault(request.name, request) != request:
            raise errors.KeyspaceExists
        info = keyspace_pb2.KeyspaceInfo(name=request.name, partitioning=request.partitioning)
        return keyspace_pb2.KeyspaceCreateResponse(header=self.store.header(), keyspace=info)

    def drop_keyspace(self, request: keyspace_pb2.KeyspaceDropRequest) -> Message:
        dropped = self.store.keyspaces.pop(request.name, None) is not None
        return keyspace_pb2.KeyspaceDropResponse(header=self.store.header(), dropped=dropped)

    def _header(self) -> common_pb2.Header:
        header = self.store.header()
        header.node_id = self.node_id
        return header

    def status(self, request: cluster_pb2.StatusRequest) -> Message:
        group = cluster_pb2.GroupStatus(
            group=GROUP,
            keyspace="default",
            replica_id=self.node_id,
            role="leader" if self.node_id == 1 else "follower",
            leader_node=1,
            term=3,
            committed=self.store.index,
            applied=self.store.index,
            revision=self.store.revision,
        )
        meta = cluster_pb2.GroupStatus(group=1, replica_id=self.node_id, role="follower")
        return cluster_pb2.StatusResponse(
            header=self._header(), name=self.name, version="0", client_address=self.address, groups=[meta, group]
        )

    def members(self, request: cluster_pb2.MembersRequest) -> Message:
        members = [
            cluster_pb2.Member(node_id=n.node_id, name=n.name, client_address=n.address, connected=not n.stopping)
            for n in self.peers
        ]
        return cluster_pb2.MembersResponse(header=self._header(), members=members)

    def shards(self, request: cluster_pb2.ShardsRequest) -> Message:
        response = cluster_pb2.ShardsResponse(header=self._header(), shards=[self._shard()])
        if self.more_shards:
            again = self.count("Shards") > 1
            for group in (LATER,) if again and self.more_shards == "dropped" else (GONE, LATER):
                response.shards.add(group=group, keyspace=f"ks{group}", replicas=self._shard().replicas)
        response.leaders.extend(1 for _ in response.shards)
        return response

    def state_hash(self, request: cluster_pb2.StateHashRequest) -> Message:
        with self.store.lock:
            if request.group == GONE:
                raise errors.WrongShard(f"there is no shard {GONE}")
            if not request.index:
                if request.group in self.leaderless:
                    raise errors.NoLeader("no leader took the write in time; nothing was done, try again")
                self.store.index += 1
                return cluster_pb2.StateHashResponse(header=self._header(), index=self.store.index)
            if self.lost_hashes:
                self.lost_hashes -= 1
                raise errors.HashNotFound
            text = repr(sorted(self.store.history.items())) + ("!" if self.bad_hash else "")
            digest = hashlib.sha256(text.encode()).digest()
            return cluster_pb2.StateHashResponse(header=self._header(), index=request.index, hash=digest)

    def snapshot(self, request: cluster_pb2.SnapshotRequest, context: grpc.ServicerContext) -> Iterator[Message]:
        for part in (b"first ", b"last"):
            yield cluster_pb2.SnapshotResponse(data=part)
            if self._fault("SnapshotBreak"):
                self._abort(context, LOST)

    def transfer(self, request: cluster_pb2.TransferLeadershipRequest) -> Message:
        return cluster_pb2.TransferLeadershipResponse(header=self._header())


def wait_until(condition: Callable[[], bool]) -> None:
    """For tests that must see another thread's work; bounded."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline


def three_nodes() -> Iterator[list[Node]]:
    """Three of one cluster, which know of each other; a fixture's."""
    store = Store()
    nodes = [Node(store, number) for number in (1, 2, 3)]
    for node in nodes:
        node.peers = nodes
    yield nodes
    for node in nodes:
        node.stop()

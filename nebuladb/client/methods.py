"""The calls of ``nebula.v1``, by name: path, answer type, and what may be repeated."""

from __future__ import annotations

from typing import Final, Generic, NamedTuple, TypeVar

from google.protobuf.message import Message

from nebuladb.client.retry import Kind
from nebuladb.pb.nebula.v1 import cluster_pb2, keyspace_pb2, kv_pb2, lease_pb2, session_pb2

Answer = TypeVar("Answer", bound=Message)


class Method(NamedTuple, Generic[Answer]):
    """A call. Its request type is whatever message is passed."""

    path: str
    answer: type[Answer]
    kind: Kind = Kind.READ


GET: Final = Method("/nebula.v1.KV/Get", kv_pb2.GetResponse)
PUT: Final = Method("/nebula.v1.KV/Put", kv_pb2.PutResponse, Kind.WRITE)
DELETE: Final = Method("/nebula.v1.KV/Delete", kv_pb2.DeleteResponse, Kind.WRITE)
TXN: Final = Method("/nebula.v1.KV/Txn", kv_pb2.TxnResponse, Kind.WRITE)
TXN_READ: Final = Method("/nebula.v1.KV/Txn", kv_pb2.TxnResponse)
COMPACT: Final = Method("/nebula.v1.KV/Compact", kv_pb2.CompactResponse, Kind.WRITE)
SCAN: Final = Method("/nebula.v1.KV/Scan", kv_pb2.ScanResponse)
WATCH: Final = Method("/nebula.v1.KV/Watch", kv_pb2.WatchResponse)

LEASE_GRANT: Final = Method("/nebula.v1.Lease/Grant", lease_pb2.LeaseGrantResponse, Kind.WRITE)
LEASE_REVOKE: Final = Method("/nebula.v1.Lease/Revoke", lease_pb2.LeaseRevokeResponse, Kind.WRITE)
# A renewal more only makes the lease live longer, as its holder wants.
LEASE_KEEP_ALIVE: Final = Method("/nebula.v1.Lease/KeepAlive", lease_pb2.LeaseKeepAliveResponse)
LEASE_TIME_TO_LIVE: Final = Method("/nebula.v1.Lease/TimeToLive", lease_pb2.LeaseTimeToLiveResponse)
LEASE_LIST: Final = Method("/nebula.v1.Lease/List", lease_pb2.LeaseListResponse)

# A session more that nobody uses is evicted in time; closing one again does nothing.
SESSION_OPEN: Final = Method("/nebula.v1.Session/Open", session_pb2.SessionOpenResponse)
SESSION_CLOSE: Final = Method("/nebula.v1.Session/Close", session_pb2.SessionCloseResponse)

KEYSPACE_LIST: Final = Method("/nebula.v1.Keyspace/List", keyspace_pb2.KeyspaceListResponse)
KEYSPACE_DESCRIBE: Final = Method("/nebula.v1.Keyspace/Describe", keyspace_pb2.KeyspaceDescribeResponse)
# Both are idempotent: a repeat goes on where the first try stopped.
KEYSPACE_CREATE: Final = Method("/nebula.v1.Keyspace/Create", keyspace_pb2.KeyspaceCreateResponse, Kind.AGAIN)
KEYSPACE_DROP: Final = Method("/nebula.v1.Keyspace/Drop", keyspace_pb2.KeyspaceDropResponse, Kind.AGAIN)

STATUS: Final = Method("/nebula.v1.Cluster/Status", cluster_pb2.StatusResponse)
MEMBERS: Final = Method("/nebula.v1.Cluster/Members", cluster_pb2.MembersResponse)
# These, too, are idempotent.
MEMBER_ADD: Final = Method("/nebula.v1.Cluster/MemberAdd", cluster_pb2.MemberAddResponse, Kind.AGAIN)
MEMBER_PROMOTE: Final = Method("/nebula.v1.Cluster/MemberPromote", cluster_pb2.MemberPromoteResponse, Kind.AGAIN)
MEMBER_REMOVE: Final = Method("/nebula.v1.Cluster/MemberRemove", cluster_pb2.MemberRemoveResponse, Kind.AGAIN)
SHARDS: Final = Method("/nebula.v1.Cluster/Shards", cluster_pb2.ShardsResponse)
STATE_HASH: Final = Method("/nebula.v1.Cluster/StateHash", cluster_pb2.StateHashResponse)
SNAPSHOT: Final = Method("/nebula.v1.Cluster/Snapshot", cluster_pb2.SnapshotResponse)
TRANSFER: Final = Method("/nebula.v1.Cluster/TransferLeadership", cluster_pb2.TransferLeadershipResponse, Kind.WRITE)

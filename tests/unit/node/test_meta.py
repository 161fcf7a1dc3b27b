"""What the meta group holds, and the entry that founds it."""

from __future__ import annotations

import pytest

from nebuladb.errors import Corruption, InvariantViolation
from nebuladb.kv.answer import KeyValue
from nebuladb.node.frame import CLUSTER_VERSION
from nebuladb.node.identity import Founder, Founding
from nebuladb.node.meta import Meta, founding_request, founding_shards, life_request
from nebuladb.node.record import NodeRecord
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.shard import Partitioning

FOUNDING = Founding(99, (Founder("n1", 11, "a:1"), Founder("n2", 12, "b:2"), Founder("n3", 13, "c:3")))


def founding_rows() -> dict[bytes, bytes]:
    """What the founding entry puts."""
    request = kv_pb2.TxnRequest.FromString(founding_request(FOUNDING))
    return {operation.put.key: operation.put.value for operation in request.success}


def rows(content: dict[bytes, bytes]) -> list[KeyValue]:
    return [KeyValue(key, 2, 2, 1, 0, value) for key, value in sorted(content.items())]


def test_the_founding_entry_does_nothing_a_second_time() -> None:
    request = kv_pb2.TxnRequest.FromString(founding_request(FOUNDING))
    [condition] = request.compare
    assert (condition.key, condition.target, condition.number) == (b"cluster/version", kv_pb2.Compare.VERSION, 0)
    assert condition.key in founding_rows(), "so that it holds only once"
    assert not request.failure


def test_the_founding_entry_is_the_same_bytes_on_every_node() -> None:
    assert founding_request(FOUNDING) == founding_request(Founding.decode(FOUNDING.encode()))


def test_the_rows_of_a_new_cluster() -> None:
    assert sorted(founding_rows()) == [
        b"cluster/version",
        b"issue/replica",
        b"keyspace/default",
        b"keyspace/etcd",
        b"node/000000000000000b",
        b"node/000000000000000c",
        b"node/000000000000000d",
        b"shard/0000000000000002",
        b"shard/0000000000000003",
    ]
    assert founding_rows()[b"issue/replica"] == b"10"


def test_a_life_has_one_name() -> None:
    request = kv_pb2.TxnRequest.FromString(life_request(0xABC))
    [condition] = request.compare
    [named] = request.success
    assert (condition.key, condition.target, condition.number) == (b"cluster/life", kv_pb2.Compare.VERSION, 0)
    assert (named.put.key, named.put.value) == (b"cluster/life", b"0000000000000abc")
    assert Meta(rows({named.put.key: named.put.value})).life == 0xABC
    assert Meta(rows(founding_rows())).life == 0


def test_a_picture_of_a_new_cluster() -> None:
    meta = Meta(rows(founding_rows()))
    assert meta.version == CLUSTER_VERSION
    assert meta.nodes[12] == NodeRecord(12, "n2", "b:2")
    partitionings = {name: keyspace.partitioning for name, keyspace in meta.routing.keyspaces.items()}
    assert partitionings == {"default": Partitioning.RANGE, "etcd": Partitioning.SINGLE}
    assert list(meta.routing.descriptors.values()) == founding_shards(FOUNDING)
    assert meta.routing.find("default", b"k").replicas == ((4, 11), (5, 12), (6, 13))
    assert meta.routing.find("etcd", b"k").replicas == ((7, 11), (8, 12), (9, 13))


def test_no_replica_id_stands_twice() -> None:
    issued = [replica for shard in founding_shards(FOUNDING) for replica, _ in shard.replicas]
    issued += FOUNDING.replicas(1)
    assert sorted(issued) == list(range(1, FOUNDING.next_replica))


def test_an_empty_meta_is_a_cluster_that_is_not_founded_yet() -> None:
    meta = Meta()
    assert meta.version == 0
    assert not meta.nodes
    assert not meta.routing.keyspaces
    assert meta.client_address(11) == ""


def test_a_nodes_client_address_is_what_it_announced() -> None:
    record = NodeRecord(12, "n2", "b:2", "b:1")
    meta = Meta(rows({**founding_rows(), record.key: record.encode()}))
    assert meta.client_address(12) == "b:1"
    assert meta.client_address(11) == ""


def test_a_damaged_row_or_a_keyspace_without_shards_stops_the_node() -> None:
    with pytest.raises(Corruption):
        Meta(rows({**founding_rows(), b"keyspace/default": b"?"}))
    missing = founding_rows()
    del missing[b"shard/0000000000000002"]
    with pytest.raises(InvariantViolation, match="keyspace default has no shard"):
        Meta(rows(missing))

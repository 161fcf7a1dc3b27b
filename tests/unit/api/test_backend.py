"""Routing of requests, before and after a node knows its cluster."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from nebuladb.api.backend import Backend
from nebuladb.errors import KeyspaceNotFound, Unavailable, WrongEpoch, WrongShard
from nebuladb.kv.answer import KeyValue
from nebuladb.node.identity import Founder, Founding
from nebuladb.node.meta import Meta, founding_request
from nebuladb.node.pump import Pump
from nebuladb.pb.nebula.v1 import kv_pb2

FOUNDING = Founding(7, (Founder("n1", 11, "a:1"), Founder("n2", 12, "a:2")))


def backend(meta: Meta) -> Backend:
    node: Any = SimpleNamespace(founding=FOUNDING, identity=SimpleNamespace(node=11), meta=meta, host=None)
    return Backend(cast(Pump, SimpleNamespace(node=node)))


def founded() -> Meta:
    request = kv_pb2.TxnRequest.FromString(founding_request(FOUNDING))
    rows = [KeyValue(o.put.key, 2, 2, 1, 0, o.put.value) for o in request.success]
    return Meta(rows)


def test_a_node_that_knows_no_keyspace_yet_says_try_again_and_not_that_there_is_none() -> None:
    with pytest.raises(Unavailable) as caught:
        backend(Meta()).route("default", b"key")
    assert caught.value.retryable


def test_a_key_is_routed_to_its_keyspaces_shard() -> None:
    assert backend(founded()).route("", b"key").group == 2
    assert backend(founded()).route("etcd", b"key").group == 3
    with pytest.raises(KeyspaceNotFound):
        backend(founded()).route("nowhere", b"key")


def test_an_old_epoch_is_refused_with_the_current_one() -> None:
    with pytest.raises(WrongEpoch) as caught:
        backend(founded()).route("default", b"key", epoch=9)
    assert caught.value.epoch == 1


def test_a_lease_is_found_by_the_keyspaces_only_shard_and_a_group_must_be_the_keyspaces() -> None:
    assert backend(founded()).route_lease("etcd", 5).group == 3
    assert backend(founded()).route_group("default", 0).group == 2
    with pytest.raises(WrongShard):
        backend(founded()).route_group("default", 3)

"""Orders to destroy what was dropped: bounded while a node is away, and cheap for those that they don't concern."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from nebuladb.errors import InvalidArgument, Outcome, Unavailable
from nebuladb.kv.change import Change
from nebuladb.kv.command import Command
from nebuladb.kv.rows import Record
from nebuladb.node import keyspaces
from nebuladb.node.housekeeping import Housekeeper
from nebuladb.node.keyspaces import Spec, acknowledgement, checked, create_step, drop_step
from nebuladb.node.meta import Removal
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.shard import Partitioning
from tests.unit.node.rows import Rows

HASH = checked(Spec("h", Partitioning.HASH, 4))


def test_while_a_node_does_not_destroy_what_was_dropped_nothing_more_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders to a dead node piled up in meta for ever, and each change of it cost more."""
    monkeypatch.setattr(keyspaces, "MAX_NODE_REPLICAS", 14)
    rows = Rows()

    def cycle() -> None:
        rows.create(HASH)
        while (step := drop_step(rows.meta, "h")) is not None:
            assert rows.run(step), "dropping is never refused"
        alive = [removal for removal in rows.meta.removals if removal.node != 13]
        assert rows.run(acknowledgement(alive))

    for _ in range(3):
        cycle()
    assert list(rows.meta.ordered) == [13]
    assert len(rows.meta.orders(13)) == 12
    with pytest.raises(
        Unavailable, match=r"node n3 has not destroyed what was dropped.*start it, or remove it"
    ) as caught:
        create_step(rows.meta, HASH)
    assert caught.value.retryable
    assert caught.value.outcome is Outcome.FAILED
    assert rows.run(acknowledgement(rows.meta.orders(13)))
    cycle()


def test_shards_that_are_to_be_made_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several keyspaces that are made at the same time, too."""
    monkeypatch.setattr(keyspaces, "MAX_CLUSTER_SHARDS", 9)
    rows = Rows()
    step = create_step(rows.meta, HASH)
    assert step
    assert rows.run(step)
    with pytest.raises(InvalidArgument, match="drop a keyspace"):
        create_step(rows.meta, HASH._replace(name="more"))
    rows.create(HASH)
    rows.create(HASH._replace(name="more", shards=3))


def change(revision: int, key: bytes, value: bytes | None) -> Change:
    """Of a row of meta; None: it was deleted."""
    record = Record(
        revision,
        0,
        0,
        0 if value is None else 1,
        0,
        0,
        0,
        past_deleted=False,
        anchor_main=0,
        anchor_sub=0,
        stride=0,
        value=value or b"",
    )
    return Change(key, record, None)


def test_orders_are_carried_on_by_node_and_what_they_do_not_concern_is_shared() -> None:
    """A change of meta cost all rows that it has: a quarter of a second with 100,000 orders to a dead node."""
    orders = [Removal(group, 10 * group + node, node) for group in range(4, 8) for node in (11, 12, 13)]
    before = Rows().meta
    meta = before.after(change(9, order.key, order.encode()) for order in orders)
    assert meta.removals == sorted(orders, key=lambda order: (order.node, order.group))
    assert not before.removals
    assert meta.routing is before.routing
    mine = [order for order in orders if order.node == 11]
    later = meta.after(change(10, order.key, None) for order in mine)
    assert set(later.removals) == set(orders) - set(mine)
    assert set(later.ordered) == {12, 13}
    assert set(meta.removals) == set(orders), "a picture stays as it is"
    assert later._orders[13] is meta._orders[13]
    record = next(iter(meta.nodes.values()))
    renamed = later.after([change(11, record.key, record._replace(peer_address="n1:9").encode())])
    assert renamed._orders is later._orders
    assert renamed.nodes[record.node].peer_address == "n1:9"
    assert later.nodes[record.node] == record
    assert renamed.mod(record.key) == 11


def test_thousands_of_orders_are_acknowledged_at_once_and_none_twice() -> None:
    orders = [Removal(group, group, 11) for group in range(5_000)]
    node: Any = SimpleNamespace(
        identity=SimpleNamespace(node=11),
        host=SimpleNamespace(now=0),
        meta=SimpleNamespace(orders=lambda node: orders),
        reconciler=SimpleNamespace(done=list),
    )
    asked: list[list[bytes]] = []
    room = 20

    def request(command: Command) -> None:
        if len(asked) == room:
            raise Unavailable
        asked.append([one.delete.key for one in kv_pb2.TxnRequest.FromString(command.body).success])

    node.request = request
    housekeeper = Housekeeper(node, random.Random(1), "", "")
    housekeeper.acknowledge()
    assert [len(keys) for keys in asked] == [128] * 16
    housekeeper.acknowledge()
    assert len(asked) == room
    room = 100
    housekeeper.acknowledge()
    housekeeper.acknowledge()
    keys = [key for keys in asked for key in keys]
    assert keys == [order.key for order in orders]

"""What a node keeps in mind of replicas that it was told to destroy, also of those that it never had."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial

from nebuladb.kv.store import Store
from nebuladb.node.host import Host
from nebuladb.node.meta import Removal
from nebuladb.node.reconciler import Reconciler
from nebuladb.node.registry import GroupState, RegistryRow
from nebuladb.shard import Descriptor
from nebuladb.storage.memory import MemoryEngine

NODE = 13
SHARD = Descriptor(9, "t", 1, b"", b"", (0, 0), ((101, 11), (102, 12), (103, NODE)))
ORDER = Removal(9, 103, NODE)


class Life:
    """Of a node, from a registry; its data is in memory."""

    def __init__(self, registry: Mapping[int, RegistryRow] | None = None) -> None:
        self.host = Host(7, NODE, 1, 1, random.Random(1))
        self.data = MemoryEngine(wal=False)
        self.reconciler = Reconciler(NODE, self.host, partial(Store.destroy, self.data), registry or {})

    def sync(self) -> None:
        """What was asked for is durable, and what follows from that is done."""
        batch = self.host.poll().batch
        if batch is not None:
            self.host.durable(batch.id)
        self.reconciler.destroy()

    def next(self) -> Life:
        """The next one, which has what was durable."""
        rows = {group: RegistryRow.decode(row.encode()) for group, row in self.reconciler.rows.items()}
        return Life(rows)

    def makes(self) -> bool:
        """Whether a replica of the shard is on its way."""
        self.sync()
        return bool(self.reconciler.startable())


def test_what_was_made_and_dropped_within_one_slice_is_never_made() -> None:
    """Meta's log, read again after a crash, is cut into other slices: one ends before the drop, and the order for it is
    gone, since it was acknowledged."""
    life = Life()
    life.reconciler.remove(ORDER)
    life.sync()
    assert life.reconciler.done([ORDER]) == [ORDER]
    life = life.next()
    life.reconciler.create(SHARD)
    assert not life.makes()


def test_an_order_is_acknowledged_once_its_tombstone_is_durable() -> None:
    life = Life()
    assert life.reconciler.done([ORDER]) == [], "nothing says yet that it won't be here"
    assert not life.reconciler.remove(ORDER)
    assert life.reconciler.done([ORDER]) == []
    life.sync()
    assert life.reconciler.done([ORDER]) == [ORDER]


def test_orders_for_two_replicas_one_after_the_other() -> None:
    """It left the group, and was to come back: that, too, was dropped before it was seen."""
    later = ORDER._replace(replica=104)
    life = Life()
    life.reconciler.create(SHARD)
    life.sync()
    life.reconciler.started(SHARD.group)
    assert life.reconciler.done([later]) == [], "who is here may be followed by it still"
    assert life.reconciler.remove(ORDER)
    assert not life.reconciler.remove(later)
    life.sync()
    assert life.reconciler.done([ORDER, later]) == [ORDER, later]
    row = life.reconciler.rows[SHARD.group]
    assert (row.state, row.replica, row.generation) == (GroupState.TOMBSTONE, 104, 1)
    life = life.next()
    life.reconciler.create(SHARD._replace(replicas=((104, NODE),)))
    assert not life.makes()
    life.reconciler.create(SHARD._replace(replicas=((105, NODE),)))
    assert life.makes(), "one with a newer id is another one"
    assert life.reconciler.rows[SHARD.group].generation == 2

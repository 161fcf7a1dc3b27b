"""How a node's own alarms name it."""

from __future__ import annotations

from nebuladb.node.disk import Space
from tests.unit.node.trio import Trio


def test_a_node_names_itself_before_it_knows_the_cluster() -> None:
    trio = Trio()
    trio.start(0)
    node = trio.node(0)
    assert not node.meta.nodes, "alone it has no picture of meta"
    node._upkeep.space(Space.LOW, "no room")
    assert node.alarms_now.texts() == ["n1: no room"]

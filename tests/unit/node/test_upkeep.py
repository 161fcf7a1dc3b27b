"""What a node does for itself once a second: how its own alarms name it, and whom it forgets."""

from __future__ import annotations

from nebuladb.ids import META_GROUP
from nebuladb.node.disk import Space
from nebuladb.node.frame import GONE, Envelope
from nebuladb.node.housekeeping import HOUSEKEEPING_MS
from nebuladb.node.members import remove_step
from nebuladb.node.record import NodeState
from nebuladb.raft import Message
from tests.unit.node.trio import Trio


def removed(trio: Trio, place: int) -> None:
    """As the operator does, through the first node."""
    name = trio.who[place].name
    trio.drive(0, lambda meta: remove_step(meta, trio.founding, name, [one.node for one in trio.who]))
    trio.until(lambda: trio.state(place) is NodeState.REMOVED, "removed")


def test_a_node_names_itself_before_it_knows_the_cluster() -> None:
    trio = Trio()
    trio.start(0)
    node = trio.node(0)
    assert not node.meta.nodes, "alone it has no picture of meta"
    node._upkeep.space(Space.LOW, "no room")
    assert node.alarms_now.texts() == ["n1: no room"]


def test_who_was_removed_is_forgotten_when_its_link_has_fallen() -> None:
    """Each keeps the numbers of up to 131,072 forwards: of a cluster whose nodes are replaced often, all its past."""
    trio = Trio.started()
    host, gone = trio.node(0).host, trio.who[2].node
    trio.hung.add(2)
    trio.run(600)
    removed(trio, 2)
    trio.run(HOUSEKEEPING_MS)
    assert host.peers[gone].connected, "its process lives, and may still send"
    host.post(gone, Envelope(META_GROUP, Message(GONE, 0, 0, 0)))
    trio.crash(2)
    host.forget(gone)
    trio.settle()
    assert gone not in host.peers
    trio.run(HOUSEKEEPING_MS)
    assert gone not in trio.node(1).host.peers


def test_who_is_only_away_is_not_forgotten() -> None:
    trio = Trio.started()
    trio.crash(2)
    trio.run(2 * HOUSEKEEPING_MS)
    assert trio.who[2].node in trio.node(0).host.peers

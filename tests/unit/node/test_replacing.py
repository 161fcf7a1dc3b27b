"""A node takes the place of another: what the others can still lose meanwhile."""

from __future__ import annotations

from nebuladb.ids import META_GROUP
from nebuladb.node.members import replace_step
from nebuladb.node.record import NodeState
from tests.unit.node.test_members import are
from tests.unit.node.trio import Trio


def test_the_meta_group_swaps_its_voters_too() -> None:
    """It had four, the dead one and its successor among them, until all other groups had swapped theirs; if the
    successor died before that, it had no leader any more."""
    trio = Trio.started()
    trio.crash(0)
    trio.run(3_000)
    trio.drive(1, lambda meta: replace_step(meta, "n1", "n1b", "n1b:2", 77))
    place = trio.join("n1b", 1)
    sizes = set()

    def done() -> bool:
        configuration = trio.node(1).host.replicas[META_GROUP].raft.configuration
        sizes.update({len(configuration.voters), len(configuration.outgoing)})
        return trio.state(place, 1) is NodeState.MEMBER and trio.state(0, 1) is NodeState.REMOVED

    trio.until(done, "replaced")
    assert sizes == {0, 3}
    are(trio, (1, 2, place))

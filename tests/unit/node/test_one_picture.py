"""Two steps that were planned from one picture of meta, or side by side: together they do nothing that neither would do
alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import permutations

import pytest

from nebuladb.ids import META_GROUP
from nebuladb.node.keyspaces import Spec, create_step
from nebuladb.node.members import add_step, claim_step, move_step, remove_step, replace_step, unnamed
from nebuladb.node.meta import Meta
from nebuladb.node.record import NodeState
from nebuladb.shard import Partitioning
from tests.unit.node.rows import Rows
from tests.unit.node.trio import Trio

Step = Callable[[Meta], bytes | None]
X, Y, Z = 0x91, 0x92, 0x93
"""Nodes that were added by their address alone."""


def prepared() -> Rows:
    """Three members, three nodes without a name, and one with one, that haven't started."""
    rows = Rows()
    for node, peer in ((X, "x:1"), (Y, "y:1"), (Z, "z:1")):
        run(rows, add_step(rows.meta, unnamed(node), peer, node))
    run(rows, add_step(rows.meta, "n4", "n4:1", 0x94))
    return rows


def run(rows: Rows, step: bytes | None) -> bool:
    assert step is not None
    return rows.run(step)


ONE_ADDRESS: dict[str, Step] = {
    "added": lambda meta: add_step(meta, "a", "p:1", 0x51),
    "replacing": lambda meta: replace_step(meta, "n1", "r", "p:1", 0x52),
    "moved": lambda meta: move_step(meta, X, "p:1"),
    "moved too": lambda meta: move_step(meta, Y, "p:1"),
    "started there": lambda meta: claim_step(meta, "n4", "p:1", 0x1, 0x53),
    "unknown, started there": lambda meta: claim_step(meta, "u", "p:1", 0x2, 0x54),
}
ONE_NAME: dict[str, Step] = {
    "added": lambda meta: add_step(meta, "n9", "p:1", 0x51),
    "replacing": lambda meta: replace_step(meta, "n1", "n9", "q:1", 0x52),
    "nameless, started": lambda meta: claim_step(meta, "n9", "x:1", 0x1, 0x53),
    "nameless, started too": lambda meta: claim_step(meta, "n9", "y:1", 0x2, 0x54),
    "unknown, started": lambda meta: claim_step(meta, "n9", "u:1", 0x3, 0x55),
}


def only_the_first(steps: dict[str, Step], names: tuple[str, str]) -> Rows:
    """What is there when two that were planned from one picture have been tried: the second one wasn't done."""
    rows = prepared()
    planned = [steps[name](rows.meta) for name in names]
    assert [run(rows, step) for step in planned] == [True, False]
    return rows


@pytest.mark.parametrize("pair", [*permutations(ONE_ADDRESS, 2)], ids=" - ".join)
def test_a_peer_address_goes_to_one(pair: tuple[str, str]) -> None:
    rows = only_the_first(ONE_ADDRESS, pair)
    assert max(Counter(record.peer_address for record in rows.meta.nodes.values()).values()) == 1


@pytest.mark.parametrize("pair", [*permutations(ONE_NAME, 2)], ids=" - ".join)
def test_a_name_goes_to_one(pair: tuple[str, str]) -> None:
    rows = only_the_first(ONE_NAME, pair)
    assert max(Counter(record.name for record in rows.meta.nodes.values()).values()) == 1


def test_nodes_that_start_as_they_were_added_do_so_side_by_side() -> None:
    rows = prepared()
    run(rows, add_step(rows.meta, "n5", "n5:1", 0x95))
    steps = [claim_step(rows.meta, name, f"{name}:1", claim, 0x51) for claim, name in enumerate(("n4", "n5"), 1)]
    assert [run(rows, step) for step in steps] == [True, True]


@pytest.mark.parametrize("later", range(0, 1_000, 100))
def test_who_leaves_while_a_keyspace_is_made_that_names_it_still_makes_its_replicas(later: int) -> None:
    """Whoever made the keyspace died. Its plan was carried out when the node had left meta: of the shard's two voters
    one was never there, it had no leader, and the node was leaving for ever. `later`: than the last housekeeping."""
    trio = Trio.started(2)
    trio.run(2_000 + later)
    place = trio.leader(META_GROUP)
    assert place is not None
    other = trio.who[1 - place]
    assert trio.step(place, create_step(trio.node(place).meta, Spec("u", Partitioning.SINGLE)) or b"")
    leaves = remove_step(trio.node(place).meta, trio.founding, other.name, {11, 12})
    assert trio.step(place, leaves or b"")
    trio.until(lambda: trio.state(1 - place, place) is NodeState.REMOVED, "removed")
    trio.until(lambda: trio.leader(4) == place, "the shard has a leader")


def test_who_hears_of_its_replica_and_of_its_leaving_at_once_makes_it() -> None:
    """It is one of those who vote at the beginning, and with two that are down the others are too few without it."""
    trio = Trio.started(5)
    last = trio.join("n6")
    trio.until(lambda: trio.state(last) is NodeState.MEMBER, "a member")
    trio.run(3_000)
    trio.crash(1, 2)
    trio.run(3_000)
    trio.hung.add(last)
    spec = Spec("u", Partitioning.HASH, 6)
    assert trio.step(0, create_step(trio.node(0).meta, spec) or b"")
    assert trio.step(0, remove_step(trio.node(0).meta, trio.founding, "n6", {11, 14, 15, 16}) or b"")
    trio.drive(0, lambda meta: create_step(meta, spec))
    trio.run(1_000)
    trio.hung.clear()
    for group in range(4, 10):
        trio.until(lambda group=group: trio.leader(group) is not None, "a leader")  # type: ignore[misc]
    trio.start(1, 2)
    trio.until(lambda: trio.state(last) is NodeState.REMOVED, "removed")

"""Nodes that were added by their address alone, as etcd's API adds members, and get a name when they start."""

from __future__ import annotations

import pytest

from nebuladb.errors import ChangeRefused, InvalidArgument
from nebuladb.kv.answer import KeyValue
from nebuladb.node.members import add_step, claim_step, move_step, unnamed
from nebuladb.node.meta import Meta
from nebuladb.node.record import NodeRecord
from nebuladb.pb.nebula.v1 import kv_pb2
from tests.unit.node.test_meta import founding_rows, rows

NODE, FRESH, CLAIM = 0x99, 0x55, 0x1234


def after(content: dict[bytes, bytes], step: bytes | None) -> dict[bytes, bytes]:
    """The rows once a step is done."""
    assert step is not None
    request = kv_pb2.TxnRequest.FromString(step)
    assert not any(operation.HasField("delete") for operation in request.success)
    return content | {operation.put.key: operation.put.value for operation in request.success}


def added(peer: str = "d:4") -> dict[bytes, bytes]:
    content = founding_rows()
    return after(content, add_step(Meta(rows(content)), unnamed(NODE), peer, NODE))


def test_it_gets_its_id_and_gives_its_name_when_it_starts_there() -> None:
    content = after(added(), claim_step(Meta(rows(added())), "n4", "d:4", CLAIM, FRESH))
    meta = Meta(rows(content))
    assert meta.nodes[NODE].name == "n4"
    assert meta.nodes[NODE].claim == CLAIM
    assert FRESH not in meta.nodes
    assert claim_step(meta, "n4", "d:4", CLAIM, FRESH) is None, "a second asking changes nothing"
    with pytest.raises(ChangeRefused, match="another data directory"):
        claim_step(meta, "n4", "d:4", CLAIM + 1, FRESH)


def test_one_that_starts_elsewhere_is_another() -> None:
    meta = Meta(rows(after(added(), claim_step(Meta(rows(added())), "n4", "e:5", CLAIM, FRESH))))
    assert meta.nodes[FRESH].name == "n4"
    assert meta.nodes[NODE].claim == 0


def test_a_name_that_was_added_goes_before_an_address() -> None:
    content = after(added(), add_step(Meta(rows(added())), "n4", "e:5", FRESH))
    with pytest.raises(ChangeRefused):
        add_step(Meta(rows(content)), "n5", "d:4", 0x77)
    meta = Meta(rows(after(content, claim_step(Meta(rows(content)), "n4", "d:4", CLAIM, 0x77))))
    assert meta.nodes[FRESH].claim == CLAIM
    assert meta.nodes[NODE].claim == 0


def test_until_it_starts_it_may_be_told_another_address() -> None:
    meta = Meta(rows(added()))
    assert move_step(meta, NODE, "d:4") is None
    assert Meta(rows(after(added(), move_step(meta, NODE, "f:6")))).nodes[NODE].peer_address == "f:6"
    with pytest.raises(InvalidArgument):
        move_step(meta, NODE, "nowhere")
    for node in (11, 0x4242):
        with pytest.raises(ChangeRefused):
            move_step(meta, node, "f:6")
    claimed = after(added(), claim_step(meta, "n4", "d:4", CLAIM, FRESH))
    with pytest.raises(ChangeRefused):
        move_step(Meta(rows(claimed)), NODE, "f:6")


def test_a_record_of_another_name_is_no_nameless_one() -> None:
    record = NodeRecord(NODE, "n9", "d:4")
    meta = Meta([*rows(founding_rows()), KeyValue(record.key, 2, 2, 1, 0, record.encode())])
    with pytest.raises(ChangeRefused, match="peer address"):
        claim_step(meta, "n4", "d:4", CLAIM, FRESH)

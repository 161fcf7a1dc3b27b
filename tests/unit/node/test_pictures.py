"""A picture of meta that follows from the one before is the one that all rows give, and shares what didn't change."""

from __future__ import annotations

import random

import pytest

from nebuladb.kv.change import Change
from nebuladb.kv.rows import Record
from nebuladb.node.keyspaces import Spec, checked, create_step, drop_step
from nebuladb.node.members import put_node
from nebuladb.node.meta import REMOVED_PREFIX, Meta
from nebuladb.shard import Partitioning
from tests.unit.node.rows import Rows

SPECS = [
    checked(Spec("h", Partitioning.HASH, 5)),
    checked(Spec("r", Partitioning.RANGE, splits=(b"b", b"c"))),
    checked(Spec("s", Partitioning.SINGLE)),
]


class Line:
    """Rows, and the picture that follows them change by change."""

    def __init__(self) -> None:
        self.rows = Rows()
        self.meta = self.rows.meta

    def run(self, transaction: bytes) -> None:
        before = dict(self.rows.rows)
        assert self.rows.run(transaction)
        keys = sorted(before.keys() | self.rows.rows.keys())
        self.meta = self.meta.after(self._change(key) for key in keys if before.get(key) != self.rows.rows.get(key))

    def _change(self, key: bytes) -> Change:
        revision, value = self.rows.rows.get(key, (self.rows.revision, None))
        record = Record(
            revision, 0, 0, 0 if value is None else 1, 0, 0, 0,
            past_deleted=False, anchor_main=0, anchor_sub=0, stride=0, value=value or b"",
        )  # fmt: skip
        return Change(key, record, None)

    def create(self, spec: Spec) -> None:
        while (step := create_step(self.meta, spec)) is not None:
            self.run(step)


def content(meta: Meta) -> dict[str, object]:
    """All that a picture says, in its order."""
    plain = {name: value for name, value in vars(meta).items() if not name.startswith("_") and name != "routing"}
    return plain | {
        "order": [list(value) for value in plain.values() if isinstance(value, dict)],
        "removals": sorted(meta.removals),
        "keyspaces routed": sorted(meta.routing.keyspaces.items()),
        "routed": {name: meta.routing.shards(name) for name in meta.routing.keyspaces},
        "bounds": {name: meta.routing._bounds[name] for name in meta.routing.keyspaces},
        "descriptors": sorted(meta.routing.descriptors),
    }


@pytest.mark.parametrize("seed", range(8))
def test_it_is_what_all_rows_give(seed: int) -> None:
    line, rng = Line(), random.Random(seed)
    for number in range(60):
        spec, meta = rng.choice(SPECS), line.meta
        kind = rng.randrange(4)
        if kind < 2:
            step = create_step(meta, spec) if kind else drop_step(meta, spec.name)
        elif kind == 2:
            record = rng.choice(sorted(meta.nodes.values()))
            step = put_node(meta, record._replace(peer_address=f"n:{number}"))
        else:
            line.create(spec)
            continue
        if step is not None:
            line.run(step)
        assert content(line.meta) == content(line.rows.meta)
        rest = {key: mod for key, (mod, _) in line.rows.rows.items() if not key.startswith(REMOVED_PREFIX)}
        assert {key: line.meta.mod(key) for key in rest} == rest
        line.meta.routing.check()


def test_what_a_change_does_not_concern_is_shared() -> None:
    """Each change of meta cost all its rows, 34 ms of every node's loop with as many shards as a cluster may have."""
    line = Line()
    for spec in SPECS:
        line.create(spec)
    before = line.meta
    record = min(before.nodes.values())
    line.run(put_node(before, record._replace(peer_address="n:9")))
    assert line.meta.shards is before.shards
    assert line.meta.told is before.told
    for name in ("h", "r", "s", "default"):
        assert line.meta.routing.shards(name) is before.routing.shards(name)
    step = drop_step(line.meta, "s")
    assert step is not None
    line.run(step)
    assert "s" not in line.meta.routing.keyspaces
    assert line.meta.routing.shards("h") is before.routing.shards("h")

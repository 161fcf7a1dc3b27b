"""`verify_rows` has nothing to say of a state that the state machine made, whatever is in it."""

from __future__ import annotations

import pytest

from nebuladb.kv.verify import verify_rows
from nebuladb.storage.engine import Batch
from tests.unit.kv.helpers import GENERATION, GROUP, Log, fresh, grant, put, run


@pytest.mark.parametrize("lease", [1, -1, -5, (1 << 63) - 1, -1 << 63])
def test_a_key_may_be_attached_to_any_lease(lease: int) -> None:
    store, engine = fresh()
    run(store, Log(), grant(lease), put(b"k", b"v", lease))
    assert list(verify_rows(engine, GROUP, GENERATION)) == []


def test_a_key_whose_lease_does_not_know_of_it_is_told_of() -> None:
    store, engine = fresh()
    run(store, Log(), grant(-5), put(b"k", b"v", -5))
    [(row, _)] = engine.scan(*store._keys.attached(-5))
    engine.write(_without(row))
    assert list(verify_rows(engine, GROUP, GENERATION)) == ["key b'k' has lease -5, which doesn't know of it"]


def _without(row: bytes) -> Batch:
    batch = Batch()
    batch.delete(row)
    return batch

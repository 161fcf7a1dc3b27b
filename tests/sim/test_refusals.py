"""What the steward may never have is refused by the product, and noticed where it isn't."""

from __future__ import annotations

from random import Random

import pytest

from nebuladb.node.members import add_step
from nebuladb.sim.violation import Violation
from nebuladb.sim.workloads import refusals
from nebuladb.sim.workloads.refusals import ask_wrongly
from nebuladb.sim.workloads.steward import WRONG
from tests.unit.node.trio import Trio

ASKED = ("add_step", "claim_step", "move_step", "promote_step", "remove_step", "replace_step")


def _ask_all(seeds: int) -> None:
    trio = Trio.started()
    node = trio.node(0)
    for seed in range(seeds):
        ask_wrongly(Random(seed), node.meta, node.founding)


def test_the_product_refuses_all_of_it() -> None:
    _ask_all(200)


def test_what_the_steward_gives_by_mistake_is_none_of_it() -> None:
    """Seed 7300835: the same node, asked for again at the same wrong address, is no other of its name."""
    trio = Trio()
    trio.start()
    trio.founded()
    trio.drive(0, lambda meta: add_step(meta, "n4", WRONG, 99))
    node = trio.node(0)
    for seed in range(200):
        ask_wrongly(Random(seed), node.meta, node.founding)


@pytest.mark.parametrize("step", ASKED)
def test_one_that_is_granted_is_seen(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, step, lambda *args, **kwargs: b"")
    with pytest.raises(Violation, match="was not refused"):
        _ask_all(200)

"""What the steward may never have is refused by the product, and noticed where it isn't."""

from __future__ import annotations

from random import Random

import pytest

from nebuladb.sim.violation import Violation
from nebuladb.sim.workloads import refusals
from nebuladb.sim.workloads.refusals import ask_wrongly
from tests.unit.node.trio import Trio

ASKED = ("add_step", "claim_step", "move_step", "promote_step", "remove_step", "replace_step")


def _ask_all(seeds: int) -> None:
    trio = Trio()
    trio.start()
    trio.founded()
    node = trio.node(0)
    for seed in range(seeds):
        ask_wrongly(Random(seed), node.meta, node.founding)


def test_the_product_refuses_all_of_it() -> None:
    _ask_all(200)


@pytest.mark.parametrize("step", ASKED)
def test_one_that_is_granted_is_seen(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, step, lambda *args, **kwargs: b"")
    with pytest.raises(Violation, match="was not refused"):
        _ask_all(200)

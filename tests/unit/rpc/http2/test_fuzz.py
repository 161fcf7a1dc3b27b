"""A moment of `tests.fuzz.rpc`, and that it would see a broken variant."""

from __future__ import annotations

import pytest

from nebuladb.rpc.http2.core import Core
from tests.fuzz.rpc import campaign, forget_to_subtract


def test_mutated_octets() -> None:
    tally, violation = campaign(1_500, seed=7)
    assert not violation
    assert tally["slow"] == 0
    # It reaches what it is for: connections that end for several reasons, and ones that go on.
    assert min(tally["survived"], tally["protocol_error"], tally["compression_error"]) > 20


def test_it_finds_what_waits_and_is_miscounted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Core, "_drop_waiting", forget_to_subtract)
    assert "miscounted" in campaign(2_000, seed=7)[1]

"""Small bounds, so that small logs reach them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nebuladb.kv import deletion, draft, leases, machine, sessions
from tests.unit.kv import model


@pytest.fixture(scope="module")
def small_bounds() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sessions, "MAX_SESSIONS", model.MAX_SESSIONS)
        patch.setattr(sessions, "SESSION_WINDOW", model.SESSION_WINDOW)
        patch.setattr(leases, "MAX_LEASES", model.MAX_LEASES)
        patch.setattr(draft, "HISTORY_STRIDE", 3)
        patch.setattr(machine, "DELETION_ROWS", 2)
        patch.setattr(deletion, "MIN_RUN", 2)
        yield

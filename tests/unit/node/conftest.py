"""What several tests of a node begin with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.unit.node.lone import SECONDS, Lone


@pytest.fixture
async def alone() -> AsyncIterator[Lone]:
    """A node that serves by itself."""
    alone = Lone()
    await asyncio.wait_for(alone.serve(), SECONDS)
    yield alone
    await alone.pump.stop()

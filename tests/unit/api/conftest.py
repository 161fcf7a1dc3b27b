"""A lone node with its services, for each test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.unit.api.served import Served
from tests.unit.node.lone import SECONDS


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served = Served()
    await asyncio.wait_for(served.open(), SECONDS)
    yield served
    await served.close()

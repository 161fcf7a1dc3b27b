"""The node that the tests ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.unit.api.etcd.faced import Faced
from tests.unit.node.lone import SECONDS


@pytest.fixture
async def etcd() -> AsyncIterator[Faced]:
    faced = Faced()
    await asyncio.wait_for(faced.open(), SECONDS)
    yield faced
    await faced.close()

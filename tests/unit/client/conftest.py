from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.client.fake import Node, three_nodes
from tests.unit.client.fake_store import Store


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node(Store())
    yield node
    node.stop()


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    yield from three_nodes()

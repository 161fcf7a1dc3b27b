from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.client.fake import Node
from tests.unit.client.fake_store import Store


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node(Store())
    yield node
    node.stop()


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    store = Store()
    nodes = [Node(store, number) for number in (1, 2, 3)]
    for node in nodes:
        node.peers = nodes
    yield nodes
    for node in nodes:
        node.stop()

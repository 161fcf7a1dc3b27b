from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result

from nebuladb.cli.main import main
from tests.unit.client.fake import Node
from tests.unit.client.fake_store import Store

Cli = Callable[..., Result]


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    store = Store()
    nodes = [Node(store, number) for number in (1, 2, 3)]
    for node in nodes:
        node.peers = nodes
    yield nodes
    for node in nodes:
        node.stop()


@pytest.fixture
def cli(nodes: list[Node]) -> Cli:
    """Runs `nebula-cli` against the nodes."""

    def run(*arguments: str, stdin: bytes | None = None) -> Result:
        environment = {"NEBULA_ENDPOINTS": ",".join(node.address for node in nodes)}
        return CliRunner().invoke(main, arguments, input=stdin, env=environment, catch_exceptions=False)

    return run

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result

from nebuladb.cli.main import main
from tests.unit.client.fake import Node, three_nodes

Cli = Callable[..., Result]


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    yield from three_nodes()


@pytest.fixture
def cli(nodes: list[Node]) -> Cli:
    """Runs `nebula-cli` against the nodes."""

    def run(*arguments: str, stdin: bytes | None = None) -> Result:
        environment = {"NEBULA_ENDPOINTS": ",".join(node.address for node in nodes)}
        return CliRunner().invoke(main, arguments, input=stdin, env=environment, catch_exceptions=False)

    return run

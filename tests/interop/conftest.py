"""Three nodes for all clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.etcd.servers import Nebula


@pytest.fixture(scope="package")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nebula]:
    """Three nodes of ours."""
    with Nebula(tmp_path_factory.mktemp("interop"), 3) as cluster:
        yield cluster

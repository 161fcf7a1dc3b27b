from __future__ import annotations

import pytest

from nebuladb.cli.member import start_command
from nebuladb.pb.nebula.v1 import cluster_pb2
from nebuladb.server import config
from tests.unit.cli.conftest import Cli


@pytest.mark.parametrize("port", [1, 2, 7380, 65534, 65535])
def test_the_printed_command_is_one_that_starts(port: int) -> None:
    made = cluster_pb2.Member(name="n4", peer_address=f"10.0.0.4:{port}")
    words = start_command(made, "10.0.0.1:7380").split()
    assert words[:2] == ["nebulad", "start"]
    flags = {words[place].removeprefix("--"): words[place + 1] for place in range(2, len(words), 2)}
    loaded = config.load(flags, {})
    assert loaded.peer_addr == made.peer_address
    assert len({loaded.client_addr, loaded.peer_addr, loaded.admin_addr}) == 3


def test_the_lag_is_a_number(cli: Cli) -> None:
    assert '"lag": 0,' in cli("-o", "json", "member", "list").stdout

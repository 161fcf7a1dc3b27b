from __future__ import annotations

import pytest

from nebuladb.cli.member import door, start_command
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


def test_a_new_node_is_let_in_by_another_one_than_it_replaces() -> None:
    """That one is stopped first where the new one takes its address: the new one then asked itself, for ever."""
    members = [
        cluster_pb2.Member(name=name, peer_address=f"10.0.0.{place}:7380", connected=connected, state=state)
        for place, (name, connected, state) in enumerate(
            [("n1", True, "member"), ("n2", False, "member"), ("n3", True, "leaving"), ("n4", True, "member")]
        )
    ]
    assert door(members, "n1") == "10.0.0.3:7380"
    assert door(members, "") == door(members[:3], "n1") == "10.0.0.0:7380"
    assert door([], "n1") == ""


def test_the_lag_is_a_number(cli: Cli) -> None:
    assert '"lag": 0,' in cli("-o", "json", "member", "list").stdout

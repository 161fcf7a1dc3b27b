from __future__ import annotations

import pytest

from nebuladb.cli.member import door, start_command, to_do_first
from nebuladb.errors import InvalidArgument
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


def test_who_replaces_a_node_that_runs_at_its_own_address_is_told_to_stop_it_first() -> None:
    members = [
        cluster_pb2.Member(name=name, peer_address=f"{name}:7380", connected=connected, state="member")
        for name, connected in [("n1", True), ("n2", True), ("n3", False)]
    ]
    assert "stop it before" in to_do_first(members, "n1", "n1:7380")
    assert to_do_first(members, "n1", "n4:7380") == ""
    assert to_do_first(members, "n3", "n3:7380") == ""  # it is dead
    assert to_do_first(members, "n1", "n2:7380") == to_do_first(members, "n9", "") == ""  # the server refuses these
    with pytest.raises(InvalidArgument, match="give --peer-address HOST:PORT, another one than n1:7380"):
        to_do_first(members[:1], "n1", "n1:7380")
    assert to_do_first(members[:1], "n1", "n1:7390") == ""


def test_the_lag_is_a_number(cli: Cli) -> None:
    assert '"lag": 0,' in cli("-o", "json", "member", "list").stdout

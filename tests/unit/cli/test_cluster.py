from __future__ import annotations

import json

import click
import pytest

from nebuladb.cli import status
from nebuladb.cli.main import main
from nebuladb.client import AsyncClient
from nebuladb.errors import NodeRemoved
from tests.unit.cli.conftest import Cli
from tests.unit.client.fake import Fault, Node


def test_lists(cli: Cli) -> None:
    assert cli("keyspace", "list").stdout.splitlines()[1].split() == ["default", "range", "1"]
    assert json.loads(cli("-o", "json", "keyspace", "describe", "default").stdout)["replicas"] == 3
    assert json.loads(cli("-o", "json", "shard", "list").stdout)["leader"] == "n1"
    names = [json.loads(line)["name"] for line in cli("-o", "json", "member", "list").stdout.splitlines()]
    assert names == ["n1", "n2", "n3"]


def test_keyspaces_are_created_and_dropped(cli: Cli, nodes: list[Node]) -> None:
    assert cli("keyspace", "create", "users").stdout == "OK\n"
    assert nodes[0].store.keyspaces["users"].shards == 8
    made = cli(
        "-o", "json", "keyspace", "create", "logs", "--partitioning", "range", "--split-at", "m", "--split-at", "t"
    )
    assert json.loads(made.stdout) == {"keyspace": "logs", "created": True}
    assert list(nodes[0].store.keyspaces["logs"].split_keys) == [b"m", b"t"]
    other = cli("keyspace", "create", "users", "--shards", "9")
    assert (other.exit_code, other.stdout) == (1, "")
    assert other.stderr.count("\n") == 1
    assert cli("keyspace", "drop", "users").stdout == "OK\n"
    assert json.loads(cli("-o", "json", "keyspace", "drop", "users").stdout) == {"keyspace": "users", "dropped": False}
    for wrong in (["--partitioning", "tree"], ["--shards", "0"], ["--split-at", "m"]):
        assert cli("keyspace", "create", "x", *wrong).exit_code == 2
    assert cli("keyspace", "create", "x", "--partitioning", "single", "--shards", "2").exit_code == 2


@pytest.mark.parametrize("words", ["keyspace create x", "member promote n4", "member remove n4"])
def test_that_nobody_is_there_is_told_before_a_change_is_waited_for(
    cli: Cli, nodes: list[Node], monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    for change in ("create_keyspace", "promote_member", "remove_member"):
        monkeypatch.delattr(AsyncClient, change)  # it would wait for a minute
    for node in nodes:
        node.stop()
    answer = cli("--timeout", "0.1", *words.split())
    assert answer.exit_code == 1
    assert "can't be reached" in answer.stderr


def test_status(cli: Cli, nodes: list[Node]) -> None:
    answer = cli("status")
    assert answer.exit_code == 0
    assert [line.split()[1] for line in answer.stdout.splitlines()] == ["NAME", "n1", "n1", "n2", "n2", "n3", "n3"]
    nodes[1].stop()
    answer = cli("status")
    assert answer.exit_code == 1
    assert [line.split()[1] for line in answer.stdout.splitlines()] == ["NAME", "n1", "n1", "n3", "n3"]
    assert nodes[1].address in answer.stderr


def test_status_names_leaders(cli: Cli, nodes: list[Node]) -> None:
    def leaders(*endpoints: str) -> list[str]:
        lines = cli(*endpoints, "-o", "json", "status").stdout.splitlines()
        return [json.loads(line)["leader"] for line in lines]

    assert leaders() == ["", "n1"] * 3
    only = ("--endpoints", nodes[1].address)
    assert leaders(*only) == ["", "n1"]  # which is a member's name
    nodes[1].faults.append(Fault("Members", NodeRemoved("it was removed")))  # nobody tells
    assert leaders(*only) == ["", f"{1:016x}"]


def test_status_hash(cli: Cli, nodes: list[Node]) -> None:
    cli("put", "k", "v")
    # One endpoint is enough: the others' addresses come from the members.
    answer = cli("--endpoints", nodes[0].address, "-o", "json", "status", "--hash")
    assert answer.exit_code == 0
    rows = [json.loads(line) for line in answer.stdout.splitlines()]
    assert [(row["group"], row["keyspace"], row["node"]) for row in rows] == [
        (group, keyspace, node) for group, keyspace in ((1, "(meta)"), (2, "default")) for node in ("n1", "n2", "n3")
    ]
    assert len({(row["applied"], row["hash"]) for row in rows}) == 2  # one a group
    assert len(rows[0]["hash"]) == 64


def test_status_hash_finds_a_difference(cli: Cli, nodes: list[Node]) -> None:
    nodes[2].bad_hash = True
    answer = cli("status", "--hash")
    assert answer.exit_code == 1
    assert "DIFFER" in answer.stderr
    assert "n3 has other data than the majority" in answer.stderr
    assert cli("check").exit_code == 1


def test_a_hash_that_a_node_has_lost_is_ordered_anew(cli: Cli, nodes: list[Node]) -> None:
    nodes[1].lost_hashes = 2
    answer = cli("-o", "json", "status", "--hash")
    assert answer.exit_code == 0, answer.stderr
    nodes[1].lost_hashes = 99
    answer = cli("check")
    assert answer.exit_code == 3
    assert "no hash from n2" in answer.stderr


def test_status_hash_is_no_success_without_a_node(cli: Cli, nodes: list[Node]) -> None:
    nodes[2].stop()
    answer = cli("-o", "json", "status", "--hash")
    assert answer.exit_code == 3
    assert [line.split(": ")[1:3] for line in answer.stderr.splitlines()] == [
        ["group 1", "no hash from n3"],
        ["group 2", "no hash from n3"],
    ]
    rows = [json.loads(line) for line in answer.stdout.splitlines()]
    assert [(row["group"], row["node"], bool(row["hash"])) for row in rows] == [
        (group, node, node != "n3") for group in (1, 2) for node in ("n1", "n2", "n3")
    ]


def test_check_skips_a_keyspace_that_is_dropped_meanwhile(cli: Cli, nodes: list[Node]) -> None:
    nodes[0].more_shards = "dropped"
    answer = cli("-o", "json", "check")
    assert answer.exit_code == 0, answer.stderr
    assert [json.loads(line)["group"] for line in answer.stdout.splitlines()] == [1, 1, 1, 2, 2, 2, 4, 4, 4]
    assert answer.stderr == "nebula-cli: group 3: skipped, keyspace ks3 was dropped meanwhile\n"


@pytest.mark.parametrize("differ", [False, True])
def test_a_shard_that_could_not_be_compared_is_not_one_that_differs(cli: Cli, nodes: list[Node], differ: bool) -> None:
    """And those behind it are compared; whoever differs is told whatever else failed."""
    nodes[0].more_shards, nodes[2].bad_hash = "broken", differ
    answer = cli("-o", "json", "check")
    assert answer.exit_code == (1 if differ else 3)
    assert [json.loads(line)["group"] for line in answer.stdout.splitlines()] == [1, 1, 1, 2, 2, 2, 4, 4, 4]
    assert "group 3: not compared: there is no shard 3" in answer.stderr


def test_shards_without_a_leader_share_one_patience(
    cli: Cli, nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a majority gone that is all of them, a minute each; and those behind them are compared all the same."""
    given: list[float] = []

    async def order(client: AsyncClient, group: int, *, timeout: float = 0.0) -> int:
        given.append(timeout)
        return await ordered(client, group, timeout=timeout)

    ordered = AsyncClient.order_hash
    monkeypatch.setattr(AsyncClient, "order_hash", order)
    monkeypatch.setattr(status, "PATIENCE", 0.5)
    monkeypatch.setattr(status, "LEAST_PATIENCE", 0.125)
    for node in nodes:
        node.more_shards, node.leaderless = "more", {1, 2}
    answer = cli("-o", "json", "check")
    assert answer.exit_code == 3
    assert answer.stderr.count("not compared: no leader took the write in time") == 2
    assert [json.loads(line)["group"] for line in answer.stdout.splitlines()] == [4, 4, 4]
    assert len(given) == 4
    assert given == sorted(given, reverse=True)
    assert given[0] == 0.5 > given[1], "what the first one waited is gone"


def test_a_check_that_fails_as_a_whole_says_not_that_nodes_differ(cli: Cli, nodes: list[Node]) -> None:
    nodes[0].faults.append(Fault("Members", NodeRemoved("it was removed")))
    answer = cli("check")
    assert (answer.exit_code, answer.stdout) == (3, "")
    assert answer.stderr == "nebula-cli: it was removed\n"
    assert cli("--endpoints", "nonsense", "check").exit_code == 2


def test_leases(cli: Cli) -> None:
    lease = cli("lease", "grant", "30").stdout.strip()
    cli("put", "k", "v", "--lease", lease)
    assert cli("lease", "list").stdout == f"{lease}\n"
    assert cli("lease", "ttl", "--keys", lease).stdout == "30\nk\n"
    assert cli("lease", "keep-alive", "--once", lease).stdout == "OK\n"
    assert cli("lease", "revoke", lease).stdout == "OK\n"
    for command in (("revoke",), ("ttl",), ("keep-alive",), ("keep-alive", "--once")):
        assert cli("lease", *command, lease).exit_code == 1
    for ttl in ("1", "9000000001"):
        refused = cli("lease", "grant", ttl)
        assert refused.exit_code == 2
        assert "2<=x<=9000000000" in refused.stderr


def _commands(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path]
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            found += _commands(child, (*path, name))
    return found


@pytest.mark.parametrize("path", _commands(main), ids="-".join)
def test_every_help_has_an_example(cli: Cli, path: tuple[str, ...]) -> None:
    answer = cli(*path, "--help")
    assert answer.exit_code == 0
    assert answer.stdout.isascii(), "it can be told in any locale"
    assert "Example:\n" in answer.stdout
    assert "nebula-cli" in answer.stdout.split("Example:")[1]

from __future__ import annotations

import base64
import json
import socket
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Cli
from tests.unit.client.fake import LOST, Fault, Node


def test_put_get_del_keep_the_contract(cli: Cli) -> None:
    missing = cli("get", "k")
    assert (missing.exit_code, missing.stdout_bytes, missing.stderr_bytes) == (1, b"", b"")
    assert cli("put", "k", "v").stdout == "OK\n"
    found = cli("get", "k")
    assert (found.exit_code, found.stdout_bytes) == (0, b"v\n")
    assert cli("del", "k").stdout == "1\n"
    again = cli("del", "k")
    assert (again.exit_code, again.stdout) == (0, "0\n")


def test_values_are_bytes(cli: Cli, tmp_path: Path) -> None:
    raw = bytes(range(256))
    file = tmp_path / "raw"
    file.write_bytes(raw)
    assert cli("put", "a", "-", stdin=raw).exit_code == 0
    assert cli("put", "--hex", "00ff", "--file", str(file)).exit_code == 0
    assert cli("put", "empty", "").exit_code == 0
    assert cli("get", "a").stdout_bytes == raw + b"\n"
    assert cli("get", "--hex", "00ff").stdout_bytes == raw + b"\n"
    assert cli("get", "empty").stdout_bytes == b"\n"
    assert cli("scan", "--keys-only").stdout_bytes == b"\x00\xff\na\nempty\n"
    assert cli("scan", "--end", "b").stdout_bytes == b"\x00\xff\t" + raw + b"\na\t" + raw + b"\n"


def test_json_is_one_object_a_line(cli: Cli) -> None:
    cli("put", "k1", "v")
    cli("put", "k2", "w")
    lines = cli("-o", "json", "scan", "--prefix", "k").stdout.splitlines()
    assert [base64.b64decode(json.loads(line)["key"]) for line in lines] == [b"k1", b"k2"]
    assert json.loads(cli("-o", "json", "get", "k2").stdout) == {
        "key": "azI=",
        "value": "dw==",
        "create_revision": 3,
        "mod_revision": 3,
        "version": 1,
        "lease": 0,
    }
    assert json.loads(cli("-o", "json", "del", "k1").stdout)["deleted"] == 1
    assert json.loads(cli("-o", "json", "put", "k1", "x").stdout) == {"revision": 5}


def test_table_shows_bytes_as_text(cli: Cli) -> None:
    cli("put", "--hex", "00e4ff", "a\tb")
    head, row = cli("-o", "table", "scan").stdout.splitlines()
    assert head.split() == ["KEY", "VALUE", "CREATE", "REVISION", "MOD", "REVISION", "VERSION", "LEASE"]
    assert row.split() == ["\\x00\\xe4\\xff", "a\\tb", "2", "2", "1", "0"]


def test_scan_and_del_ranges(cli: Cli) -> None:
    for key in ("a/1", "a/2", "b/1", "b/2"):
        cli("put", key, "v")
    cli("put", "a/1", "new")
    assert cli("scan", "a/2", "--limit", "2").stdout == "a/2\tv\nb/1\tv\n"
    assert cli("scan", "--prefix", "a/", "--revision", "5").stdout == "a/1\tv\na/2\tv\n"
    assert cli("scan", "--prefix", "", "--keys-only", "--serializable").stdout.split() == ["a/1", "a/2", "b/1", "b/2"]
    assert cli("get", "a/1", "--revision", "2").stdout == "v\n"
    assert cli("del", "a/1", "--end", "a/2").stdout == "1\n"
    assert cli("del", "--prefix", "b/").stdout == "2\n"


def test_watch(cli: Cli) -> None:
    cli("put", "k", "v")
    cli("put", "other", "v")
    cli("del", "k")
    seen = cli("watch", "k", "--from-revision", "2", "--count", "2")
    assert (seen.exit_code, seen.stdout_bytes) == (0, b"PUT\tk\tv\nDELETE\tk\n")
    line = cli("-o", "json", "watch", "--prefix", "", "--from-revision", "3", "--count", "1").stdout
    told = json.loads(line)
    assert (told["type"], told["group"]) == ("PUT", 2)


def test_a_watch_goes_on_in_each_shard_where_a_scan_ended(cli: Cli) -> None:
    cli("put", "k", "v")
    listed = cli("scan", "--next-revisions")
    assert (listed.stdout, listed.stderr) == ("k\tv\n", "2:3\n")
    cli("put", "k", "w")
    seen = cli("watch", "--prefix", "", "--from-revision", listed.stderr.strip(), "--count", "1")
    assert seen.stdout == "PUT\tk\tw\n"
    for starts in (("2", "3"), ("2", "2:3"), ("2:2", "2:3")):
        options = [word for start in starts for word in ("--from-revision", start)]
        refused = cli("watch", "k", *options)
        assert (refused.exit_code, "once for each shard" in refused.stderr) == (2, True)


def test_txn(cli: Cli) -> None:
    text = b'when\n  version lock = 0  # free\nthen\n put lock "my host\\x00"\n get lock\nelse\n get lock\n del lock\n'
    assert cli("txn", stdin=text).stdout_bytes == b"succeeded\nOK\nlock\tmy host\0\n"
    refused = cli("txn", stdin=text)
    assert (refused.exit_code, refused.stdout_bytes) == (0, b"failed\nlock\tmy host\0\n1\n")
    lines = [json.loads(line) for line in cli("-o", "json", "txn", stdin=text).stdout.splitlines()]
    assert [line["operation"] for line in lines] == ["txn", "put", "get"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("put", "k"), "give a VALUE"),
        (("put", "k", "v", "--file", "/dev/null"), "give a VALUE"),
        (("get", "--hex", "0g"), "not hexadecimal"),
        (("get",), "Missing argument"),
        (("del",), "give a KEY or --prefix"),
        (("del", "k", "--prefix", "k"), "give a KEY or --prefix"),
        (("watch", "--prefix", "k", "--end", "l"), "--end goes with"),
        (("watch", "k", "--from-revision", "2:"), "neither REVISION nor SHARD:REVISION"),
        (("watch", "k", "--from-revision", "-1"), "neither REVISION nor SHARD:REVISION"),
        (("watch", "k", "--from-revision", "users:2"), "neither REVISION nor SHARD:REVISION"),
        (("nonsense",), "No such command"),
        (("--timeout", "0", "get", "k"), "range"),
        (("--endpoints", "nowhere", "get", "k"), "HOST:PORT"),
        (("-o", "xml", "get", "k"), "xml"),
        (("txn",), "empty"),
    ],
)
def test_wrong_usage_exits_2(cli: Cli, arguments: tuple[str, ...], says: str) -> None:
    answer = cli(*arguments)
    assert answer.exit_code == 2
    assert says in answer.stderr
    assert answer.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("put", "", "v"), "at least one byte"),
        (("put", "k", "v", "--lease", "7"), "does not exist"),
        (("--keyspace", "nowhere", "get", "k"), "keyspace list"),
        (("get", "k", "--revision", "9"), "has not happened"),
        (("keyspace", "describe", "nowhere"), "keyspace list"),
    ],
)
def test_a_refusal_exits_1_with_one_line(cli: Cli, arguments: tuple[str, ...], says: str) -> None:
    answer = cli(*arguments)
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert answer.stderr.count("\n") == 1
    assert says in answer.stderr


def test_a_request_over_the_limit_is_refused(cli: Cli, nodes: list[Node]) -> None:
    answer = cli("put", "k", "-", stdin=b"v" * 1_600_000)
    assert answer.exit_code == 1
    assert "1.5 MiB" in answer.stderr
    assert not nodes[0].calls


def test_nobody_there(cli: Cli) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        answer = cli("--endpoints", address, "--timeout", "0.1", "put", "k", "v")
    assert answer.exit_code == 1
    assert answer.stderr == f"nebula-cli: {address} can't be reached; is a node serving there?\n"


def test_an_unknown_outcome_is_told(cli: Cli, nodes: list[Node]) -> None:
    nodes[0].faults.append(Fault("Put", LOST, after=True))
    answer = cli("put", "k", "v")
    assert answer.exit_code == 1
    assert "may or may not take effect" in answer.stderr

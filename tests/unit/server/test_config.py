from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebuladb.addresses import split_address
from nebuladb.errors import ConfigurationError
from nebuladb.node.memory import DEFAULT_MEMORY
from nebuladb.server.config import DEFAULTS, WrongSetting, _toml_string, load


def test_with_nothing_given_it_is_a_single_node() -> None:
    config = load({}, {})
    assert config.initial_cluster == {"n1": "127.0.0.1:7380"}
    assert config.advertise_client_addr == config.client_addr == "127.0.0.1:7379"
    assert config.data_dir == Path.cwd() / "nebula-data"


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('name = "file"\nclient-addr = "127.0.0.1:1"\npeer-addr = "127.0.0.1:2"\n')
    environ = {"NEBULA_NAME": "env", "NEBULA_CLIENT_ADDR": "127.0.0.1:3"}
    config = load({"name": "flag", "client-addr": None}, environ, file)
    assert (config.name, config.client_addr, config.peer_addr) == ("flag", "127.0.0.1:3", "127.0.0.1:2")
    assert config.admin_addr == DEFAULTS["admin-addr"]


def test_the_file_may_move_with_its_data(tmp_path: Path) -> None:
    first, second = tmp_path / "n1", tmp_path / "moved"
    first.mkdir()
    (first / "nebulad.toml").write_text(load({"data-dir": str(first)}, {}).to_toml(first))
    first.rename(second)
    assert load({}, {}, second / "nebulad.toml").data_dir == second


def test_what_is_written_loads_as_the_same(tmp_path: Path) -> None:
    config = load(
        {
            "name": "b",
            "data-dir": str(tmp_path / 'quote " and \\ and é'),
            "initial-cluster": "b=[::1]:7380,a=10.0.0.1:7380",
            "advertise-peer-addr": "[::1]:7380",
        },
        {},
    )
    file = tmp_path / "x.toml"
    file.write_text(config.to_toml(tmp_path))
    assert load({}, {}, file) == config


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_toml(text: str) -> None:
    assert tomllib.loads(f"a = {_toml_string(text)}") == {"a": text}


def test_a_cluster_may_be_a_table(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('[initial-cluster]\nn2 = "h:2"\nn1 = "h:1"\n')
    assert list(load({}, {}, file).initial_cluster.items()) == [("n1", "h:1"), ("n2", "h:2")]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"client-addr": "7379"}, "client-addr (flag --client-addr): '7379' is not HOST:PORT"),
        ({"client-addr": "h:0"}, "the port is a number from 1 to 65535"),
        ({"client-addr": "h:\u0661"}, "the port is a number"),
        ({"client-addr": "::1:7379"}, "an IPv6 address is written [ADDRESS]:PORT"),
        ({"client-addr": "[zz]:1"}, "is not an IPv6 address"),
        ({"client-addr": "a b:1"}, "is not a host name"),
        ({"client-addr": "n1..example:1"}, "is not a host name"),
        ({"admin-addr": "n" * 64 + ":1"}, "is not a host name"),
        ({"peer-addr": "n1.example" * 26 + ":1"}, "is not a host name"),
        ({"client-addr": "127.0.0.1:7380"}, "each needs a port of its own"),
        ({"client-addr": "0.0.0.0:7379"}, "set advertise-client-addr"),
        ({"peer-addr": "[::]:7380"}, "set advertise-peer-addr"),
        ({"advertise-peer-addr": "0.0.0.0:7380"}, "can't be called by others"),
        ({"name": "a b"}, "is not a name"),
        ({"name": "x" * 65}, "is not a name"),
        ({"data-dir": ""}, "data-dir (flag --data-dir): must not be empty"),
        ({"data-dir": "a\0b"}, "data-dir (flag --data-dir): 'a\\x00b' has a NUL"),
        ({"data-dir": os.fsdecode(b"/a/\xff")}, "data-dir (flag --data-dir): b'/a/\\xff' is not UTF-8; name"),
        ({"initial-cluster": "n2=h:1"}, "this node's name 'n1' is not in it; it lists n2"),
        ({"initial-cluster": "n1"}, "'n1' is not NAME=HOST:PORT"),
        ({"initial-cluster": "n1=h:1,n1=h:2"}, "n1 stands there twice"),
        ({"initial-cluster": "n1=h:1,n2=h:1"}, "two nodes have the address h:1"),
        ({"initial-cluster": "n1=0.0.0.0:1"}, "can't be called by others"),
        ({"initial-cluster": "n1=0:1"}, "can't be called by others"),
        ({"client-addr": "0:7379"}, "can be listened at but not called"),
        ({"peer-addr": "[::ffff:0.0.0.0]:7380"}, "can be listened at but not called"),
        ({"memory": "999999999999999GiB"}, "is too much; a node takes 1048576GiB at most"),
        ({"initial-cluster": "n1=h:1", "join": "h:2"}, "founds a cluster or joins one"),
        ({"join": "h"}, "join (flag --join): 'h' is not HOST:PORT"),
        ({"log-level": "loud"}, "'loud' is not one of debug, info"),
        ({"log-format": "xml"}, "'xml' is not one of auto, console, json"),
        ({"snapshot-rate": "32"}, "snapshot-rate (flag --snapshot-rate): 32 a second is too little"),
    ],
)
def test_an_error_names_the_setting_and_what_to_do(flags: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(flags, {})
    assert told in caught.value.message


def test_an_error_says_where_the_value_came_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^name \(environment NEBULA_NAME\): "):
        load({}, {"NEBULA_NAME": "?"})
    file = tmp_path / "x.toml"
    file.write_text('name = "?"')
    with pytest.raises(ConfigurationError, match=r"^name \(file .*x.toml\): "):
        load({}, {}, file)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('colour = "red"', "colour (file"),
        ("name = 3", "must be a string in quotes, not 3"),
        ("name = ", "config file"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "x.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load({}, {}, file)
    assert told in caught.value.message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        load({}, {}, tmp_path / "none.toml")


def test_an_unknown_variable_is_refused_but_not_those_of_others() -> None:
    with pytest.raises(ConfigurationError, match="environment NEBULA_CLIENT_ADR: no such setting"):
        load({}, {"NEBULA_CLIENT_ADR": "h:1"})
    others = ("NEBULA_ENDPOINTS", "NEBULA_SERVICE_HOST", "NEBULA_PORT", "NEBULA_PORT_7379_TCP_ADDR",
              "NEBULA_CLIENT_SERVICE_PORT_GRPC", "PATH")  # fmt: skip
    load({}, dict.fromkeys(others, "x"))


def test_a_joining_node_has_no_initial_cluster() -> None:
    config = load({"join": "10.0.0.1:7380"}, {})
    assert (config.initial_cluster, config.join) == ({}, "10.0.0.1:7380")


def test_a_founder_must_have_the_listed_address() -> None:
    load({"initial-cluster": "n1=127.0.0.1:7380"}, {}).check_founding()
    load({"join": "h:1"}, {}).check_founding()
    for listed in ("10.0.0.1:7380", "localhost:7380"):  # one that resolves to the other is another still
        with pytest.raises(WrongSetting, match="make them equal"):
            load({"initial-cluster": f"n1={listed}"}, {}).check_founding()


def test_a_node_that_is_new_is_not_let_in_by_itself() -> None:
    load({"join": "127.0.0.1:7390"}, {}).check_founding()
    elsewhere = {"peer-addr": "0.0.0.0:7380", "advertise-peer-addr": "n4:7380"}
    for settings in ({"join": "127.0.0.1:7380"}, elsewhere | {"join": "n4:7380"}, elsewhere | {"join": "0.0.0.0:7380"}):
        with pytest.raises(WrongSetting, match="is this node's own peer address"):
            load(settings, {}).check_founding()


def test_split_address_takes_brackets_off() -> None:
    assert split_address("[::1]:7379") == ("::1", 7379)
    assert split_address("node-1.example:65535") == ("node-1.example", 65535)


@given(st.text())
def test_split_address_is_total(text: str) -> None:
    try:
        host, port = split_address(text)
    except ConfigurationError:
        return
    assert host
    assert 1 <= port <= 65535


@pytest.mark.parametrize(("text", "size"), [("64MiB", 64 << 20), ("1 GiB", 1 << 30), ("134217729B", (128 << 20) + 1)])
def test_memory_is_a_size(text: str, size: int, tmp_path: Path) -> None:
    config = load({"memory": text}, {})
    assert config.memory == size
    (tmp_path / "a.toml").write_text(config.to_toml(tmp_path))
    assert load({}, {}, tmp_path / "a.toml").memory == size


@pytest.mark.parametrize("text", ["63MiB", "0MiB", "-1GiB", "128", "128MB", "1.5GiB", "much"])
def test_too_little_memory_and_no_size_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="memory"):
        load({"memory": text}, {})


def test_the_default_memory_is_what_the_node_plans_with() -> None:
    assert load({}, {}).memory == DEFAULT_MEMORY

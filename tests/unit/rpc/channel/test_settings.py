"""Options, targets and deadlines: the parts that need no connection."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from nebuladb.rpc.channel import deadlines, settings
from nebuladb.rpc.channel.deadlines import Deadlines
from nebuladb.rpc.channel.method import MAX_HEADERS, Method, base_fields
from nebuladb.rpc.channel.settings import LONGEST_MESSAGE, USER_AGENT, Settings
from nebuladb.rpc.channel.target import Endpoint, parse
from nebuladb.rpc.metadata import MetadataError


def test_options_by_grpcs_names() -> None:
    known = Settings.of(
        [
            ("grpc.max_receive_message_length", -1),
            ("grpc.keepalive_time_ms", 1500),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.lb_policy_name", "round_robin"),
            ("grpc.primary_user_agent", "mine/1"),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.enable_retries", 0),
        ]
    )
    assert known.max_receive_message == LONGEST_MESSAGE
    assert known.keepalive_time == 1.5
    assert known.keepalive_without_calls
    assert known.policy == "round_robin"
    assert known.user_agent == f"mine/1 {USER_AGENT}"
    assert known.connect_timeout == settings.SHORTEST_CONNECT
    assert Settings.of(None) == Settings()


def test_every_setting_has_an_option() -> None:
    tables = (settings._SECONDS, settings._NUMBERS, settings._TEXTS, settings._FLAGS)
    named = {name for table in tables for name in table.values()}
    assert named == {field.name for field in dataclasses.fields(Settings)}


@pytest.mark.parametrize(
    "option",
    [
        ("grpc.max_receive_message_length", "4"),
        ("grpc.max_receive_message_length", -2),
        ("grpc.keepalive_time_ms", -1),
        ("grpc.lb_policy_name", "guess"),
        ("grpc.primary_user_agent", "a\nb"),
        ("grpc.primary_user_agent", " a"),  # no header may say that: calls found no connection that would take them
        ("grpc.default_authority", "a "),
        ("grpc.ssl_target_name_override", ".a"),  # TLS can't ask for it: no attempt to connect ever ended
        ("grpc.ssl_target_name_override", "a" * 64),
    ],
)
def test_options_that_make_no_sense(option: tuple[str, Any]) -> None:
    with pytest.raises(ValueError, match="grpc"):
        Settings.of([option])


@pytest.mark.parametrize(
    ("text", "name", "endpoints", "authority"),
    [
        ("localhost:1", ("localhost", 1), (), "localhost:1"),
        ("localhost", ("localhost", 443), (), "localhost:443"),
        ("dns:///example.org:2", ("example.org", 2), (), "example.org:2"),
        ("dns:example.org:2", ("example.org", 2), (), "example.org:2"),
        ("127.0.0.1:3", None, (Endpoint("127.0.0.1", 3),), "127.0.0.1:3"),
        ("[::1]:4", None, (Endpoint("::1", 4),), "[::1]:4"),
        ("::1", None, (Endpoint("::1", 443),), "[::1]:443"),
        ("ipv4:1.2.3.4:5,6.7.8.9:5", None, (Endpoint("1.2.3.4", 5), Endpoint("6.7.8.9", 5)), "1.2.3.4:5"),
        ("ipv6:[::1]:6,[::2]", None, (Endpoint("::1", 6), Endpoint("::2", 443)), "[::1]:6"),
        ("unix:/tmp/s", None, (Endpoint("", 0, "/tmp/s"),), "localhost"),
        ("unix:///tmp/s", None, (Endpoint("", 0, "/tmp/s"),), "localhost"),
        ("unix:s", None, (Endpoint("", 0, "s"),), "localhost"),
    ],
)
def test_targets(text: str, name: object, endpoints: object, authority: str) -> None:
    target = parse(text)
    assert (target.name, target.endpoints, target.authority) == (name, endpoints, authority)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        "host:port",
        "host:70000",
        "host:-1",
        "[::1:4",
        "[::1]x",
        "a b:1",
        "unix:",
        "ipv4:host:1",
        "ipv4:::1",
        "ipv6:1.2.3.4:1",
        "dns://server/host:1",
        "dns://host:1",
        "ipv4:" + ",".join(["1.2.3.4:5"] * 300),
    ],
)
def test_targets_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="target"):
        parse(text)


async def test_a_name_has_each_address_once() -> None:
    endpoints = await parse("localhost:7").resolve()
    assert len(set(endpoints)) == len(endpoints)
    assert Endpoint("127.0.0.1", 7) in endpoints


class Call:
    def __init__(self, expired: list[Call]) -> None:
        self._expired = expired

    def expire(self) -> None:
        self._expired.append(self)


async def test_a_deadline_comes_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(deadlines, "monotonic", lambda: now)
    wheel = Deadlines(asyncio.get_running_loop())
    expired: list[Call] = []
    calls = {timeout: Call(expired) for timeout in (0.001, 0.5, 1.0, 5.0, 100.0)}
    slots = {timeout: wheel.add(call, timeout, now + timeout) for timeout, call in calls.items()}
    for timeout, call in calls.items():
        now = 1000.0 + timeout
        wheel._ring()
        assert call not in expired, "not before"
        now = 1000.0 + timeout * (1 + 1 / 64) + 0.001
        wheel._ring()
        assert call in expired, "and not much later"
        assert slots[timeout] not in wheel._slots
    wheel.close()


async def test_the_wheel_has_few_slots_however_many_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(deadlines, "monotonic", lambda: now)
    wheel = Deadlines(asyncio.get_running_loop())
    expired: list[Call] = []
    for number in range(20_000):
        now = number / 1000
        call = Call(expired)
        wheel.drop(call, wheel.add(call, 10.0, now + 10.0))
        wheel._ring()
        assert len(wheel._order) == len(wheel._slots) <= 1 << deadlines.PRECISION_BITS
    assert not expired
    wheel.close()


async def test_an_earlier_deadline_rings_earlier() -> None:
    wheel = Deadlines(asyncio.get_running_loop())
    expired: list[Call] = []
    from time import monotonic

    late, soon = Call(expired), Call(expired)
    wheel.add(late, 3600.0, monotonic() + 3600.0)
    wheel.add(soon, 0.01, monotonic() + 0.01)
    async with asyncio.timeout(20):
        while not expired:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert expired == [soon]
    wheel.close()


def test_a_methods_header_lists_repeat_as_the_same_object_and_are_bounded() -> None:
    method = Method("/a.B/C", base_fields("http", "host:1", "me"), None, None)
    first = method.fields(b"5S", "", ())
    assert method.fields(b"5S", "", ()) is first
    assert first[2] == (b":path", b"/a.B/C")
    assert (b"grpc-timeout", b"5S") in first
    assert (b"x", b"y") in method.fields(None, "gzip", ((b"x", b"y"),))
    for number in range(2 * MAX_HEADERS):
        method.fields(b"%dm" % number, "", ())
    assert len(method._known) <= MAX_HEADERS


@pytest.mark.parametrize("path", ["", "a.B/C", "/a b", "/\u00fc", "/a\n"])
def test_paths_that_are_none(path: str) -> None:
    with pytest.raises(MetadataError):
        Method(path, base_fields("http", "host:1", "me"), None, None)

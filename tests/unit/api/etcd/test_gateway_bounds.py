"""What clients of the JSON gateway can't do to others: keep the loop, or memory, or connections (etcd 59 to 61)."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import logging
import socket
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google.protobuf.message import Message

from nebuladb.api.etcd.gateway import connection, gateway
from nebuladb.api.etcd.gateway.mapping import BATCH, Reader, to_json
from nebuladb.api.etcd.gateway.worker import LARGE_BYTES
from nebuladb.api.etcd.ranges import Ranges
from nebuladb.pb.etcd import kv_pb2 as pb
from nebuladb.pb.etcd import lease_pb2
from nebuladb.rpc.serving import turns
from tests.unit.api.etcd.faced import Faced
from tests.unit.api.etcd.http import Http, connected, get, post
from tests.unit.api.etcd.streams import GROUP
from tests.unit.node.lone import SECONDS

ALL = '{"key":"AA==","range_end":"AA=="}'
WATCH = '{"create_request":{"key":"Zm9v"}}'


def padded(body: str, size: int = 2 * LARGE_BYTES) -> str:
    """The same JSON, of so many bytes."""
    return " " * (size - len(body)) + body


class Slow:
    """Makes of large messages JSON as slowly as a test likes."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.begun = self.running = self.most = 0
        self.on_loop = False
        self._loop = threading.current_thread()

    def __call__(self, message: Message) -> bytes:
        if message.ByteSize() > LARGE_BYTES:
            self.begun += 1
            self.running += 1
            self.most = max(self.most, self.running)
            self.on_loop |= threading.current_thread() is self._loop
            if not self.on_loop:
                self.go_on.wait(SECONDS)
            self.running -= 1
        return to_json(message)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    slow = Slow()
    monkeypatch.setattr(gateway, "to_json", slow)
    yield slow
    slow.go_on.set()


async def test_others_are_answered_while_much_json_is_made(etcd: Faced, slow: Slow) -> None:
    await etcd.set(b"foo", bytes(2 * LARGE_BYTES))
    async with connected(etcd.address) as first, connected(etcd.address) as second:
        for http in (first, second):
            http.send("POST", "/v3/kv/range", ALL)
            http.send("GET", "/version")
        await etcd.until(lambda: slow.begun == 1)
        assert not slow.on_loop
        assert (await get(etcd.address, "/health")).status == 200
        assert (await post(etcd.address, "/v3/kv/put", '{"key":"YQ=="}')).status == 200
        slow.go_on.set()
        for http in (first, second):  # each in the order of its requests
            found = (await http.response()).json()["kvs"][-1]
            assert base64.b64decode(found["value"]) == bytes(2 * LARGE_BYTES)
            assert "etcdserver" in (await http.response()).json()
    assert (slow.begun, slow.most) == (2, 1)


async def test_a_body_in_very_many_chunks_is_taken_apart_over_turns(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, most = 0, 0
    take = connection.Connection._take
    ticking = asyncio.get_running_loop().call_soon(lambda: tick(0))

    def counted(one: connection.Connection, event: object) -> None:
        nonlocal taken
        taken += 1
        take(one, event)

    def tick(before: int) -> None:
        nonlocal most, ticking
        most = max(most, taken - before)
        ticking = asyncio.get_running_loop().call_soon(tick, taken)

    monkeypatch.setattr(connection.Connection, "_take", counted)
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.0)
    chunks = b"".join(b"1\r\n%c\r\n" % octet for octet in padded(ALL, 5_000).encode())
    async with connected(etcd.address) as http:
        for _ in range(2):
            http.send("POST", "/v3/kv/range", Transfer_Encoding="chunked")
            http.writer.write(chunks + b"0\r\n\r\n")
        assert [(await http.response()).status for _ in range(2)] == [200, 200]
        http.send("GET", "/version")
        assert (await http.response()).status == 200
    ticking.cancel()
    assert taken > 10_000
    assert most < 2 * connection.SMALL_READ // len(b"1\r\nx\r\n")


async def test_large_bodies_are_read_apart_and_refused_as_small_ones_are(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set()
    read = Reader.message

    def message(reader: Reader[Any]) -> Any:
        threads.add(threading.current_thread())
        return read(reader)

    monkeypatch.setattr(Reader, "message", message)
    for path, body in (
        ("/v3/kv/range", '{"key":"YQ==","key":"YQ=="}'),
        ("/v3/kv/range", '{"key":'),
        ("/v3/kv/range", '{"x":' + "[" * LARGE_BYTES),
        ("/v3/kv/range", "{}"),
        ("/v3/watch", '{"create_request":5}'),
        ("/v3/watch", "5 {}"),
        ("/v3/maintenance/snapshot", "[]"),
    ):
        small, large = await post(etcd.address, path, body), await post(etcd.address, path, padded(body))
        assert large.status == 400
        if len(body) < LARGE_BYTES and body != '{"key":':  # a place in what is no JSON counts from the text's beginning
            assert (small.status, small.json()) == (400, large.json())
    assert threading.current_thread() in threads, "small ones are read on the loop"
    threads.clear()
    compares = '{"compare":[' + "{}," * LARGE_BYTES + "{}]}"
    assert (await post(etcd.address, "/v3/kv/txn", compares)).status in (400, 429)
    assert threads
    assert threading.current_thread() not in threads


async def test_who_leaves_while_json_is_made_leaves_nothing(etcd: Faced, slow: Slow) -> None:
    await etcd.set(b"foo", bytes(2 * LARGE_BYTES))
    async with connected(etcd.address) as waiting:
        async with connected(etcd.address) as leaving:
            leaving.send("POST", "/v3/kv/range", ALL)
            await etcd.until(lambda: slow.begun == 1)
            async with connected(etcd.address) as queued:
                queued.send("POST", "/v3/kv/range", ALL)
            waiting.send("POST", "/v3/kv/range", ALL)
        [_] = await left(etcd, 1)
        assert (slow.begun, slow.running) == (1, 1), "what nobody waits for is still the only one"
        slow.go_on.set()
        assert (await waiting.response()).status == 200
    assert (slow.begun, slow.most) == (2, 1)
    await left(etcd, 0)
    assert etcd.api._gateway._held == 0


@pytest.mark.parametrize(("path", "body"), [("/v3/watch", WATCH), ("/v3/lock/lock", '{"name":"TA=="}')])
async def test_a_request_goes_with_its_client(etcd: Faced, path: str, body: str) -> None:
    """The collector had it, by and by: 300 puts of 1.4 MiB, each left amid it, kept 200 MiB."""
    assert (await post(etcd.address, "/v3/lock/lock", '{"name":"TA=="}')).status == 200
    await left(etcd, 0)
    gc.disable()
    try:
        async with connected(etcd.address) as http:
            http.send("POST", path, body)
            await etcd.until(lambda: bool(len(etcd.pump.hub(GROUP))))  # it waits for what others write
            [gone] = map(weakref.ref, await left(etcd, 1))
        await etcd.until(lambda: gone() is None)
    finally:
        gc.enable()


async def left(etcd: Faced, number: int) -> list[Any]:
    """The connections, once there are so many."""
    await etcd.until(lambda: len(etcd.api._gateway._connections) == number)
    return list(etcd.api._gateway._connections)


async def test_an_error_while_json_is_made_ends_the_connection_and_nothing_else(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await etcd.set(b"foo", bytes(2 * LARGE_BYTES))
    with monkeypatch.context() as patch:
        patch.setattr(gateway, "to_json", lambda _: 1 // 0)
        for key in ("Zm9v", "YmFy"):  # large, and small
            async with connected(etcd.address) as http:
                http.send("POST", "/v3/kv/range", f'{{"key":"{key}"}}')
                assert await cut(http)
    assert caplog.text.count("ZeroDivisionError") == 2
    assert (await post(etcd.address, "/v3/kv/range", ALL)).status == 200


async def cut(http: Http) -> bool:
    """Whether the server ends the connection without a word."""
    try:
        return await http.ended()
    except ConnectionResetError:
        return True


async def test_a_stop_does_not_wait_for_json(etcd: Faced, slow: Slow) -> None:
    await etcd.set(b"foo", bytes(2 * LARGE_BYTES))
    async with connected(etcd.address) as first, connected(etcd.address) as second:
        for http in (first, second):
            http.send("POST", "/v3/kv/range", ALL)
        await etcd.until(lambda: slow.begun == 1)
        await asyncio.wait_for(etcd.api.stop(0), SECONDS)
        assert (slow.begun, slow.running) == (1, 1)


async def test_a_body_of_many_messages_lets_others_have_turns(etcd: Faced) -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(others())
    kind, number = lease_pb2.LeaseKeepAliveRequest, 10 * BATCH
    async with aconnection(etcd) as one:
        requests = gateway._Requests(Reader(kind, '{"ID":1}' * number + "5{}"), etcd.api._gateway._worker, one)
        await requests.begin()
        turns = 0
        assert len([raw async for raw in requests]) == number
    assert turns >= number // BATCH - 1
    other.cancel()


@asynccontextmanager
async def aconnection(etcd: Faced) -> AsyncIterator[connection.Connection]:
    """The server's end of a connection."""
    async with connected(etcd.address) as http:
        http.send("GET", "/version")
        await http.response()
        [one] = etcd.api._gateway._connections
        yield one


async def test_an_answer_that_nobody_takes_counts_until_it_is_taken(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Ranges] = []
    take = Ranges._take

    def noted(ranges: Ranges, size: int, taken: int) -> None:
        seen.append(ranges)
        take(ranges, size, taken)

    monkeypatch.setattr(Ranges, "_take", noted)
    for number in range(16):
        await etcd.set(b"%d" % number, bytes(1 << 20))

    def holding() -> bool:
        unread = [one for one in etcd.api._gateway._connections if not one._writable.is_set()]
        return bool(unread) and seen[0].held >= 16 << 20

    for leaves in (False, True):
        async with connected(etcd.address) as http:
            http.writer.transport.pause_reading()  # type: ignore[attr-defined]
            http.send("POST", "/v3/kv/range", ALL)
            await etcd.until(holding)
            if not leaves:
                http.writer.transport.resume_reading()  # type: ignore[attr-defined]
                assert (await http.response()).json()["count"] == "16"
            else:
                http.writer.transport.abort()
        await etcd.until(lambda: seen[0].held == 0)
        await left(etcd, 0)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v3/watch", WATCH + " " * 3 * LARGE_BYTES),
        ("/v3/watch", padded(WATCH)),
        ("/v3/lock/lock", padded('{"name":"Zm9v"}')),
        ("/v3/election/observe", padded('{"name":"Zm9v"}')),
    ],
)
async def test_a_body_counts_until_it_is_read(etcd: Faced, path: str, body: str) -> None:
    held = await post(etcd.address, "/v3/lock/lock", '{"name":"Zm9v"}')
    assert held.status == 200
    async with connected(etcd.address) as http:
        http.send("POST", path, body)
        await left(etcd, 1)
        await etcd.until(lambda: any(one._task for one in etcd.api._gateway._connections))
        await etcd.until(lambda: etcd.api._gateway._held < 100)
        [one] = etcd.api._gateway._connections
        assert one._task is not None, "it goes on"
        assert not one._body
    await etcd.until(lambda: etcd.api._gateway._held == 0)


async def test_the_kernel_asks_after_clients_that_say_nothing(etcd: Faced) -> None:
    async with aconnection(etcd) as one:
        sock = one._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0
        for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, name):
                assert sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) == value


def test_transports_without_such_options_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    connection._keep_alive(None)
    one, other = socket.socketpair()
    connection._keep_alive(one)  # of Unix
    one.close()
    connection._keep_alive(one)
    other.close()
    for name in ("TCP_KEEPIDLE", "TCP_KEEPALIVE", "TCP_KEEPINTVL", "TCP_KEEPCNT"):
        monkeypatch.delattr(socket, name, raising=False)
    with socket.socket() as tcp:
        connection._keep_alive(tcp)
        assert tcp.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0


async def test_a_connection_too_many_is_told_so(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gateway, "MAX_CONNECTIONS", 1)
    monkeypatch.setattr(gateway, "MAX_TURNED_AWAY", 1)
    async with aconnection(etcd), connected(etcd.address) as second, connected(etcd.address) as third:
        second.send("POST", "/v3/kv/range", ALL)
        refused = await second.response()
        assert (refused.status, refused.body, refused.headers["connection"]) == (
            503,
            b"too many connections\n",
            "close",
        )
        third.send("GET", "/health")
        assert await cut(third), "those who are told so are bounded, too"
        assert await second.ended()
    assert [record.levelno for record in caplog.records if "as many as may be" in record.message] == [logging.WARNING]
    await left(etcd, 0)
    await etcd.until(lambda: not etcd.api._gateway._turned_away)
    assert (await get(etcd.address, "/health")).status == 200


def test_json_of_many_keys_is_what_it_was() -> None:
    response = pb.RangeResponse(count=3, more=True)
    for number in range(3):
        response.kvs.add(key=b"%d" % number, value=b"\xff" * number, mod_revision=number)
    said = json.loads(to_json(response))
    assert [kv.get("value", "") for kv in said["kvs"]] == ["", "/w==", "//8="]
    assert to_json(pb.RangeResponse(kvs=[pb.RangeResponse().kvs.add()])) == b'{"kvs":[{}]}'


@pytest.mark.parametrize("more", [b"", b"\r\n", b"G"])
async def test_who_leaves_is_noticed_whatever_came_behind_its_request(etcd: Faced, more: bytes) -> None:
    """A connection that is not read does not say that its client has gone: its watch, or place in line, would stay."""
    hub = etcd.pump.hub(GROUP)
    async with connected(etcd.address) as http:
        http.send("POST", "/v3/watch", WATCH)
        http.writer.write(more)
        await http.head()
        await http.chunk()
        assert len(hub) == 1
        http.writer.close()
        await etcd.until(lambda: not len(hub))
    body = '{"name":"TA=="}'
    assert (await post(etcd.address, "/v3/lock/lock", body)).status == 200
    async with connected(etcd.address) as http:
        http.send("POST", "/v3/lock/lock", body)
        http.writer.write(more)
        await etcd.until(lambda: len(etcd.api.face.lines) == 1)
        http.writer.close()
        await etcd.until(lambda: not etcd.api.face.lines)

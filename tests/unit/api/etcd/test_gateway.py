"""The JSON gateway on the client port: what it answers, and what it bears (etcd 59 to 61)."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest

from nebuladb.api.etcd.gateway import connection, gateway
from nebuladb.api.etcd.gateway.context import Context
from nebuladb.api.etcd.gateway.routes import PATHS
from nebuladb.api.etcd.requests import MAX_RECEIVED_BYTES
from nebuladb.ids import ETCD_GROUP
from nebuladb.rpc.engine import ENGINES, GRPCIO
from tests.unit.api.etcd.faced import Faced
from tests.unit.api.etcd.http import Http, connected, get, post
from tests.unit.node.lone import SECONDS

WATCH = '{"create_request":{"key":"Zm9v","start_revision":"1"}}'
PUT = '{"key":"Zm9v","value":"YmFy"}'


async def test_a_call_is_the_one_that_grpc_makes(etcd: Faced) -> None:
    response = await post(etcd.address, "/v3/kv/put", PUT)
    assert (response.status, response.headers["content-type"]) == (200, "application/json")
    assert response.headers["grpc-metadata-content-type"] == "application/grpc"
    assert response.headers["access-control-allow-origin"] == "*"
    header = response.json()["header"]
    assert header == {"cluster_id": "7", "member_id": "11", "revision": "2", "raft_term": header["raft_term"]}
    kv = {"key": "Zm9v", "create_revision": "2", "mod_revision": "2", "version": "1", "value": "YmFy"}
    for path in ("/v3/kv/range", "/v3beta/kv/range"):
        response = await post(etcd.address, path, '{"key":"Zm9v"}')
        assert response.json() == {"header": header, "kvs": [kv], "count": "1"}
    assert (await etcd.range(b"foo")).kvs[0].value == b"bar"


async def test_every_path_has_its_method(etcd: Faced) -> None:
    """None is answered as unknown; and all of etcd's are there."""
    assert len(PATHS) == 51
    for path, (service, method) in PATHS.items():
        if (service, method) == ("etcdserverpb.KV", "Txn"):
            continue
        async with connected(etcd.address) as http:
            http.send("POST", path, "[]")
            answer = await http.response()
            assert answer.status == 400, path
            assert answer.json()["code"] == 3, path


async def test_refusals_have_the_code_the_text_and_the_status(etcd: Faced) -> None:
    for path, body, status, code, text in (
        ("/v3/kv/range", "", 400, 3, "etcdserver: key is not provided"),
        ("/v3/kv/range", "{", 400, 3, None),
        ("/v3/kv/range", b"\xff", 400, 3, "proto: invalid UTF-8"),
        ("/v3/kv/range", '{"key":"Zm9v","revision":99}', 400, 11,
         "etcdserver: mvcc: required revision is a future revision"),
        ("/v3/lease/revoke", '{"ID":99}', 404, 5, "etcdserver: requested lease not found"),
        ("/v3/kv/nope", "{}", 404, 5, "Not Found"),
    ):  # fmt: skip
        response = await post(etcd.address, path, body)
        assert response.headers["content-type"] == "application/json"
        fields = response.json()
        assert (response.status, fields["code"]) == (status, code)
        assert fields["error"] == fields["message"] == (text or fields["message"])
    for method in ("GET", "PUT", "DELETE", "HEAD"):
        assert (await get(etcd.address, "/v3/kv/put", method)).status == 405
    assert (await get(etcd.address, "/v3/kv/put")).json()["code"] == 12
    options = await get(etcd.address, "/v3/kv/put", "OPTIONS")
    assert (options.status, options.body) == (200, b"")
    assert "POST" in options.headers["access-control-allow-methods"].upper()


async def test_the_pages(etcd: Faced) -> None:
    version = await get(etcd.address, "/version")
    assert version.body == b'{"etcdserver":"3.5.16","etcdcluster":"3.5.0"}'
    for path in ("/health", "/health?serializable=true", "/health?exclude=NOSPACE"):
        health = await get(etcd.address, path)
        assert (health.status, health.body) == (200, b'{"health":"true","reason":""}')
    assert (await get(etcd.address, "/livez")).body == (await get(etcd.address, "/readyz")).body == b"ok\n"
    verbose = await get(etcd.address, "/readyz?verbose")
    assert verbose.body == b"[+]data_corruption ok\n[+]linearizable_read ok\n[+]serializable_read ok\nok\n"
    for path in ("/livez/serializable_read", "/readyz/serializable_read", "/readyz/linearizable_read"):
        assert (await get(etcd.address, path)).body == b"ok\n"
    assert (await get(etcd.address, "/livez/linearizable_read")).status == 404
    for path in ("/version", "/health", "/readyz", "/readyz/data_corruption"):
        for method in ("POST", "HEAD"):
            refused = await get(etcd.address, path, method)
            assert (refused.status, refused.headers["allow"]) == (405, "get")
    for path in ("/", "/metrics", "/v2/keys", "/v3alpha/kv/range", "/v3beta"):
        nothing = await get(etcd.address, path)
        assert (nothing.status, nothing.body) == (404, b"404 page not found\n")


async def test_another_way_to_write_a_path_leads_to_it(etcd: Faced) -> None:
    for path, where in (
        ("//v3/kv/range", "/v3/kv/range"),
        ("/v3//kv/./x/../range/?a=%zz", "/v3/kv/range/?a=%zz"),
        ("/v3", "/v3/"),
        ("/../version", "/version"),
        ("//elsewhere/%0d%0ax:%20y", "/elsewhere/%0d%0ax:%20y"),
    ):
        for method in ("GET", "POST", "HEAD"):
            moved = await get(etcd.address, path, method)
            assert (moved.status, moved.headers["location"], moved.body) == (301, where, b"")


async def test_health_tells_of_alarms(etcd: Faced) -> None:
    for alarm in ("NOSPACE", "CORRUPT"):
        raised = await post(etcd.address, "/v3/maintenance/alarm", f'{{"action":"ACTIVATE","alarm":"{alarm}"}}')
        assert raised.json()["alarms"] == [{"alarm": alarm}]
        health = await get(etcd.address, "/health")
        assert (health.status, health.body) == (503, f'{{"health":"false","reason":"ALARM {alarm}"}}\n'.encode())
        assert (await get(etcd.address, f"/health?exclude={alarm}")).status == 200
        ready = await get(etcd.address, "/readyz")
        assert ready.status == (503 if alarm == "CORRUPT" else 200)
        assert (await get(etcd.address, "/livez")).status == 200
        assert (await get(etcd.address, "/readyz?exclude=data_corruption")).status == 200
        assert (await get(etcd.address, "/readyz/data_corruption")).status == ready.status
        assert (await get(etcd.address, "/readyz/serializable_read")).status == 200
        await post(etcd.address, "/v3/maintenance/alarm", f'{{"action":"DEACTIVATE","alarm":"{alarm}"}}')
    assert (await get(etcd.address, "/health")).status == 200


async def test_a_stream_is_one_message_a_chunk(etcd: Faced) -> None:
    async with connected(etcd.address) as http:
        http.send("POST", "/v3/watch", WATCH)
        head = await http.head()
        assert (head.status, head.headers["transfer-encoding"]) == (200, "chunked")
        created = await http.chunk()
        assert created.endswith(b"}\n")
        assert json.loads(created)["result"]["created"] is True
        for number in range(3):
            await etcd.set(b"foo", b"%d" % number)
            event = json.loads(await http.chunk())["result"]["events"][0]
            assert base64.b64decode(event["kv"]["value"]) == b"%d" % number
            assert "type" not in event, "PUT is zero"


async def test_who_leaves_ends_its_stream(etcd: Faced) -> None:
    hub = etcd.pump.hub(ETCD_GROUP)
    async with connected(etcd.address) as http:
        http.send("POST", "/v3/watch", WATCH)
        await http.head()
        await http.chunk()
        assert len(hub) == 1
    await etcd.until(lambda: len(hub) == 0)


async def test_a_body_of_several_messages_and_their_end(etcd: Faced) -> None:
    await post(etcd.address, "/v3/lease/grant", '{"TTL":60,"ID":5}')
    kept = await post(etcd.address, "/v3/lease/keepalive", '{"ID":5} {"ID":"99"} {')
    ids = [(line["result"]["ID"], line["result"].get("TTL")) for line in map(json.loads, kept.body.splitlines())]
    assert ids == [("5", "60"), ("99", None)]
    nothing = await post(etcd.address, "/v3/lease/keepalive", "")
    assert (nothing.status, nothing.body) == (200, b"")
    refused = await post(etcd.address, "/v3/watch", '{"create_request":5}')
    assert (refused.status, refused.json()["code"]) == (400, 3)


async def test_deadlines(etcd: Faced) -> None:
    late = await post(etcd.address, "/v3/watch", WATCH, grpc_timeout="50m")
    first, last = map(json.loads, late.body.splitlines())
    assert first["result"]["created"]
    assert last["error"] == {
        "grpc_code": 4,
        "http_code": 504,
        "message": "context deadline exceeded",
        "http_status": "Gateway Timeout",
        "code": 4,
    }
    refused = await post(etcd.address, "/v3/kv/range", PUT, grpc_timeout="x")
    assert (refused.status, refused.json()["message"]) == (400, "invalid grpc-timeout: x")
    now = await post(etcd.address, "/v3/kv/put", PUT, grpc_timeout="1n")
    assert (now.status, now.json()["code"]) == (504, 4)
    never = await post(etcd.address, "/v3/kv/put", PUT, grpc_timeout="0m")
    assert never.status == 200


async def test_metadata_comes_with_headers(etcd: Faced) -> None:
    refused = await post(etcd.address, "/v3/kv/range", PUT, grpc_metadata_nebula_keyspace="other")
    assert refused.status == 404
    assert "'other'" in refused.json()["message"]
    headers = [(b"Authorization", b"t"), (b"Grpc-Metadata-HasLeader", b"true"), (b"Accept", b"*/*")]
    metadata = Context(headers, "").invocation_metadata()
    assert metadata == (("authorization", "t"), ("token", "t"), ("hasleader", "true"))


async def test_a_connection_is_kept_and_requests_may_queue(etcd: Faced) -> None:
    async with connected(etcd.address) as http:
        for _ in range(5):
            http.send("POST", "/v3/kv/put", PUT)
        http.send("GET", "/version")
        revisions = [(await http.response()).json()["header"]["revision"] for _ in range(5)]
        assert revisions == ["2", "3", "4", "5", "6"]
        assert (await http.response()).status == 200
        http.writer.write(b"POST /v3/kv/put HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")
        assert (await http.response()).status == 400
        assert await http.ended()


async def test_how_the_bytes_are_cut_makes_no_difference(etcd: Faced) -> None:
    request = f"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nContent-Length: {len(PUT)}\r\n\r\n{PUT}".encode()
    stream = request + b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n" + request
    answers = []
    for size in (1, 2, 7, 64, len(stream)):
        async with connected(etcd.address) as http:
            for start in range(0, len(stream), size):
                http.writer.write(stream[start : start + size])
                await http.writer.drain()
                await asyncio.sleep(0)
            answers.append([((one := await http.response()).status, one.body) for _ in range(3)])
    assert answers == [answers[0]] * len(answers)
    assert [status for status, _ in answers[0]] == [200, 200, 200]


async def test_a_client_that_asks_first_is_told_to_go_on(etcd: Faced) -> None:
    async with connected(etcd.address) as http:
        http.writer.write(b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 29\r\nExpect: 100-continue\r\n\r\n")
        assert (await http.head()).status == 100
        http.writer.write(PUT.encode())
        assert (await http.response()).status == 200


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 4194305\r\n\r\n", 413),
        (b"POST /v3/kv/put HTTP/1.1\r\nhost: x\r\ncontent-length: 4194305\r\n\r\n", 413),
        (b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"100000\r\n" + bytes(1 << 20)
         + (b"\r\n100000\r\n" + bytes(1 << 20)) * 4, 413),
        (b"POST /" + b"x" * 40_000, 431),
        (b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /version%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"POST /v3/kv/put% HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", 400),
    ],
    ids=["announced", "in small letters", "chunked", "head", "length", "no host", "escape", "half an escape"],
)  # fmt: skip
@pytest.mark.parametrize("kept", [False, True])
async def test_what_is_too_large_or_no_request_costs_the_connection(
    etcd: Faced, data: bytes, status: int, kept: bool
) -> None:
    async with connected(etcd.address) as http:
        if kept:  # the answer to an earlier request has been sent on it
            http.send("GET", "/version")
            assert (await http.response()).status == 200
        http.writer.write(data)
        response = await http.response()
        assert (response.status, response.headers["connection"]) == (status, "close")
        assert await http.ended()
    assert (await post(etcd.address, "/v3/kv/put", PUT)).status == 200
    await etcd.until(lambda: etcd.api._gateway._held == 0)


async def test_what_is_too_large_for_a_message_is_refused_as_grpc_does(etcd: Faced) -> None:
    def body(size: int) -> str:
        return f'{{"key":"Zm9v","value":"{base64.b64encode(bytes(size)).decode()}"}}'

    response = await post(etcd.address, "/v3/kv/put", body(1_600_000))
    assert (response.status, response.json()["message"]) == (400, "etcdserver: request is too large")
    response = await post(etcd.address, "/v3/kv/put", body(MAX_RECEIVED_BYTES))
    assert response.status == 429
    assert response.json()["message"].startswith("grpc: received message larger than max (")


async def test_bodies_of_all_connections_are_bounded_together(etcd: Faced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "MAX_HELD_BYTES", 1_000_000)
    head = b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n"
    async with connected(etcd.address) as first:
        first.writer.write(head + b" " * 800_000)
        await etcd.until(lambda: etcd.api._gateway._held == 800_000)
        async with connected(etcd.address) as second:
            second.writer.write(head + b" " * 400_000)
            assert (await second.response()).status == 503
            assert await second.ended()
        assert (await post(etcd.address, "/v3/kv/put", PUT)).status == 200
        first.writer.write(b" " * 99_998 + b"{}")
        assert (await first.response()).json()["message"] == "etcdserver: key is not provided"
    await etcd.until(lambda: etcd.api._gateway._held == 0)


async def test_times_are_bounded(etcd: Faced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "REQUEST_SECONDS", 0.05)
    async with connected(etcd.address) as http:
        http.writer.write(b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 29\r\n\r\n{")
        assert await http.ended()
    monkeypatch.setattr(connection, "IDLE_SECONDS", 0.05)
    async with connected(etcd.address) as http:
        http.send("GET", "/version")
        await http.response()
        assert await http.ended()


async def test_a_client_that_does_not_read_is_given_up(etcd: Faced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HELD_SECONDS", 0.05)
    hub = etcd.pump.hub(ETCD_GROUP)
    async with connected(etcd.address) as http:
        http.writer.transport.pause_reading()  # type: ignore[attr-defined]
        http.send("POST", "/v3/watch", WATCH)
        await etcd.until(lambda: len(hub) == 1)
        for _ in range(16):
            await etcd.set(b"foo", bytes(1 << 20))
        await etcd.until(lambda: len(hub) == 0)


async def test_a_stop_ends_idle_connections_and_cuts_streams(etcd: Faced) -> None:
    async with connected(etcd.address) as idle, connected(etcd.address) as busy:
        idle.send("GET", "/version")
        await idle.response()
        busy.send("POST", "/v3/watch", WATCH)
        await busy.head()
        await busy.chunk()
        await asyncio.wait_for(etcd.api.stop(0.05), SECONDS)
        assert await idle.ended()
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await busy.chunk()


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[connection.Connection]:
    """The connection of each request that was answered."""
    done: list[connection.Connection] = []
    next_one = connection.Connection._answered

    def counted(self: connection.Connection) -> None:
        next_one(self)
        done.append(self)

    monkeypatch.setattr(connection.Connection, "_answered", counted)
    return done


async def fill(etcd: Faced, http: Http, answered: list[connection.Connection]) -> None:
    """Ask, and take nothing, until the transport holds a part of an answer, but none waits for it."""
    await etcd.set(b"foo", bytes(24 << 10))
    http.writer.transport.pause_reading()  # type: ignore[attr-defined]
    while not (answered and answered[0]._transport.get_write_buffer_size()):
        before = len(answered)
        http.send("POST", "/v3/kv/range", '{"key":"Zm9v"}')
        await etcd.until(lambda: len(answered) > before)  # noqa: B023


async def test_a_stop_waits_for_clients_that_take_their_answers(
    etcd: Faced, answered: list[connection.Connection]
) -> None:
    """What a transport still held of an answer was thrown away, and its client was left with a part of it."""
    async with connected(etcd.address) as http:
        await fill(etcd, http, answered)
        stopping = asyncio.create_task(etcd.api.stop(SECONDS))
        await etcd.until(lambda: etcd.api._gateway.stopping)
        http.writer.transport.resume_reading()  # type: ignore[attr-defined]
        bodies = [(await http.response()).body for _ in answered]
        assert set(map(len, bodies)) == {len(bodies[0])}
        assert await http.ended()
        await asyncio.wait_for(stopping, SECONDS)


async def test_who_takes_nothing_of_its_last_answer_is_given_up(
    etcd: Faced, answered: list[connection.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It kept one of the gateway's connections for as long as it liked."""
    async with connected(etcd.address) as http:
        await fill(etcd, http, answered)
        monkeypatch.setattr(connection, "IDLE_SECONDS", 0.05)
        http.send("GET", "/version", Connection="close")
        await etcd.until(lambda: not etcd.api._gateway._connections)


async def test_who_says_no_more_and_takes_nothing_is_given_up(
    etcd: Faced, answered: list[connection.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its watch stayed for as long as it liked."""
    hub = etcd.pump.hub(ETCD_GROUP)
    async with connected(etcd.address) as http:
        await fill(etcd, http, answered)
        monkeypatch.setattr(connection, "IDLE_SECONDS", 0.05)
        http.send("POST", "/v3/watch", '{"create_request":{"key":"eA=="}}')
        await etcd.until(lambda: len(hub) == 1)
        http.writer.write_eof()
        await etcd.until(lambda: len(hub) == 0 and not etcd.api._gateway._connections)


async def test_with_grpcios_engine_there_is_no_gateway() -> None:
    etcd = Faced()
    await asyncio.wait_for(etcd.open(ENGINES[GRPCIO]), SECONDS)
    try:
        async with connected(etcd.address) as http:
            http.send("GET", "/version")
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await http.response()
    finally:
        await etcd.close()

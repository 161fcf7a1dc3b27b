"""Lines 59 to 62: the JSON gateway."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from nebuladb.rpc.engine import GRPCIO, engine_of
from tests.etcd.client import SECONDS, Client

Json = dict[str, Any]
pytestmark = pytest.mark.skipif(engine_of().name == GRPCIO, reason="that engine gives no connection to a gateway")


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@contextmanager
def asked(client: Client, method: str, path: str, body: bytes | None) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection(client.endpoint, timeout=SECONDS)
    try:
        connection.request(method, path, body)
        yield connection.getresponse()
    finally:
        connection.close()


def post(client: Client, path: str, body: Json | bytes) -> tuple[int, Json]:
    """Status and answer."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with asked(client, "POST", path, raw) as response:
        answer: Json = json.loads(response.read())
        return response.status, answer


def get(client: Client, path: str) -> tuple[int, Json]:
    with asked(client, "GET", path, None) as response:
        answer: Json = json.loads(response.read())
        return response.status, answer


@pytest.mark.etcd(59)
def test_forms_of_fields(client: Client, place: bytes) -> None:
    key = b64(place)
    status, put = post(client, "/v3/kv/put", {"key": key, "value": b64(b"\0\xff"), "prev_kv": True})
    assert status == 200
    assert set(put) == {"header"}, "there was nothing before, and zeros are left out"
    assert set(put["header"]) == {"cluster_id", "member_id", "revision", "raft_term"}
    assert all(isinstance(value, str) and value.isdigit() for value in put["header"].values())
    revision = put["header"]["revision"]
    for number in (revision, int(revision)):
        status, found = post(client, "/v3/kv/range", {"key": key, "revision": number})
        assert (status, found["count"], "more" in found) == (200, "1", False)
        assert found["kvs"] == [
            {"key": key, "create_revision": revision, "mod_revision": revision, "version": "1", "value": b64(b"\0\xff")}
        ]
    for name in ("keys_only", "keysOnly"):
        assert "value" not in post(client, "/v3/kv/range", {"key": key, name: True})[1]["kvs"][0]
    end = b64(place[:-1] + b"0")
    client.put(place + b"x")
    snake, camel = ("range_end", "sort_order", "sort_target"), ("rangeEnd", "sortOrder", "sortTarget")
    first = [
        post(client, "/v3/kv/range", {"key": key, until: end, sort: order, target: by, "limit": limit})[1]["kvs"][0]
        for until, sort, target in (snake, camel)
        for order in ("DESCEND", 2)
        for by in ("CREATE", 2)
        for limit in (1, "1")
    ]
    assert {found["key"] for found in first} == {b64(place + b"x")}
    status, gone = post(client, "/v3/kv/deleterange", {"key": key, "range_end": end})
    assert (status, gone["deleted"]) == (200, "2")


@pytest.mark.etcd(60)
def test_errors(client: Client) -> None:
    future = "etcdserver: mvcc: required revision is a future revision"
    status, error = post(client, "/v3/kv/range", {"key": b64(b"k"), "revision": 1 << 60})
    assert (status, error["code"], error["message"]) == (400, 11, future)
    assert error.get("details", []) == []
    status, error = post(client, "/v3/lease/revoke", {"ID": 12345678})
    assert (status, error["code"], error["message"]) == (404, 5, "etcdserver: requested lease not found")
    status, error = post(client, "/v3/kv/put", b"{")
    assert (status, error["code"]) == (400, 3)
    status, error = post(client, "/v3/kv/nothing", {})
    assert (status, error["code"]) == (404, 5)
    status, error = get(client, "/v3/kv/range")
    assert status in {405, 501}


@pytest.mark.etcd(60)
def test_errors_name_their_text_twice(nebula: Client) -> None:
    # As etcd's own binaries do; Debian's are built with a later gateway, which leaves `error` out.
    status, error = post(nebula, "/v3/lease/revoke", {"ID": 12345678})
    assert (status, error["error"], error["message"]) == (404, *["etcdserver: requested lease not found"] * 2)


def chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The chunks of a body as they were sent: etcd3gw parses each alone."""
    assert response.getheader("Transfer-Encoding") == "chunked"
    stream = response.fp
    while size := int(stream.readline(), 16):
        yield stream.read(size)
        assert stream.readline() == b"\r\n"


@pytest.mark.etcd(60, 62)
def test_a_watch_is_a_message_a_chunk(client: Client, place: bytes) -> None:
    revision = client.put(place, b"1").header.revision
    create = {"create_request": {"key": b64(place), "start_revision": str(revision)}}
    with asked(client, "POST", "/v3/watch", json.dumps(create).encode()) as response:
        came = chunks(response)
        created = json.loads(next(came))["result"]
        assert created["created"] is True
        assert "watch_id" not in created, "zero is left out"
        past = json.loads(next(came))["result"]
        assert past["events"][0]["kv"]["value"] == b64(b"1")
        assert "type" not in past["events"][0], "PUT is zero"
        last = client.delete(place).header.revision
        gone = json.loads(next(came))["result"]["events"][0]
        assert gone == {"type": "DELETE", "kv": {"key": b64(place), "mod_revision": str(last)}}


@pytest.mark.etcd(60)
def test_a_keep_alive_is_a_stream(client: Client) -> None:
    lease = client.grant(60).ID
    status, kept = post(client, "/v3/lease/keepalive", {"ID": str(lease)})
    assert (status, kept["result"]["ID"], kept["result"]["TTL"]) == (200, str(lease), "60")
    client.revoke(lease)
    status, gone = post(client, "/v3/lease/keepalive", {"ID": lease})
    assert (status, gone["result"]["ID"], "TTL" in gone["result"]) == (200, str(lease), False)


@pytest.mark.etcd(61)
def test_version_health_and_aliases(client: Client, place: bytes) -> None:
    status, version = get(client, "/version")
    assert status == 200
    assert all(part.isdigit() for value in version.values() for part in value.split("."))
    assert {"etcdserver", "etcdcluster"} <= set(version)
    status, health = get(client, "/health")
    assert (status, health["health"]) == (200, "true")
    status, granted = post(client, "/v3/lease/grant", {"TTL": "600"})
    lease = granted["ID"]
    client.put(place, lease=int(lease))
    for path in ("/v3/kv/lease/timetolive", "/v3/lease/timetolive"):
        status, left = post(client, path, {"ID": lease, "keys": True})
        assert (status, left["grantedTTL"], left["keys"]) == (200, "600", [b64(place)])
    for path in ("/v3/kv/lease/leases", "/v3/lease/leases"):
        assert {"ID": lease} in post(client, path, {})[1]["leases"]
    assert post(client, "/v3/kv/lease/revoke", {"ID": lease})[0] == 200
    assert client.get(place) is None


@pytest.mark.etcd(61)
def test_the_prefix_of_old_clients(nebula: Client, place: bytes) -> None:
    # etcd dropped it with 3.4 or 3.5; clients that ask for no version still use it.
    assert post(nebula, "/v3beta/kv/put", {"key": b64(place)})[0] == 200
    assert post(nebula, "/v3beta/kv/range", {"key": b64(place)})[1]["count"] == "1"


@pytest.mark.etcd(62)
def test_what_patroni_says(client: Client, place: bytes) -> None:
    """Its ways to take and to keep the leader's key, as patroni.dcs.etcd3 writes them."""
    key, name, other = b64(place), b64(b"one"), b64(b"two")
    absent = {"key": key, "target": "CREATE", "create_revision": "0"}
    put = {"request_put": {"key": key, "value": name}}
    first = {"compare": [absent], "success": [put], "failure": []}
    status, taken = post(client, "/v3/kv/txn", first)
    assert (status, taken["succeeded"]) == (200, True)
    assert "succeeded" not in post(client, "/v3/kv/txn", first)[1]
    mine = {"key": key, "target": "VALUE", "value": name}
    nested = {"request_txn": {"compare": [absent], "success": [put]}}
    keep = {"compare": [mine], "success": [put], "failure": [nested]}
    assert post(client, "/v3/kv/txn", keep)[1]["succeeded"] is True
    client.put(place, b"two")
    lost = post(client, "/v3/kv/txn", keep)[1]
    assert "succeeded" not in lost
    assert "succeeded" not in lost["responses"][0]["response_txn"]
    client.delete(place)
    again = post(client, "/v3/kv/txn", keep)[1]
    assert "succeeded" not in again
    assert again["responses"][0]["response_txn"]["succeeded"] is True
    assert other

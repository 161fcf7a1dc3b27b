"""The JSON gateway beside a real etcd's: the same requests, and the same answers but for ids, terms and indices."""

from __future__ import annotations

import base64
import http.client
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.etcd.servers import ETCD, Nebula, RealEtcd

SECONDS = 10.0
needs_etcd = pytest.mark.skipif(ETCD is None, reason="etcd isn't installed here (Debian: etcd-server)")

OWN = {
    "cluster_id", "member_id", "raft_term", "raftTerm", "raftIndex", "raftAppliedIndex", "leader", "hash",
    "hash_revision", "peerURLs", "clientURLs", "name",
}  # fmt: skip
"""What differs from one server to another."""


class Pair(NamedTuple):
    ours: str
    theirs: str


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory: Path = tmp_path_factory.mktemp("gateway")
    with Nebula(directory / "ours", 1) as ours, RealEtcd(directory / "theirs") as theirs:
        yield Pair(ours.endpoints[0], theirs.endpoints[0])


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def ask(endpoint: str, method: str, path: str, body: str | None = None, **headers: str) -> Answer:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection(endpoint, timeout=SECONDS)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, response.read())
    finally:
        connection.close()


def normal(value: Any, key: str = "") -> Any:
    """A body without what is a server's own. Of an error the code and the text, without the place of a mistake in it,
    and with a plain blank: the second generation of etcd's gateway says `proto:` with another one in every build, so
    that nobody relies on the text, and leaves `error` out."""
    if key in OWN:
        return "…"
    if isinstance(value, list):
        items = [normal(inner, key) for inner in value]
        return sorted(items, key=repr) if key == "members" else items
    if not isinstance(value, dict):
        return value
    if "message" in value:
        text = re.sub(r"\(line \d+:\d+\): ", "", value["message"].replace("\xa0", " "))
        return {"code": value.get("code", value.get("grpc_code")), "message": text}
    left_out = {"ID"} if key.startswith("member") else {"dbSize", "dbSizeInUse"}
    return {name: normal(inner, name) for name, inner in value.items() if name not in left_out}


def both(pair: Pair, method: str, path: str, body: str | None = None, **headers: str) -> tuple[Any, Any]:
    """(status, body) of ours, and of theirs."""
    answers = [ask(endpoint, method, path, body, **headers) for endpoint in pair]
    found = []
    for answer in answers:
        kind = answer.headers.get("content-type", "")
        lines = answer.body.splitlines() if kind == "application/json" else [answer.body]
        bodies = [normal(json.loads(line)) for line in lines] if kind == "application/json" else lines
        own = {name: answer.headers.get(name) for name in ("access-control-allow-origin", "allow", "location")}
        found.append((answer.status, kind, own, bodies))
    return found[0], found[1]


KEY, VALUE, OTHER = b64(b"key"), b64(b"value"), b64(b"\xfb\xff")
TXN = (
    f'{{"compare":[{{"key":"{KEY}","target":"CREATE","result":"EQUAL","create_revision":"0"}}],'
    f'"success":[{{"request_put":{{"key":"{KEY}"}}}}],"failure":[{{"requestRange":{{"key":"{KEY}"}}}}]}}'
)
CALLS: tuple[tuple[str, str], ...] = (
    ("kv/put", f'{{"key":"{KEY}","value":"{VALUE}"}}'),
    ("kv/put", f'{{"key":"{KEY}","value":"{OTHER}","prev_kv":true}}'),
    ("kv/put", f'{{"key":"{KEY}","value":"-_8","prevKv":true}}'),
    ("kv/put", f'{{"key":"{OTHER}","lease":"99"}}'),
    ("kv/put", "{}"),
    ("kv/put", ""),
    ("kv/range", f'{{"key":"{KEY}"}}'),
    ("kv/range", f'{{"key":"{KEY}","revision":2}}'),
    ("kv/range", f'{{"key":"{KEY}","revision":"99"}}'),
    ("kv/range", f'{{"key":"{KEY}","nobody":{{"knows":1}}}}'),
    ("kv/range", f'{{"key":"{KEY}","limit":null}}'),
    ("kv/range", f'{{"key":"{KEY}","limit":1.0}}'),
    ("kv/range", f'{{"key":"{KEY}","limit":"1e1"}}'),
    ("kv/range", f'{{"key":"{KEY}","limit":1.5}}'),
    ("kv/range", f'{{"key":"{KEY}","limit":"x"}}'),
    ("kv/range", f'{{"key":"{KEY}","limit":9223372036854775808}}'),
    ("kv/range", f'{{"key":"{KEY}","serializable":"true"}}'),
    ("kv/range", f'{{"key":"{KEY}","serializable":1}}'),
    ("kv/range", '{"key":5}'),
    ("kv/range", f'{{"key":"{KEY}","key":"{KEY}"}}'),
    ("kv/range", f'{{"key":null,"k\\u0065y":"{KEY}"}}'),
    ("kv/range", f'{{"key":"{KEY}","range_end":"{OTHER}","rangeEnd":null}}'),
    ("kv/range", f'{{"key":"{KEY}","nobody":1,"nobody":2}}'),
    ("kv/range", f'{{"key":"{KEY}","limit":"01"}}'),
    ("kv/range", f'{{"key":"{KEY}","limit":"+1"}}'),
    ("kv/range", f'{{"key":"{KEY}","limit":-0.0}}'),
    ("kv/range", f'{{"key":"{KEY}","limit":1e19}}'),
    ("kv/range", f'{{"key":"{KEY}","limit":0.05e1}}'),
    ("kv/range", f'{{"key":"{KEY}","revision":9.223372036854775807e18}}'),
    ("kv/range", '{"range_end":[1]}'),
    *(("kv/range", f'{{"key":"{wrong}"}}') for wrong in ("YQ=", "YR==", "YWJj=", "==", "Y", "-/8=", "YQ==YQ==")),
    *(("kv/range", f'{{"key":"{lines}"}}') for lines in (r"Zm\n9v", r"YQ=\n=\r\n\n", r"YQ==\n", r"YQ\n\n")),
    ("kv/txn", '{"compare":[],"compare":[]}'),
    ("kv/txn", '{"compare":[null]}'),
    ("kv/txn", '{"compare":[{"version":1,"lease":"x"}]}'),
    ("kv/txn", f'{{"success":[{{"requestPut":{{}},"request_put":{{"key":"{KEY}"}}}}]}}'),
    ("kv/txn", f'{{"success":[{{"requestRange":null,"request_range":{{"key":"{KEY}"}}}}]}}'),
    ("kv/txn", '{"success":[{"requestPut":{},"request_txn":5}]}'),
    ("kv/range", f'{{"key":"{KEY}"}} x'),
    ("kv/range", '{"key":"AA==","rangeEnd":"AA==","sortOrder":"DESCEND","sort_target":1}'),
    ("kv/range", '{"key":"AA==","range_end":"AA==","count_only":true}'),
    ("kv/range", '{"key":"AA==","range_end":"AA==","keys_only":true,"limit":"1"}'),
    ("kv/txn", TXN),
    ("kv/txn", f'{{"success":[{{"request_txn":{{"success":[{{"request_put":{{"key":"{KEY}"}}}}]}}}}]}}'),
    ("kv/txn", f'{{"success":[{{"request_put":{{"key":"{KEY}"}}}},{{"request_put":{{"key":"{KEY}"}}}}]}}'),
    ("kv/txn", "{}"),
    ("kv/deleterange", f'{{"key":"{OTHER}","prev_kv":true}}'),
    ("kv/deleterange", f'{{"key":"{KEY}","prev_kv":true}}'),
    ("kv/compaction", '{"revision":"3"}'),
    ("kv/compaction", '{"revision":"3"}'),
    ("kv/compaction", '{"revision":"999"}'),
    ("kv/range", f'{{"key":"{KEY}","revision":2}}'),
    ("lease/grant", '{"TTL":600,"ID":5}'),
    ("lease/grant", '{"TTL":"600","ID":"5"}'),
    ("lease/grant", '{"TTL":"9999999999999"}'),
    ("kv/put", f'{{"key":"{KEY}","lease":"5"}}'),
    ("lease/keepalive", '{"ID":"5"}'),
    ("lease/keepalive", '{"ID":5}{"ID":77} {'),
    ("lease/leases", "{}"),
    ("kv/lease/leases", "{}"),
    ("lease/timetolive", '{"ID":99}'),
    ("kv/lease/timetolive", '{"ID":"99","keys":true}'),
    ("lease/revoke", '{"ID":99}'),
    ("kv/lease/revoke", '{"ID":5}'),
    ("cluster/member/list", "{}"),
    ("cluster/member/list", '{"linearizable":true}'),
    ("cluster/member/add", "{}"),
    ("cluster/member/add", '{"peerURLs":["x"]}'),
    ("cluster/member/add", '{"peerURLs":["http://10.0.0.1"]}'),
    ("cluster/member/remove", '{"ID":9}'),
    ("cluster/member/update", '{"ID":9,"peerURLs":["http://127.0.0.1:1"]}'),
    ("cluster/member/promote", '{"ID":9}'),
    ("cluster/member/add", '{"peerURLs":["http://127.0.0.1:9"],"isLearner":true}'),
    ("cluster/member/add", '{"peerURLs":["http://127.0.0.1:8"],"isLearner":true}'),
    ("maintenance/status", "{}"),
    ("maintenance/alarm", "{}"),
    ("maintenance/alarm", '{"action":"ACTIVATE","alarm":"NOSPACE","memberID":"7"}'),
    ("maintenance/alarm", '{"action":0,"alarm":2}'),
    ("maintenance/alarm", '{"action":"GET","alarm":"NOSPACE"}'),
    ("maintenance/status", "{}"),
    ("kv/put", f'{{"key":"{KEY}"}}'),
    ("kv/deleterange", f'{{"key":"{KEY}"}}'),
    ("lease/grant", '{"TTL":60,"ID":6}'),
    ("maintenance/alarm", '{"action":"DEACTIVATE","alarm":"NOSPACE","memberID":"8"}'),
    ("maintenance/alarm", '{"action":"DEACTIVATE","alarm":"NOSPACE","memberID":"7"}'),
    ("maintenance/alarm", '{"action":"ACTIVATE","alarm":"CORRUPT","memberID":"7"}'),
    ("kv/put", f'{{"key":"{KEY}"}}'),
    ("kv/deleterange", f'{{"key":"{KEY}"}}'),
    ("kv/range", f'{{"key":"{KEY}"}}'),
    ("kv/compaction", '{"revision":"4"}'),
    ("lease/grant", '{"TTL":60,"ID":6}'),
    ("maintenance/alarm", '{"action":"DEACTIVATE","alarm":"CORRUPT","memberID":"7"}'),
    ("maintenance/alarm", '{"action":"ACTIVATE","memberID":"7"}'),
    ("maintenance/hash", "{}"),
    ("maintenance/defragment", "{}"),
    ("maintenance/transfer-leadership", '{"targetID":"1"}'),
    ("maintenance/downgrade", "{}"),
    ("maintenance/downgrade", '{"version":"x"}'),
    ("maintenance/downgrade", '{"action":"CANCEL"}'),
    ("maintenance/downgrade", '{"action":"ENABLE","version":"3.5.0"}'),
    ("maintenance/downgrade", '{"action":77}'),
    ("lock/lock", f'{{"name":"{KEY}","lease":"99"}}'),
    ("lock/unlock", f'{{"key":"{KEY}"}}'),
    ("election/leader", f'{{"name":"{OTHER}"}}'),
    ("election/proclaim", "{}"),
    ("election/resign", "{}"),
    ("auth/status", "{}"),
    ("auth/enable", "{}"),
    ("auth/disable", "{}"),
    ("auth/authenticate", '{"name":"a","password":"b"}'),
    ("auth/user/add", "{}"),
    ("auth/user/get", '{"name":"a"}'),
    ("auth/user/list", "{}"),
    ("auth/user/delete", '{"name":"a"}'),
    ("auth/user/changepw", '{"name":"a","password":"b"}'),
    ("auth/user/grant", '{"user":"a","role":"b"}'),
    ("auth/user/revoke", '{"name":"a","role":"b"}'),
    ("auth/role/add", "{}"),
    ("auth/role/get", '{"role":"a"}'),
    ("auth/role/list", "{}"),
    ("auth/role/delete", '{"role":"a"}'),
    ("auth/role/grant", '{"name":"a"}'),
    ("auth/role/grant", '{"name":"a","perm":{"key":"AA==","permType":"READWRITE"}}'),
    ("auth/role/revoke", '{"role":"a","key":"AA=="}'),
    ("kv/nope", "{}"),
    ("nope", "{}"),
)  # fmt: skip
"""In order: later ones see what earlier ones did."""

PAGES: tuple[tuple[str, str], ...] = (
    ("GET", "/version"), ("GET", "/health"), ("GET", "/health?serializable=true"), ("GET", "/health?exclude=NOSPACE"),
    ("POST", "/version"), ("POST", "/health"), ("HEAD", "/version"), ("HEAD", "/health"), ("OPTIONS", "/version"),
    ("GET", "/livez"), ("GET", "/livez?verbose"), ("GET", "/readyz"), ("GET", "/readyz?verbose"),
    ("GET", "/livez?exclude=serializable_read&verbose"), ("GET", "/readyz?exclude=linearizable_read&verbose"),
    ("GET", "/readyz?exclude=linearizable_read&exclude=data_corruption&verbose=1"), ("GET", "/readyz?exclude=&verbose"),
    ("GET", "/readyz?exclude=nothing&verbose"), ("GET", "/readyz?allowlist=data_corruption&verbose"),
    ("GET", "/livez/serializable_read"), ("GET", "/livez/serializable_read?verbose"), ("GET", "/livez/nothing"),
    ("GET", "/readyz/data_corruption"), ("GET", "/readyz/linearizable_read?verbose"), ("GET", "/readyz/"),
    ("GET", "/readyz/serializable_read?exclude=serializable_read&verbose"), ("GET", "/livez/linearizable_read"),
    ("POST", "/readyz/data_corruption"), ("HEAD", "/livez/serializable_read"),
    ("GET", "http://elsewhere/version"), ("POST", "HTTP://elsewhere:1/version"),
    *(("POST", path) for path in (
        "//v3/kv/range", "/v3/kv//range/?a=b&c", "/v3/./kv/x/../range", "/v3", "/v3beta", "/..", "///", "/version/.",
        "/v3/%2e%2e/x%20y", "/v3//kv%2Frange/%25", "http://elsewhere//version", "/version//", "/v3beta/../v3//",
    )),
    ("GET", "/"), ("GET", "/nope"), ("GET", "/v3alpha/kv/range"), ("POST", "/v2/keys"), ("OPTIONS", "/v3/kv/put"),
)  # fmt: skip


@needs_etcd
@pytest.mark.etcd(59, 60)
def test_the_same_requests_have_the_same_answers(pair: Pair) -> None:
    different = []
    for path, body in CALLS:
        ours, theirs = both(pair, "POST", f"/v3/{path}", body)
        if ours != theirs:
            different.append(f"{path} {body}\n  ours   {ours}\n  theirs {theirs}")
    assert not different, "\n".join(different)


@needs_etcd
@pytest.mark.etcd(61)
def test_the_same_pages(pair: Pair) -> None:
    different = []
    for method, path in PAGES:
        ours, theirs = both(pair, method, path)
        if "verbose" in path:  # etcd's checks come in any order
            ours, theirs = ((*one[:3], sorted(b"".join(one[3]).splitlines())) for one in (ours, theirs))
        if ours != theirs:
            different.append(f"{method} {path}\n  ours   {ours}\n  theirs {theirs}")
    assert not different, "\n".join(different)


@needs_etcd
@pytest.mark.etcd(60)
def test_the_same_streams(pair: Pair) -> None:
    """Ended by a deadline: one message a line, and the same events; the last one says why."""
    watched = b64(b"watched")
    for endpoint in pair:
        for value in (b"1", b"2"):
            ask(endpoint, "POST", "/v3/kv/put", f'{{"key":"{watched}","value":"{b64(value)}"}}')
        ask(endpoint, "POST", "/v3/kv/deleterange", f'{{"key":"{watched}"}}')
    revisions = [
        int(json.loads(ask(endpoint, "POST", "/v3/kv/range", f'{{"key":"{watched}"}}').body)["header"]["revision"])
        for endpoint in pair
    ]
    assert revisions[0] == revisions[1]
    for body in (
        f'{{"create_request":{{"key":"{watched}","start_revision":"{revisions[0] - 2}","prev_kv":true}}}}',
        f'{{"createRequest":{{"key":"{watched}","filters":["NODELETE"],"startRevision":{revisions[0] - 2}}}}}',
        f'{{"create_request":{{"key":"{watched}","start_revision":1}}}}',
        f'{{"create_request":{{"key":"{watched}","range_end":"{KEY}"}}}}',
        f'{{"create_request":{{"key":"{watched}","watch_id":7}}}}{{"cancel_request":{{"watch_id":7}}}}',
    ):
        ours, theirs = both(pair, "POST", "/v3/watch", body, Grpc_Timeout="700m")
        assert ours == theirs, body
        assert ours[3][-1]["error"]["code"] == 4


@needs_etcd
@pytest.mark.parametrize("timeout", ["0S", "000m", "5S", "x", "S", "5"])
def test_the_same_deadlines(pair: Pair, timeout: str) -> None:
    """One of no time is none."""
    ours, theirs = both(pair, "POST", "/v3/kv/range", '{"key":"AAAA"}', Grpc_Timeout=timeout)
    for status, *_, bodies in (ours, theirs):
        assert status in (200, 400)
        bodies[0].pop("header", None)
    assert ours == theirs


@needs_etcd
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
def test_another_method_than_post(pair: Pair, method: str) -> None:
    """The generations of etcd's gateway have another status for it; neither calls anything."""
    ours, theirs = both(pair, method, "/v3/kv/put")
    assert (ours[0], theirs[0]) in ((405, 501), (405, 405))
    assert [body["code"] for body in ours[3]] in ([12], [])


@needs_etcd
@pytest.mark.parametrize("size", [1_600_000, 2_200_000])
def test_bodies_that_are_too_large(pair: Pair, size: int) -> None:
    """For the database, and for gRPC."""
    ours, theirs = both(pair, "POST", "/v3/kv/put", json.dumps({"key": KEY, "value": b64(bytes(size))}))
    assert ours == theirs

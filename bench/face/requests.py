"""Requests whose bytes are made once, before the clock runs: of etcd's v3 API, and the same of ``nebula.v1``."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from bench.rpc_load import headers
from nebuladb.pb.etcd import kv_pb2 as etcd
from nebuladb.pb.nebula.v1 import kv_pb2 as v1
from nebuladb.rpc.framing import PREFIX_BYTES, frame
from nebuladb.rpc.http2 import Fields

KEYS: Final = 100_000
VALUE_BYTES: Final = 256
KEYSPACE: Final = "etcd"
"""Where the etcd face puts what it is given; ``nebula.v1`` is asked for the same."""
READS_OF_TEN: Final = 8
"""In the mix."""
PUT: Final = headers("/etcdserverpb.KV/Put")
RANGE: Final = headers("/etcdserverpb.KV/Range")
TXN: Final = headers("/etcdserverpb.KV/Txn")
V1_PUT: Final = headers("/nebula.v1.KV/Put")
V1_GET: Final = headers("/nebula.v1.KV/Get")


class Request(NamedTuple):
    """One call, and how its answer is told from a wrong one."""

    headers: Fields
    body: bytes
    """Framed."""
    tail: bytes
    """What the answer must end with: the value of a read, hence the right key's. A write's answer names no key."""
    proof: Callable[[bytes, int], bool]
    """Reads an answer whole: (its body, the key's number) → whether it is right. For a sample of the answers."""
    number: int
    """The key's."""


def key(number: int) -> bytes:
    """Of twelve bytes."""
    return b"key-%08d" % number


def value(number: int) -> bytes:
    """Each key has its own, so that a read that answers with another key's is seen."""
    return (b"%08d" % number) * (VALUE_BYTES // 8)


def _is_put(body: bytes, number: int) -> bool:
    return etcd.PutResponse.FromString(body[PREFIX_BYTES:]).header.revision > 1


def _is_range(body: bytes, number: int) -> bool:
    answer = etcd.RangeResponse.FromString(body[PREFIX_BYTES:])
    return answer.count == 1 and (answer.kvs[0].key, answer.kvs[0].value) == (key(number), value(number))


def _is_txn(body: bytes, number: int) -> bool:
    answer = etcd.TxnResponse.FromString(body[PREFIX_BYTES:])
    return answer.succeeded and answer.responses[0].WhichOneof("response") == "response_put"


def _is_v1_put(body: bytes, number: int) -> bool:
    return v1.PutResponse.FromString(body[PREFIX_BYTES:]).header.revision > 1


def _is_v1_get(body: bytes, number: int) -> bool:
    found = v1.GetResponse.FromString(body[PREFIX_BYTES:]).kv
    return (found.key, found.value) == (key(number), value(number))


def put(number: int) -> Request:
    """Set the key to its value."""
    message = etcd.PutRequest(key=key(number), value=value(number))
    return Request(PUT, frame(message.SerializeToString()), b"", _is_put, number)


def get(number: int, *, serializable: bool = False) -> Request:
    """Read the key."""
    message = etcd.RangeRequest(key=key(number), serializable=serializable)
    # The value is a key's last field that isn't zero, and the count, 1, the answer's.
    return Request(RANGE, frame(message.SerializeToString()), value(number) + b"\x20\x01", _is_range, number)


def txn(number: int) -> Request:
    """Put if the key exists, as it does."""
    exists = etcd.Compare(result=etcd.Compare.GREATER, target=etcd.Compare.VERSION, key=key(number), version=0)
    operation = etcd.RequestOp(request_put=etcd.PutRequest(key=key(number), value=value(number)))
    message = etcd.TxnRequest(compare=[exists], success=[operation])
    return Request(TXN, frame(message.SerializeToString()), b"", _is_txn, number)


def v1_put(number: int) -> Request:
    """Set the key, by ``nebula.v1``."""
    message = v1.PutRequest(keyspace=KEYSPACE, key=key(number), value=value(number))
    return Request(V1_PUT, frame(message.SerializeToString()), b"", _is_v1_put, number)


def v1_get(number: int) -> Request:
    """Read the key, by ``nebula.v1``."""
    message = v1.GetRequest(keyspace=KEYSPACE, key=key(number))
    return Request(V1_GET, frame(message.SerializeToString()), value(number), _is_v1_get, number)


def _mix(numbers: Sequence[int], rng: random.Random) -> list[Request]:
    return [get(number) if rng.random() * 10 < READS_OF_TEN else put(number) for number in numbers]


PLANS: Final[dict[str, Callable[[Sequence[int], random.Random], list[Request]]]] = {
    "put": lambda numbers, rng: [put(number) for number in numbers],
    "range": lambda numbers, rng: [get(number) for number in numbers],
    "serializable": lambda numbers, rng: [get(number, serializable=True) for number in numbers],
    "mix": _mix,
    "txn": lambda numbers, rng: [txn(number) for number in numbers],
    "v1_put": lambda numbers, rng: [v1_put(number) for number in numbers],
    "v1_get": lambda numbers, rng: [v1_get(number) for number in numbers],
}
"""Workload → its calls on these keys."""


def plan(workload: str, count: int, keys: int, seed: int) -> list[Request]:
    """`count` calls on random keys; the same for the same seed."""
    rng = random.Random(seed)
    return PLANS[workload](rng.choices(range(keys), k=count), rng)


def load(keys: int) -> list[Request]:
    """A put of every key."""
    return PLANS["put"](range(keys), random.Random(0))

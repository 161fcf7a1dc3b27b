"""Ours with one answer spoilt, for the test of the differential test.

``python -m tests.etcd.diff.mutant NAME COMMAND…``: COMMAND is how `nebulad` would be started; its interpreter and
``-m`` are dropped, and its main runs here.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

from google.protobuf.message import Message

from nebuladb.api.etcd import kv
from nebuladb.pb.etcd import kv_pb2 as pb
from nebuladb.server.main import main


def wrong_more(response: Any) -> None:
    """`more`, though the limit cut nothing."""
    response.more = response.more or response.count > 2


def wrong_count(response: Any) -> None:
    """`count` of what is returned (etcd 7)."""
    if response.kvs:
        response.count = len(response.kvs)


def wrong_version(response: Any) -> None:
    """The version of a key that was created again."""
    if response.HasField("prev_kv") and response.prev_kv.version > 2:
        response.prev_kv.version -= 1


MUTANTS: Final[dict[str, tuple[str, type[Message], Callable[[Any], None]]]] = {
    "more": ("Range", pb.RangeResponse, wrong_more),
    "count": ("Range", pb.RangeResponse, wrong_count),
    "version": ("Put", pb.PutResponse, wrong_version),
}


def spoil(name: str) -> None:
    """Put a mutant into the class of the service."""
    method, answer, change = MUTANTS[name]
    right: Callable[[kv.KVService, bytes, Any], Awaitable[bytes]] = getattr(kv.KVService, method)

    async def wrong(self: kv.KVService, raw: bytes, context: Any) -> bytes:
        response = answer.FromString(await right(self, raw, context))
        change(response)
        return response.SerializeToString()

    setattr(kv.KVService, method, wrong)


if __name__ == "__main__":
    spoil(sys.argv[1])
    sys.argv = ["nebulad", *sys.argv[5:]]  # after: the name, python, -m, the module
    main()

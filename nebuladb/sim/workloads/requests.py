"""Bodies of the transactions that workloads send."""

from __future__ import annotations

from collections.abc import Mapping

from nebuladb.kv.command import Command, Kind
from nebuladb.pb.nebula.v1 import kv_pb2


def put(key: bytes, value: bytes) -> Command:
    """A put."""
    return Command(Kind.PUT, kv_pb2.PutRequest(key=key, value=value).SerializeToString())


def put_if(revisions: Mapping[bytes, int], puts: Mapping[bytes, bytes]) -> Command:
    """Put all of `puts` if each of these keys was changed last at its revision (0: does not exist)."""
    request = kv_pb2.TxnRequest()
    for key, revision in revisions.items():
        request.compare.add(target=kv_pb2.Compare.MOD, key=key, number=revision)
    for key, value in puts.items():
        request.success.add(put=kv_pb2.TxnPut(key=key, value=value))
    return Command(Kind.TXN, request.SerializeToString())


def put_if_value(key: bytes, old: bytes | None, new: bytes) -> Command:
    """Compare-and-set by value; `old` None: if the key does not exist."""
    request = kv_pb2.TxnRequest()
    if old is None:
        request.compare.add(target=kv_pb2.Compare.VERSION, key=key, number=0)
    else:
        request.compare.add(target=kv_pb2.Compare.VALUE, key=key, value=old)
    request.success.add(put=kv_pb2.TxnPut(key=key, value=new))
    return Command(Kind.TXN, request.SerializeToString())


def delete_range(key: bytes, end: bytes) -> Command:
    """Delete [key, end)."""
    return Command(Kind.DELETE, kv_pb2.DeleteRequest(key=key, range_end=end).SerializeToString())


def compact(revision: int) -> Command:
    """Forget what was superseded at or before `revision`."""
    return Command(Kind.COMPACT, kv_pb2.CompactRequest(revision=revision).SerializeToString())

"""Which rows the next commands will read that are on the disk only, so that one fetch brings them all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from google.protobuf.message import DecodeError

from nebuladb.kv.command import Command, Kind
from nebuladb.kv.rows import is_lease_id
from nebuladb.kv.source import EngineSource
from nebuladb.pb.nebula.v1 import kv_pb2, lease_pb2

LOOK_AHEAD: Final = 4096
"""Commands looked at when one has missed."""
MAX_ROWS: Final = 1024
"""Rows asked for at once."""


def rows_ahead(source: EngineSource, commands: Iterable[Command]) -> list[bytes]:
    """Point look-ups only: what a range holds is known when it is read. A guess: a wrong one costs a fetch."""
    rows: dict[bytes, None] = {}
    for count, command in enumerate(commands):
        if count == LOOK_AHEAD or len(rows) >= MAX_ROWS:
            break
        try:
            for key in _keys(command):
                if not source.holds(key) and source.misses(row := source.keys.current + key):
                    rows[row] = None
            for lease in _leases(command):
                if is_lease_id(lease) and source.misses(row := source.keys.lease_key(lease)):
                    rows[row] = None
        except DecodeError:
            continue  # the command will be refused for it
    return list(rows)


def _keys(command: Command) -> Iterator[bytes]:
    """Keys whose newest records the command reads."""
    if command.kind == Kind.PUT:
        yield kv_pb2.PutRequest.FromString(command.body).key
    elif command.kind == Kind.DELETE:
        delete = kv_pb2.DeleteRequest.FromString(command.body)
        if not delete.range_end:
            yield delete.key
    elif command.kind == Kind.TXN:
        txn = kv_pb2.TxnRequest.FromString(command.body)
        for compare in txn.compare:
            if not compare.range_end:
                yield compare.key
        for operation in (*txn.success, *txn.failure):
            which = operation.WhichOneof("operation")
            if which == "put":
                yield operation.put.key
            elif which == "delete" and not operation.delete.range_end:
                yield operation.delete.key
            elif which == "range" and not operation.range.range_end:
                yield operation.range.key


def _leases(command: Command) -> Iterator[int]:
    """Leases whose rows it reads; 0 is none."""
    if command.kind == Kind.PUT:
        yield kv_pb2.PutRequest.FromString(command.body).lease
    elif command.kind == Kind.LEASE_KEEP_ALIVE:
        yield lease_pb2.LeaseKeepAliveRequest.FromString(command.body).id
    elif command.kind == Kind.TXN:
        txn = kv_pb2.TxnRequest.FromString(command.body)
        for operation in (*txn.success, *txn.failure):
            yield operation.put.lease

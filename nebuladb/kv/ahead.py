"""Which rows the next commands will read that are on the disk only, so that one fetch brings them all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from google.protobuf.message import DecodeError

from nebuladb.errors import NebulaError
from nebuladb.kv import check
from nebuladb.kv.branches import Branches
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.loans import FIRST_ROWS, Misses
from nebuladb.kv.rows import is_lease_id
from nebuladb.kv.source import EngineSource
from nebuladb.pb.nebula.v1 import kv_pb2, lease_pb2

LOOK_AHEAD: Final = 1024
"""Commands looked at when one has missed: two slices of puts. Each is decoded and looked up, some 4 us."""


def rows_ahead(source: EngineSource, commands: Iterable[Command], most: int, missed: bytes) -> list[bytes]:
    """Point look-ups only, about `most`: what a range holds is known when it is read. A guess: a wrong one costs a
    fetch.

    Only those that follow `missed`, the row that the first command lacks; none if it is no such look-up. What comes
    before it and isn't here belongs to a branch that isn't taken. All that is fetched is held until that command is
    done: if it misses a hundred rows one by one, it may not bring others' along each time.
    """
    rows: dict[bytes, None] = {}
    for count, command in enumerate(commands):
        if count == LOOK_AHEAD or len(rows) >= most:
            break
        try:
            _miss(source, _reads(command), most, rows)
        except (DecodeError, NebulaError):
            continue  # the command will be refused for it
    return _behind(missed, rows)


def foreseen(source: EngineSource, branches: Branches, misses: Misses) -> Misses:
    """What a transaction missed, with what it will miss next: one by one, each would be met only when the ones before
    it are here."""
    rows: dict[bytes, None] = {}
    _miss(source, _of_txn(branches), FIRST_ROWS, rows)
    return Misses(list(dict.fromkeys((*misses.rows, *_behind(misses.rows[0], rows)))))


def _miss(source: EngineSource, reads: Iterable[tuple[bytes, int]], most: int, rows: dict[bytes, None]) -> None:
    """Add to `rows`, about `most` in all, what `reads` look up and isn't in memory."""
    for key, lease in reads:
        if len(rows) >= most:
            break
        if key and not source.holds(key) and source.misses(row := source.keys.current + key):
            rows[row] = None
        if is_lease_id(lease) and source.misses(row := source.keys.lease_key(lease)):
            rows[row] = None


def _behind(missed: bytes, rows: dict[bytes, None]) -> list[bytes]:
    """From `missed` on; nothing if that isn't among them."""
    found = list(rows)
    return found[found.index(missed) :] if missed in rows else []


def _reads(command: Command) -> Iterator[tuple[bytes, int]]:
    """Keys whose newest records the command reads, and leases whose rows; empty and 0 are none."""
    if command.kind == Kind.PUT:
        put = kv_pb2.PutRequest.FromString(command.body)
        yield put.key, put.lease
    elif command.kind == Kind.DELETE:
        delete = kv_pb2.DeleteRequest.FromString(command.body)
        if not delete.range_end:
            yield delete.key, 0
    elif command.kind == Kind.LEASE_KEEP_ALIVE:
        yield b"", lease_pb2.LeaseKeepAliveRequest.FromString(command.body).id
    elif command.kind == Kind.TXN:
        yield from _of_txn(check.txn(kv_pb2.TxnRequest.FromString(command.body)))


def _of_txn(txn: Branches) -> Iterator[tuple[bytes, int]]:
    """Of both branches, whichever it will be, and of the transactions within."""
    for compare in txn.compares:
        if not compare.range_end:
            yield compare.key, 0
    for which, asked in (*txn.success, *txn.failure):
        if which == "txn":
            yield from _of_txn(asked)
        elif which == "put":
            yield asked.key, asked.lease
        elif not asked.range_end:
            yield asked.key, 0

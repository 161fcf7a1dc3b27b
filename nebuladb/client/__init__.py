"""The SDK: NebulaDB from Python.

    async with AsyncClient(["127.0.0.1:7379", "127.0.0.1:7479"]) as client:
        await client.put(b"k", b"v")
        async with client.session() as session:       # exactly-once, whatever dies meanwhile
            await session.put(b"k", b"w")

`Client` is the same without ``async``: every call waits.

What a caller owes it: any one living node among the endpoints, one process and one event loop (`Client` has its own),
and ``close``, or ``with``; after that, and elsewhere, a client raises `ClientClosed`.

What it raises: only `nebuladb.errors`. Of a failed call a caller may conclude from ``error.outcome``: FAILED, it
changed nothing; UNKNOWN, it may have taken effect or still may. A deadline or a lost connection after a write had been
sent is `UnknownOutcome`, never "failed" (S19).

What it retries, until `timeout`: reads, always; a write only if it certainly changed nothing and may succeed later; a
write of a session always, under its first sequence number, so that it happens once (S20). gRPC's own retries are
switched off.

What it won't do: cache values, or hide that a scan over several shards is not one instant (S25).

Inside: ``retry`` decides and never waits; ``endpoints`` chooses the node; ``transport`` is the thin driver that sends;
``scan`` and ``watch`` know how to go on after a break; ``items`` is what a caller reads of them; ``requests`` is the
one place where arguments become a message, ``errors`` the one where a status becomes an exception.
"""

from nebuladb.client.aio import AsyncClient
from nebuladb.client.items import Items, SyncItems
from nebuladb.client.lease import LeaseKeeper
from nebuladb.client.lock import Lock
from nebuladb.client.scan import Rows, SyncRows
from nebuladb.client.session import Session
from nebuladb.client.sync import Client, SyncWrites
from nebuladb.client.txn import SyncTxn, Txn
from nebuladb.client.types import (
    BatchResult,
    CasResult,
    DeleteResult,
    Event,
    EventType,
    KeyValue,
    LeaseInfo,
    PutResult,
    RangeResult,
    StateHash,
    TxnResult,
    prefix_end,
)

__all__ = [
    "AsyncClient",
    "BatchResult",
    "CasResult",
    "Client",
    "DeleteResult",
    "Event",
    "EventType",
    "Items",
    "KeyValue",
    "LeaseInfo",
    "LeaseKeeper",
    "Lock",
    "PutResult",
    "RangeResult",
    "Rows",
    "Session",
    "StateHash",
    "SyncItems",
    "SyncRows",
    "SyncTxn",
    "SyncWrites",
    "Txn",
    "TxnResult",
    "prefix_end",
]

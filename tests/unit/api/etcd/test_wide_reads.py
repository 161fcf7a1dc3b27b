"""Transactions that read ranges, many at once: the loop comes round between them."""

from __future__ import annotations

import asyncio

import pytest

from nebuladb.api import kv
from nebuladb.kv.store import Store
from nebuladb.pb.etcd import kv_pb2 as pb
from tests.unit.api.etcd.faced import Faced


async def test_transactions_that_read_ranges_do_not_share_a_turn(etcd: Faced, monkeypatch: pytest.MonkeyPatch) -> None:
    await etcd.set(b"k")
    monkeypatch.setattr(kv, "BUSY_SECONDS", 0.0)
    turn, reads = 0, []
    loop = asyncio.get_running_loop()

    def count() -> None:
        nonlocal turn
        turn += 1
        loop.call_soon(count)

    count()
    read = Store.read

    def noted(store: Store, request: object) -> object:
        reads.append(turn)
        return read(store, request)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "read", noted)
    request = pb.TxnRequest()
    request.success.add().request_range.CopyFrom(pb.RangeRequest(key=b"a", range_end=b"z"))
    await asyncio.gather(*(etcd.call("Txn", request) for _ in range(10)))
    assert len(set(reads)) == 10

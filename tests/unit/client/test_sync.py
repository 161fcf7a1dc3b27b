from __future__ import annotations

import pytest

from nebuladb import errors
from nebuladb.client import Client
from tests.unit.client.fake import LOST, Fault, Node


def test_the_synchronous_client(nodes: list[Node]) -> None:
    a, b, _ = nodes
    with Client([a.address, b.address]) as client:
        client.put(b"k", b"v")
        found = client.get(b"k")
        assert found is not None
        assert found.value == b"v"
        assert client.compare_and_set(b"k", b"w", expected=b"v").succeeded
        assert client.commit(client.txn().when("version", b"k", "=", 2).put(b"l", b"x")).succeeded
        a.break_scan_after = 1
        assert [row.key for row in client.scan()] == [b"k", b"l"]
        events = client.watch(b"k", start_revision=2)
        assert [next(events).kv.value, next(events).kv.value] == [b"v", b"w"]
        events.close()  # type: ignore[attr-defined]
        lease = client.grant_lease(10)
        client.revoke_lease(lease.id)
        assert client.delete(b"k").deleted == 1
        with pytest.raises(errors.InvalidArgument):
            client.put(b"", b"")
        a.faults.append(Fault("Put", LOST, after=True))
        with client.session() as session:
            session.put(b"k", b"once")
    assert a.store.executed.count("put") == 3  # the refused one too

"""cslab-etcd3, the kept-up fork of python-etcd3: threads and gRPC."""

from __future__ import annotations

import io
import sys
import threading

import etcd3


def keys(client: etcd3.MultiEndpointEtcd3Client) -> None:
    """Puts, gets, ranges, deletes, replacements."""
    client.put("etcd3/a", "1")
    assert client.get("etcd3/a")[0] == b"1"
    assert client.put_if_not_exists("etcd3/b", "2")
    assert not client.put_if_not_exists("etcd3/b", "3")
    assert client.replace("etcd3/a", "1", "4")
    assert not client.replace("etcd3/a", "1", "5")
    whole = [(value, meta.key) for value, meta in client.get_prefix("etcd3/", sort_order="descend")]
    assert whole == [(b"2", b"etcd3/b"), (b"4", b"etcd3/a")]
    assert client.delete("etcd3/a")
    assert client.get("etcd3/a") == (None, None)
    assert client.delete_prefix("etcd3/").deleted == 1


def transactions(client: etcd3.MultiEndpointEtcd3Client) -> None:
    """Nested."""
    tx = client.transactions
    held, responses = client.transaction(
        compare=[tx.version("etcd3/t") == 0],
        success=[
            tx.put("etcd3/t", "1"),
            tx.txn(compare=[tx.version("etcd3/t") == 0], success=[tx.get("etcd3/t")], failure=[]),
        ],
        failure=[],
    )
    assert held
    inner = responses[1].response_txn
    assert inner.succeeded
    assert inner.responses[0].response_range.kvs[0].value == b"1"
    client.delete("etcd3/t")


def watches(client: etcd3.MultiEndpointEtcd3Client) -> None:
    """An iterator, and a callback."""
    events, cancel = client.watch_prefix("etcd3/w")
    called = threading.Event()
    watch_id = client.add_watch_callback("etcd3/w1", lambda _: called.set())
    client.put("etcd3/w1", "1")
    client.delete("etcd3/w1")
    came = [type(next(events)).__name__ for _ in range(2)]
    cancel()
    client.cancel_watch(watch_id)
    assert came == ["PutEvent", "DeleteEvent"]
    assert called.wait(10)


def leases_and_locks(client: etcd3.MultiEndpointEtcd3Client) -> None:
    """A lease's life; a lock that two want."""
    lease = client.lease(60)
    client.put("etcd3/l", "1", lease=lease)
    assert [answer.TTL for answer in lease.refresh()] == [60]
    assert lease.granted_ttl == 60
    assert 0 < lease.remaining_ttl <= 60
    assert lease.keys == [b"etcd3/l"]
    lease.revoke()
    assert client.get("etcd3/l") == (None, None)
    with client.lock("etcd3", ttl=30) as lock:
        assert lock.is_acquired()
        assert not client.lock("etcd3", ttl=30).acquire(timeout=0.2)
    assert client.lock("etcd3", ttl=30).acquire(timeout=10)


def upkeep(client: etcd3.MultiEndpointEtcd3Client) -> None:
    """Status, members, compaction, alarms, a snapshot."""
    members = list(client.members)
    assert len(members) == 3
    assert all(member.name and member.client_urls and member.peer_urls for member in members)
    assert client.status().leader.id in {member.id for member in members}
    client.put("etcd3/c", "1")
    client.compact(client.get_response("etcd3/c").header.revision, physical=True)
    client.hash()
    client.defragment()
    assert list(client.list_alarms()) == []
    file = io.BytesIO()
    client.snapshot(file)
    assert len(file.getvalue()) > 32


def main() -> None:
    """All of it."""
    endpoints = [
        etcd3.Endpoint(host=host, port=int(port), secure=False)
        for host, _, port in (endpoint.rpartition(":") for endpoint in sys.argv[1].split(","))
    ]
    with etcd3.MultiEndpointEtcd3Client(endpoints=endpoints, timeout=20) as client:
        for part in (keys, transactions, watches, leases_and_locks, upkeep):
            part(client)


if __name__ == "__main__":
    main()

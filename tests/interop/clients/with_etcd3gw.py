"""etcd3gw: the JSON gateway."""

from __future__ import annotations

import sys
import threading

import etcd3gw
from etcd3gw.lock import Lock


def keys(client: etcd3gw.Etcd3Client) -> None:
    """Puts, gets, ranges, deletes."""
    assert client.put("gw/a", "1")
    assert client.get("gw/a") == [b"1"]
    assert client.create("gw/b", "2")
    assert not client.create("gw/b", "3")
    assert client.replace("gw/a", "1", "4")
    assert not client.replace("gw/a", "1", "5")
    whole = client.get_prefix("gw/", sort_order="descend", sort_target="key")
    assert [(value, meta["key"]) for value, meta in whole] == [(b"2", b"gw/b"), (b"4", b"gw/a")]
    assert client.delete("gw/a")
    assert client.get("gw/a") == []
    assert client.delete_prefix("gw/")


def leases_and_locks(client: etcd3gw.Etcd3Client) -> None:
    """A lease's life; a lock that two want."""
    lease = client.lease(60)
    client.put("gw/l", "1", lease=lease)
    assert 0 < lease.ttl() <= 60
    assert lease.refresh() == 60
    assert lease.keys() == [b"gw/l"]
    assert lease.revoke()
    assert client.get("gw/l") == []
    with Lock("gw", ttl=30, client=client) as lock:
        assert lock.is_acquired()
        assert not Lock("gw", ttl=30, client=client).acquire()


def watches(client: etcd3gw.Etcd3Client) -> None:
    """A stream, whose chunks it parses one by one."""
    events, cancel = client.watch_prefix("gw/w")
    writer = threading.Thread(target=lambda: (client.put("gw/w1", "1"), client.delete("gw/w1")))
    writer.start()
    first, second = next(events), next(events)
    writer.join()
    cancel()
    assert first["kv"]["value"] == b"1"
    assert second["type"] == "DELETE"


def upkeep(client: etcd3gw.Etcd3Client) -> None:
    """Status and members."""
    status = client.status()
    members = client.members()
    assert len(members) == 3
    assert status["leader"] in {member["ID"] for member in members}


def main() -> None:
    """All of it."""
    host, _, port = sys.argv[1].split(",")[0].rpartition(":")
    client = etcd3gw.client(host=host, port=int(port), timeout=20)
    for part in (keys, leases_and_locks, watches, upkeep):
        part(client)


if __name__ == "__main__":
    main()

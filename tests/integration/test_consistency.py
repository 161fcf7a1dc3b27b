"""One node's data is altered on its disk: the others find it in the background, and say which node it is (S28)."""

from __future__ import annotations

from pathlib import Path

from nebuladb.client import Client
from nebuladb.ids import DEFAULT_GROUP, Generation, GroupId
from nebuladb.kv.rows import Keys
from nebuladb.storage.engine import Batch
from nebuladb.storage.rocks import RocksEngine
from tests.integration.cluster import Cluster

ALTERED = 1


def alter(directory: Path, key: bytes) -> None:
    """Change the last byte of a value, with a checksum that is right."""
    engine = RocksEngine.open_data(directory / "data")
    row = Keys(GroupId(DEFAULT_GROUP), Generation(1)).current + key
    record = engine.get(row)
    assert record is not None
    batch = Batch()
    batch.put(row, record[:-1] + b"!")
    engine.write(batch)
    engine.flush()
    engine.close()


def test_altered_data_is_found_and_its_node_is_named(tmp_path: Path) -> None:
    with Cluster(tmp_path, environ={"NEBULA_CONSISTENCY_CHECK_INTERVAL": "1s"}) as cluster:
        cluster.start()
        cluster.wait_ready()
        with Client(cluster.endpoints) as client:
            client.put(b"k", b"value")
        assert cluster.stop(ALTERED) == [0]
        alter(cluster.data_dir(ALTERED), b"k")
        cluster.start(ALTERED)
        cluster.wait_ready(ALTERED)

        def named() -> bool:
            with Client(cluster.endpoints) as client:
                client.put(b"other", b"so that there is something to check")
            alarms = [alarm for node in cluster.all for alarm in (cluster.status(node) or {"alarms": []})["alarms"]]
            return sum("shard 2" in alarm and "the data on n2 differs" in alarm for alarm in alarms) == 3

        cluster.wait_for(named, "every node names n2")
        assert 'nebula_alarms{kind="inconsistent"} 1.0' in cluster.admin(0, "/metrics")[1]

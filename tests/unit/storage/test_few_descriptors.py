"""A process that may have few files open holds a database of many tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LIMIT = 64
PROGRAM = """
import random, resource, sys
from pathlib import Path
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
from nebuladb.storage.engine import Batch
from nebuladb.storage.rocks import RocksEngine
path, rng = Path(sys.argv[2]), random.Random(1)
engine = RocksEngine.open_data(path, memtable_bytes=64 << 10, patient=True)
for number in range(200):
    batch = Batch()
    for row in range(32):
        batch.put(b"%04d/%02d" % (number, row), rng.randbytes(2048))
    engine.write(batch)
    engine.flush()
print(sum(1 for _ in engine.scan(b"", b"9")), len(list(path.glob("*.sst"))))
engine.close()
"""


def test_a_store_of_more_tables_than_descriptors_is_written_and_read(tmp_path: Path) -> None:
    """They were all held open, up to 512: a flush found none left, and the node stopped."""
    command = [sys.executable, "-c", PROGRAM, str(LIMIT), str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows, tables = map(int, done.stdout.split())
    assert rows == 200 * 32
    assert tables > LIMIT

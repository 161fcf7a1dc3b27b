"""The demo on a small tree: it passes, and it fails if one value in one node's data is another."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from nebuladb.ids import DEFAULT_GROUP, Generation
from nebuladb.kv.rows import Keys, decode_record
from nebuladb.storage.engine import Batch
from nebuladb.storage.rocks import RocksEngine
from tools import demo
from tools.demo import Demo
from tools.devcluster import Failure
from tools.tree import differences, manifest

FILES = 2000
"""Few enough for a test; enough that on a quick machine, too, the leader is found in time to die in the middle."""
VALUE = b"the demo compares every byte of this"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Small files, one of several chunks, an empty one, one whose name is not text, and what must be left out."""
    rng = random.Random(1)
    root = tmp_path / "tree"
    for number in range(FILES):
        place = root / f"d{number % 7}" / f"f{number}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(rng.randbytes(rng.randrange(1, 20_000)))
    (root / "large").write_bytes(rng.randbytes(2_500_000))
    (root / "empty").touch()
    (root / "value").write_bytes(VALUE)
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe")).write_bytes(b"\0")
    (root / "link").symlink_to("empty")
    (root / "site-packages").mkdir()
    (root / "site-packages" / "left-out").touch()
    return root


class Altered(Demo):
    """After the dead node has come back, somebody changes one byte on its disk; both comparisons see it."""

    def revive(self) -> None:
        node = self.dead
        super().revive()
        self.cluster.stop_revived(node)
        self.dead = node
        alter(self.cluster.data_dir(node) / "data")
        super().revive()

    def compare(self) -> None:
        # Before any hash is asked for.
        with pytest.raises(Failure, match="1 files differ from the disk: value"):
            self.read_back()
        super().compare()


def alter(path: Path) -> None:
    """Flip a bit of the value of the file `value`, and of nothing else."""
    engine = RocksEngine.open_data(path)
    row = Keys(DEFAULT_GROUP, Generation(1)).current + b"value"
    record = engine.get(row)
    assert record is not None
    assert decode_record(record).value == VALUE
    batch = Batch()
    batch.put(row, record[:-1] + bytes((record[-1] ^ 1,)))
    engine.write(batch)
    engine.flush()
    engine.close()


def run(tree: Path, make: Callable[[Path, Path, Callable[[str], None]], Demo] = Demo) -> int:
    return demo.main(["--tree", str(tree)], make)


def test_passes(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(tree)
    captured = capsys.readouterr()
    assert code == 0, captured
    assert captured.out.count(f"Read {FILES + 4:,} files back") == 2
    assert "kill -9 for the leader" in captured.out
    assert "on all three nodes" in captured.out


def test_one_altered_value_fails_both_comparisons(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(tree, Altered)
    captured = capsys.readouterr()
    assert code == 1, captured
    assert f"the states of group {DEFAULT_GROUP} differ" in captured.err


def test_differences_are_missing_changed_and_surplus_files(tree: Path) -> None:
    expected = manifest(tree)
    assert len(expected) == FILES + 4
    assert differences(expected, expected, tree) == []
    found = dict(expected)
    del found[b"empty"]
    found[b"value"] = found[b"large"]
    found[b"surplus"] = found[b"large"]
    assert differences(expected, found, tree) == [b"empty", b"surplus", b"value"]


def test_a_file_that_changed_meanwhile_is_judged_by_what_it_holds_now(tree: Path) -> None:
    before = manifest(tree)
    (tree / "value").write_bytes(b"new")
    (tree / "added").write_bytes(b"new")
    now = manifest(tree)
    assert differences(before, now, tree) == []
    assert differences(before, before | {b"value": before[b"large"]}, tree) == [b"value"]

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nebuladb.storage.conformance import ENGINE_CASES, LOG_CASES, Case, Harness
from nebuladb.storage.engine import Batch, Engine
from nebuladb.storage.memory import MemoryEngine
from tests.unit.storage.harness import MemoryHarness, RocksHarness


def harness(name: str, path: Path) -> Harness:
    makers: dict[str, Callable[[], Harness]] = {
        "rocks-wal": lambda: RocksHarness(path, wal=True),
        "rocks-data": lambda: RocksHarness(path, wal=False),
        "memory-wal": lambda: MemoryHarness(wal=True),
        "memory-data": lambda: MemoryHarness(wal=False),
        "memory-wal-crashing": lambda: MemoryHarness(wal=True, loses=True),
        "memory-data-crashing": lambda: MemoryHarness(wal=False, loses=True),
    }
    return makers[name]()


ENGINES = ["rocks-wal", "rocks-data", "memory-wal", "memory-data", "memory-wal-crashing", "memory-data-crashing"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", ENGINE_CASES, ids=lambda case: case.__name__)
def test_engine(case: Case, engine: str, tmp_path: Path) -> None:
    case(harness(engine, tmp_path))


@pytest.mark.parametrize("engine", [name for name in ENGINES if "wal" in name])
@pytest.mark.parametrize("case", LOG_CASES, ids=lambda case: case.__name__)
def test_log(case: Case, engine: str, tmp_path: Path) -> None:
    case(harness(engine, tmp_path))


class LeakyRange(MemoryEngine):
    """Forgets to delete ranges."""

    def write(self, batch: Batch) -> None:
        kept = Batch()
        kept.operations = [operation for operation in batch.operations if operation[0] != 2]
        super().write(kept)


class LeakyHarness(MemoryHarness):
    def open(self) -> Engine:
        return LeakyRange(wal=True)


def test_suite_finds_a_broken_engine() -> None:
    with pytest.raises(AssertionError):
        ENGINE_CASES[1](LeakyHarness(wal=True))

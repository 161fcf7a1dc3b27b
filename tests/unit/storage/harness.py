"""The engines under test, as conformance harnesses."""

from __future__ import annotations

from pathlib import Path

from nebuladb.storage.engine import Engine
from nebuladb.storage.memory import MemoryEngine
from nebuladb.storage.rocks import RocksEngine


class KeepAll:
    """A generator that loses nothing in a crash."""

    def randrange(self, start: int, stop: int) -> int:
        del start
        return stop - 1

    def getrandbits(self, k: int) -> int:
        raise NotImplementedError(k)


class LoseAll(KeepAll):
    """One that loses all that may be lost."""

    def randrange(self, start: int, stop: int) -> int:
        del stop
        return start


class RocksHarness:
    def __init__(self, path: Path, *, wal: bool) -> None:
        self.wal = wal
        self._path = path / "db"

    def open(self) -> Engine:
        return RocksEngine.open_log(self._path) if self.wal else RocksEngine.open_data(self._path)


class MemoryHarness:
    """`loses`: a reopening is a crash that takes everything that wasn't made durable."""

    def __init__(self, *, wal: bool, loses: bool = False) -> None:
        self.wal = wal
        self._rng = LoseAll() if loses else KeepAll()
        self._engine = MemoryEngine(wal=wal)

    def open(self) -> Engine:
        self._engine = self._engine.crash(self._rng)
        return self._engine

"""The hash of the logical state at one index, in slices (S28).

It goes by key: C in order, and for each key back along R to the record that a read at the floor would find. So whether
compaction's deletion got far or not is not seen, and neither are slices. R's copy of every record is compared with the
one that the walk started from, so that a byte altered in either shows.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from struct import Struct
from typing import Final

from nebuladb.errors import Corruption
from nebuladb.kv.limits import weight
from nebuladb.kv.loans import Misses
from nebuladb.kv.rows import (
    ANSWER,
    ATTACHMENT,
    CURRENT,
    KEY_AT,
    LEASE,
    SESSION,
    Keys,
    Record,
    decode_record,
    encode_record,
)
from nebuladb.kv.source import SnapshotSource, close
from nebuladb.kv.state import State
from nebuladb.kv.view import load
from nebuladb.storage.engine import Snapshot

DIGEST_SIZE: Final = 16
NUMBERS: Final = Struct(">7Q")
LENGTHS: Final = Struct(">II")

SECTIONS: Final = (ANSWER, SESSION, LEASE, ATTACHMENT, CURRENT)


def hash_spans(keys: Keys) -> list[tuple[bytes, bytes]]:
    """Bounds of what a hash scans."""
    prefix = keys.state[: KEY_AT - 1]
    return [(prefix + kind, prefix + bytes((kind[0] + 1,))) for kind in SECTIONS]


class HashJob:
    """One hash in the making, over an engine snapshot that was taken right after the batch of `index`'s HASH."""

    def __init__(self, index: int, snapshot: Snapshot, keys: Keys, misses: Callable[[bytes], bool]) -> None:
        """`misses` says whether reading a row would take the disk."""
        self.index = index
        self._misses = misses
        self._chunk: list[tuple[bytes, bytes]] = []
        """Rows that are read and wait for R's copies to be in memory."""
        self._walk: tuple[bytes, Record] | None = None
        """A key whose history is half hashed, and its record that was hashed last."""
        self._snapshot = snapshot
        self._source = SnapshotSource(snapshot, keys)
        data = snapshot.get(keys.state)
        if data is None:
            raise Corruption("the state row is missing")
        state = State.decode(data)
        self._floor = state.floor
        self._hash = blake2b(digest_size=DIGEST_SIZE)
        self._hash.update(
            NUMBERS.pack(state.revision, state.floor, state.epoch, state.clock, state.keys, state.size, state.leases)
        )
        self._spans = hash_spans(keys)
        """What is left to hash: ranges of rows, the last first."""

    def step(self, budget: int) -> bytes | None:
        """Do about `budget` rows, as `weight` counts; the digest when it is done. Raises `Misses` (once a chunk) or
        `Corruption`."""
        left = budget
        if self._walk is not None:
            left -= self._back(left)
            if self._walk is not None:
                return None
        elif not self._chunk:
            self._read(max(1, budget // 2))  # each key costs two rows at least
            if missing := [copy for row, data in self._chunk if (copy := self._copy(row, data)) and self._misses(copy)]:
                raise Misses(missing)
        for done, (row, data) in enumerate(self._chunk, 1):
            left -= self._row(row, data, left)
            if left <= 0 or self._walk is not None:
                del self._chunk[:done]
                return None
        self._chunk.clear()
        if self._spans:
            return None
        self.close()
        return self._hash.digest()

    def _read(self, count: int) -> None:
        """The next `count` rows, if there are as many: R's copies of all of them are in memory at once."""
        while self._spans:
            low, high = self._spans.pop()
            rows = self._snapshot.scan(low, high)
            for pair in rows:
                if count <= 0:
                    close(rows)
                    self._spans.append((pair[0], high))
                    return
                self._chunk.append(pair)
                count -= weight(pair[1])

    def _copy(self, row: bytes, data: bytes) -> bytes | None:
        """The R row of a C row. Its record never changes, so what a fetch brings of it is what the snapshot has."""
        if row[KEY_AT - 1 : KEY_AT] != CURRENT:
            return None
        record = decode_record(data)
        return self._source.keys.record_key(record.main, record.sub)

    def close(self) -> None:
        """Let go of the snapshot. Idempotent."""
        self._snapshot.close()

    def _row(self, row: bytes, data: bytes, budget: int) -> int:
        """Hash a row, or for a C row all that is logically there of its key; returns the rows looked at."""
        if row[KEY_AT - 1 : KEY_AT] != CURRENT:
            self._add(row[KEY_AT - 1 :], data)
            return weight(data)
        record = decode_record(data)
        if record.version == 0 and record.main < self._floor:
            return 1
        key = row[KEY_AT:]
        self._add(row[KEY_AT - 1 :], data)
        copy = load(self._source, key, record.main, record.sub)
        if copy != record:
            self._add(b"", encode_record(copy))
        self._walk = key, record
        looked = 2 * weight(data)
        return looked + self._back(budget - looked)

    def _back(self, budget: int) -> int:
        """Hash about `budget` more of the records of the key that is at hand; returns how many, as `weight` counts."""
        assert self._walk is not None
        key, record = self._walk
        looked = 0
        while record.main > self._floor and record.past_main:
            if record.past_deleted and record.past_main < self._floor:
                break
            if looked >= max(budget, 1):
                self._walk = key, record
                return looked
            record = load(self._source, key, record.past_main, record.past_sub)
            self._add(b"", encode_record(record))
            looked += weight(record.value)
        self._walk = None
        return looked

    def _add(self, key: bytes, data: bytes) -> None:
        self._hash.update(LENGTHS.pack(len(key), len(data)))
        self._hash.update(key)
        self._hash.update(data)

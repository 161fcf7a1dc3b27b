"""The hash of the logical state at one index, in slices (S28).

It goes by key: C in order, and for each key back along R to the record that a read at the floor would find. So whether
compaction's deletion got far or not is not seen, and neither are slices. R's copy of every record is compared with the
one that the walk started from, so that a byte altered in either shows.
"""

from __future__ import annotations

from hashlib import blake2b
from struct import Struct
from typing import Final

from nebuladb.errors import Corruption
from nebuladb.kv.cache import RecordCache, RecordShare
from nebuladb.kv.rows import ANSWER, ATTACHMENT, CURRENT, KEY_AT, LEASE, SESSION, Keys, decode_record, encode_record
from nebuladb.kv.source import EngineSource, close
from nebuladb.kv.state import State
from nebuladb.kv.view import load
from nebuladb.storage.engine import Snapshot

DIGEST_SIZE: Final = 16
NUMBERS: Final = Struct(">7Q")
LENGTHS: Final = Struct(">II")

SECTIONS: Final = (ANSWER, SESSION, LEASE, ATTACHMENT, CURRENT)


class HashJob:
    """One hash in the making, over an engine snapshot that was taken right after the batch of `index`'s HASH."""

    def __init__(self, index: int, snapshot: Snapshot, keys: Keys) -> None:
        self.index = index
        self._snapshot = snapshot
        self._source = EngineSource(snapshot, keys, RecordCache(RecordShare(0)))
        data = snapshot.get(keys.state)
        if data is None:
            raise Corruption("the state row is missing")
        state = State.decode(data)
        self._floor = state.floor
        self._hash = blake2b(digest_size=DIGEST_SIZE)
        self._hash.update(
            NUMBERS.pack(state.revision, state.floor, state.epoch, state.clock, state.keys, state.size, state.leases)
        )
        prefix = keys.state[: KEY_AT - 1]
        self._spans = [(prefix + kind, prefix + bytes((kind[0] + 1,))) for kind in SECTIONS]
        """What is left to hash: ranges of rows, the last first."""

    def step(self, budget: int) -> bytes | None:
        """Do about `budget` rows; the digest when it is done. Raises `Corruption`."""
        left = budget
        while self._spans:
            low, high = self._spans.pop()
            rows = self._snapshot.scan(low, high)
            for row, data in rows:
                if left <= 0:
                    close(rows)
                    self._spans.append((row, high))
                    return None
                left -= self._row(row, data)
        self.close()
        return self._hash.digest()

    def close(self) -> None:
        """Let go of the snapshot. Idempotent."""
        self._snapshot.close()

    def _row(self, row: bytes, data: bytes) -> int:
        """Hash a row, or for a C row all that is logically there of its key; returns the rows looked at."""
        if row[KEY_AT - 1 : KEY_AT] != CURRENT:
            self._add(row[KEY_AT - 1 :], data)
            return 1
        record = decode_record(data)
        if record.version == 0 and record.main < self._floor:
            return 1
        key = row[KEY_AT:]
        self._add(row[KEY_AT - 1 :], data)
        copy = load(self._source, key, record.main, record.sub)
        if copy != record:
            self._add(b"", encode_record(copy))
        looked = 2
        while record.main > self._floor and record.past_main:
            if record.past_deleted and record.past_main < self._floor:
                break
            record = load(self._source, key, record.past_main, record.past_sub)
            self._add(b"", encode_record(record))
            looked += 1
        return looked

    def _add(self, key: bytes, data: bytes) -> None:
        self._hash.update(LENGTHS.pack(len(key), len(data)))
        self._hash.update(key)
        self._hash.update(data)

"""What one node may hold in memory, as one budget split by named shares.

The budget covers what grows with load and data. On top of it come the interpreter with its libraries (about 70 MiB),
what RocksDB's background jobs hold for a moment, and the allocator's slack.
"""

from __future__ import annotations

from typing import Final, NamedTuple

MIN_MEMORY: Final = 64 << 20
"""Below it the smallest shares (1/32) can't hold one request of 1.5 MiB, and memtables of some 2 MiB stall writes: with
1 MiB ones 70 % of the writes of a full load were refused."""
MAX_MEMORY: Final = 1 << 50
"""1 PiB, which no machine has: RocksDB's sizes have 64 bits."""
DEFAULT_MEMORY: Final = 512 << 20
"""Leaves room for the process itself on a machine of 1 GiB, the smallest that clouds sell for this; its block cache
holds some 600,000 records of 256 bytes, and a memtable what a restart replays in about two seconds."""

PARTS: Final = 32
BLOCK_CACHE: Final = 5
"""Every read that isn't of a hot key is served from it, and tables' indexes and filters live in it."""
DATA_MEMTABLES: Final = 8
LOG_MEMTABLES: Final = 4
"""Half of the data's: each put is one row here and two there."""
RECORDS: Final = 8
"""Hot records, encoded, in a dictionary: puts and gets without the engine, and without the wait for a thread that a key
costs whose block a flush or a compaction has just written. A record costs 160 bytes beside its own. When it was 400 and
3 parts held half of 100,000 keys of 256 bytes, 8 gave 1.6 times the puts and gets at 64 in flight."""
RECENT_ENTRIES: Final = 2
"""The log's tail, for followers: what a peer misses in a second's hiccup at full load."""
UNSYNCED: Final = 1
WRITES: Final = 2
OUTBOXES: Final = 2
"""The last three are queues: past them there is back-pressure, not a slower answer."""

MEMTABLES: Final = 3
"""Per database: one takes writes, one is written out, and one is between for when the disk is slow."""


class MemoryPlan(NamedTuple):
    """Bounds in bytes; their sum is the budget. `plan` makes one."""

    block_cache: int
    """RocksDB's blocks of both databases."""
    data_memtables: int
    log_memtables: int
    records: int
    """Newest records of all groups (``kv.cache``)."""
    recent_entries: int
    """Log entries that stay in memory after they are durable (``storage.log_reader``)."""
    unsynced: int
    """Log bytes on their way to the disk."""
    writes: int
    """Commands of this node's clients and of other nodes' that wait for their end."""
    outboxes: int
    """Events that wait for watches' consumers."""

    @property
    def data_memtable(self) -> int:
        """One memtable of the data."""
        return self.data_memtables // MEMTABLES

    @property
    def log_memtable(self) -> int:
        """One memtable of the log."""
        return self.log_memtables // MEMTABLES

    @property
    def flush_bytes(self) -> int:
        """Bytes written to the data store after which it is flushed: half a memtable, for rows cost overhead in it.
        So RocksDB never has to by itself, and a restart replays about this much (S6)."""
        return self.data_memtable // 2


def plan(total: int = DEFAULT_MEMORY) -> MemoryPlan:
    """The shares of `total` bytes."""
    parts = (BLOCK_CACHE, DATA_MEMTABLES, LOG_MEMTABLES, RECORDS, RECENT_ENTRIES, UNSYNCED, WRITES, OUTBOXES)
    return MemoryPlan(*(total * part // PARTS for part in parts))

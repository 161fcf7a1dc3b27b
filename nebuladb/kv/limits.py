"""Every bound of the state machine, by name (house rule 6).

The module constants decide what a command answers, so every replica must have the same: to change one is to change the
state machine, and needs a new version of an entry's payload (`Command.version`). `Limits` only cuts work into slices
and sizes memory; it may differ from node to node and from call to call, because no answer, row or hash depends on it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

MAX_REQUEST_BYTES: Final = 1_572_864
"""1.5 MiB: a command's body, hence also a key with its value."""

MAX_CONTROL_BYTES: Final = 4 << 10
"""Of a client's request that no bound on writes in flight holds back: a keep-alive, a revoke, a compaction. It has a
name and some numbers; 10,000 of a shard may wait. The api holds to it, apply doesn't: a log may have larger ones."""

MAX_TXN_OPERATIONS: Final = 128
"""Of compares, of success operations and of failure operations, each; the largest of the three is taken from what
transactions nested in it may have (etcd 17)."""

MAX_TXN_DEPTH: Final = 32
"""Transactions nested in one another. protobuf reads 100 messages deep, and each level takes two."""

MAX_TXN_TOTAL: Final = 8_192
"""Compares and operations of a transaction and of all that are nested in it, both branches: without this, three levels
of 42 each could have 74,088, half a second of the loop."""

MAX_RESULT_BYTES: Final = 3 << 20
"""Keys and values that one command may answer with; a response of 4 MiB is refused by a default gRPC client."""

MAX_RESULT_ROWS: Final = 20_000
"""Keys that one command may answer with, and keys that a delete with ``prev_kv`` or in a transaction may remove."""

MAX_TXN_ROWS: Final = 50_000
"""Rows that one command which can't be sliced may look at, all compares and operations of a transaction together."""

MAX_TXN_BYTES: Final = 64 << 20
"""Bytes of those rows, likewise: 50,000 of 1.5 MiB would keep the loop for a minute. It binds in entries of payload
version 2 on; what stood in the log before is applied as it always was."""

BACKGROUND_ROW_BYTES: Final = 8 << 10
"""A larger row counts as several in background work, so that 256 rows are 2 MiB at most, and one row more."""


def weight(data: bytes) -> int:
    """As how many rows one counts in background work."""
    return 1 + len(data) // BACKGROUND_ROW_BYTES


ROW_OVERHEAD: Final = 64
"""What a key costs in a result beyond its bytes, roughly; bounds results of many small keys."""

TOMBSTONE_BYTES: Final = 64
"""What a deleted row takes in the engine's memory beyond its key."""

HISTORY_STRIDE: Final = 1024
"""Every so many versions a key's records share an anchor, so that a read of an old revision of a key with n superseded
records takes about 2·n/1024 + 1,024 look-ups at worst, not n."""

MIN_LEASE_TTL: Final = 2
MAX_LEASE_TTL: Final = 9_000_000_000
"""Seconds (etcd 46)."""

MAX_LEASES: Final = 1_000_000

MAX_SESSIONS: Final = 10_000
"""Beyond it, opening one ends the session that was used least recently in log order (S20)."""

SESSION_WINDOW: Final = 256
"""How far above the lowest unanswered sequence number a request of a session may be."""

SESSION_BYTES: Final = 4 << 20
"""Bytes of answers kept for one session; a request that finds it full is refused before it runs."""

MAX_COMMANDS: Final = 1 << 16
"""Commands of one entry, so that index * 2**16 + place, by which sessions are ordered (`Machine._stamp`), names one
command."""


class Limits(NamedTuple):
    """How much one call does and how much is kept in memory; per process."""

    slice_rows: int = 1024
    """Rows written or looked at by one `Store.apply`, about, or commands: it ends after the one that reaches it. Some
    5 ms."""
    long_rows: int = 512
    """Likewise of one that ends within a command: nobody waits for its end as all do for the loop's return."""
    slice_bytes: int = 2 << 20
    """Bytes written by one `Store.apply`, likewise; the engine takes 8 ms for them. Of values that it supersedes, which
    were read and go out with its events, and of answers of sessions that it reads, twice as many."""
    dead_rows: int = 4096
    """Rows of keys that are gone, deleted and compacted, which one command passes over before they are removed, so that
    it may go on in the next slice."""
    cache_bytes: int = 64 << 20
    """Newest records kept in memory, their overhead included, where the caller gives no share of the node's."""
    hash_jobs: int = 2
    """Hashes in progress, each with an engine snapshot; one more drops the oldest."""
    pins: int = 1_000
    """Reads of several turns at a time; one more is refused."""
    snapshot_age: int = 1_000_000
    """Entries applied after which an unfinished hash with its snapshot, or a pin, is dropped."""
    hashes_kept: int = 16
    """Finished hashes."""


DEFAULT_LIMITS: Final = Limits()

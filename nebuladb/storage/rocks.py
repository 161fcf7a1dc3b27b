"""RocksDB behind the `Engine` protocol. The one importer of rocksdict.

Raw mode everywhere: keys and values are bytes, in bytes' order. Nothing here asks RocksDB for a synced write: it would
hold the interpreter's lock through the fsync. A write reaches the WAL's file, and is made durable while the loop goes
on: by `sync` in a thread, or by the kernel, which is told the file (`storage.wal_file`).
"""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Final

from rocksdict import (
    AccessType,
    BlockBasedIndexType,
    BlockBasedOptions,
    Cache,
    CompactOptions,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
    WriteBufferManager,
    WriteOptions,
)

from nebuladb.env import probe
from nebuladb.errors import Corruption, DataDamaged, DiskFull, StoreClosed, StoreError
from nebuladb.ids import BatchId
from nebuladb.storage.closed import note, noted
from nebuladb.storage.cursor import Cursor
from nebuladb.storage.engine import DELETE, IDENTITY_BYTES, PUT, Batch
from nebuladb.storage.files import exists, read, sync_directory, temporary_directory, unwritten
from nebuladb.storage.log_keys import STAMP_KEY, Stamp, decode_stamp
from nebuladb.storage.preallocation import Preallocation
from nebuladb.storage.rocks_errors import INFO_LOG, background_problem, classify
from nebuladb.storage.rocks_snapshot import RocksSnapshot
from nebuladb.storage.spans import pieces
from nebuladb.storage.wal import Found, cut, examine, wal_files
from nebuladb.storage.wal_file import WalFile

LOG_MEMTABLE_BYTES: Final = 64 << 20
"""With 1 MiB memtables 70 % of the writes of a full load were refused as stalls, with 64 MiB ones none."""
DATA_MEMTABLE_BYTES: Final = 256 << 20
"""Default for `open_data`. The node flushes long before (at most half: rows cost overhead), so that RocksDB never
flushes by itself and the durably applied index is known (S6)."""
DATA_CACHE_BYTES: Final = 128 << 20
MEMTABLES: Final = 3
"""One takes writes while up to two wait for a slow disk; then `WriteStalled`."""
BLOCK_BYTES: Final = 4 << 10
"""A get unpacks a whole block, 2 us at this size; larger ones would save some of the index, which has its cache."""
INDEX_PARTITION_BYTES: Final = 4 << 10
"""Index and filter of a table are cut into blocks of this size: a get among more data than memory then loads a few KiB
of them, not the megabyte that a large table has and that would push 200 data blocks out of the cache."""
LEVEL_BASE_MEMTABLES: Final = 4
"""Size of the first level in memtables: as many as start a compaction into it, which so rewrites what it brings."""
TABLE_BYTES: Final = 32 << 20
"""At most; half RocksDB's default, for a compaction holds a table's index and filter in memory while it writes it."""
OPEN_FILES: Final = 512
"""Tables that a database holds open, or a fifth of the process's descriptors, if those are fewer than 2,560: half of
them are kept for both databases and the rest of a node. RocksDB's own default is unbounded."""
TABLE_SHARD_BITS: Final = 2
"""RocksDB's 64 parts keep at least a table each, however few may be open."""
BLOOM_BITS: Final = 10
PEEK_CACHE_BYTES: Final = 1 << 20
BACKGROUND_JOBS: Final = 2
COMPACTION_READAHEAD_BYTES: Final = 256 << 10
"""For each table that a compaction reads, of which there may be dozens; RocksDB's 2 MiB are for spinning disks."""
COMPACTION_BYTES: Final = 256 << 20
"""What one step of `compact` rewrites at most, about: it needs as much room, and a node that stops waits for it."""
FREE_PART: Final = 4
"""Nor does a step rewrite more than one in so many bytes of the free space."""
LEAST_STEP: Final = 1 << 20
"""But it may always rewrite this much."""
SCAN_READAHEAD_BYTES: Final = 64 << 10
"""An iterator waits for the disk with the interpreter's lock held, so it should wait seldom: 1,024 cold rows of 300
bytes took 78 reads of a block, and 6 of this size, in the same CPU time. Ten rows then read 220 KiB instead of 15."""
VERSION: Final = "rocksdb.current-super-version-number"
"""The property that says whether the WAL is the same file as before; see `WalFile`."""
INFO_LOGS: Final = 4
INFO_LOG_BYTES: Final = 8 << 20


class RocksMemory:
    """What the databases of one node share: one block cache, and one count of their memtables, both in bytes.

    A memtable budget that is spent makes RocksDB write the oldest memtable out; it never stalls a write (S32).
    """

    def __init__(self, block_cache: int, memtables: int) -> None:
        self.block_cache_limit = block_cache
        self.memtables_limit = memtables
        self.cache = Cache(block_cache)
        self.buffers = WriteBufferManager(memtables, False)  # noqa: FBT003

    @property
    def block_cache_used(self) -> int:
        """Bytes of blocks in the cache."""
        return self.cache.get_usage()

    @property
    def memtables_used(self) -> int:
        """Bytes of memtables, those being written out included."""
        return self.buffers.get_usage()


class RocksEngine:
    """See `Engine`. Open one with `open_log` or `open_data`."""

    def __init__(self, db: Rdict, identity: bytes = bytes(IDENTITY_BYTES), *, wal: bool) -> None:
        self.wal = wal
        self.identity = identity
        self._ahead = Preallocation(Path(db.path())) if wal else None
        self._file = WalFile(Path(db.path()), partial(db.property_int_value, VERSION)) if wal else None
        self.sync_file = self._file.descriptor if self._file is not None else _no_file
        self._db = db
        self._options = WriteOptions()
        self._options.no_slowdown = True  # S32: a stall comes back as an error instead of stopping the interpreter
        self._options.disable_wal = not wal  # type: ignore[method-assign, assignment]  # the stub is wrong: a property
        self._cursors: set[Cursor] = set()
        self._snapshots: set[RocksSnapshot] = set()
        self._open = True

    @classmethod
    def open_log(
        cls, path: Path, *, memtable_bytes: int | None = None, memory: RocksMemory | None = None, lossy: bool = False
    ) -> RocksEngine:
        """Open a database with a WAL, and lose nothing that was ever said to be flushed (S34).

        Its batches are a `LogStore`'s, or have no stamps. `memory` is shared with the node's other database. Raises
        `Corruption` where more than a torn end is damaged; the directory is then as it was. `lossy`: it opens at the
        damage all the same, for a replica that will never vote or acknowledge again.
        """
        found = examine_log(path)
        if found is not None:
            if found.missing and not lossy:
                raise Corruption(
                    f"{path} is damaged: {found.missing}. This node may have forgotten a vote, so it must not take "
                    "part as it is. Keep the directory for inspection, and restore the node as a new member with an "
                    "empty one: nebula-cli member replace"
                )
            if found.behind:
                probe("log opened before a hole")
            cut(found)
        size = memtable_bytes or LOG_MEMTABLE_BYTES
        options = _options(size, memory or RocksMemory(DATA_CACHE_BYTES, MEMTABLES * size))
        # As strict as absolute consistency: RocksDB sees what was examined, and nothing behind it.
        options.set_wal_recovery_mode(DBRecoveryMode.point_in_time())
        # The log is overwritten and cut within minutes: compressing it would cost CPU and save nothing.
        options.set_compression_type(DBCompressionType.none())
        db = _open(path, options)  # which makes the identity of a new one
        engine = cls(db, _identity(path), wal=True)
        if found is not None and (last := decode_stamp(engine.get(STAMP_KEY)).batch) != found.kept:
            engine.close()
            raise Corruption(f"{path} holds log batches up to {found.kept}, and RocksDB read them up to {last}")
        return engine

    @classmethod
    def open_data(
        cls,
        path: Path,
        *,
        memtable_bytes: int = DATA_MEMTABLE_BYTES,
        memory: RocksMemory | None = None,
        patient: bool = False,
    ) -> RocksEngine:
        """Open a database without WAL: durable is what `flush` wrote; after a crash it holds an exact prefix of its
        writes, at least up to the last `flush`. Memory: MEMTABLES x `memtable_bytes` at worst, and `memory`'s cache.

        `patient`: a write waits where it would raise `WriteStalled`, for a tool that serves nobody meanwhile. The
        interpreter stands still as long.
        """
        options = _options(memtable_bytes, memory or RocksMemory(DATA_CACHE_BYTES, MEMTABLES * memtable_bytes))
        # lz4 costs a fraction of a microsecond a row, in a background thread, and MVCC rows shrink by half.
        options.set_compression_type(DBCompressionType.lz4())
        options.set_max_bytes_for_level_base(LEVEL_BASE_MEMTABLES * memtable_bytes)
        options.set_target_file_size_base(min(memtable_bytes, TABLE_BYTES))
        engine = cls(_open(path, options), wal=False)
        engine._options.no_slowdown = not patient
        return engine

    @classmethod
    def inspect(cls, path: Path, found: Found | None = None) -> RocksEngine:
        """Open a closed database to read it and leave it untouched. Of its WAL it sees what is sound in `found`, which
        `examine_log` gave: what `open_log` would keep."""
        options = _options(LOG_MEMTABLE_BYTES, RocksMemory(DATA_CACHE_BYTES, LOG_MEMTABLE_BYTES))
        options.create_if_missing(False)  # noqa: FBT003
        with temporary_directory(path.parent) as kept:
            for file, end in found.sound if found is not None else ():
                copy, content = Path(kept, file.name), read(file)
                try:
                    copy.write_bytes(content[:end])
                except OSError as error:
                    raise unwritten(copy, error) from error
            options.set_wal_dir(kept)
            return cls(_open(path, options, AccessType.read_only(error_if_log_file_exist=False)), wal=False)

    def get(self, key: bytes) -> bytes | None:
        try:
            value: bytes | None = self._db.get(key)
        except Exception as error:
            raise self._error(error) from error
        return value

    def get_cached(self, key: bytes) -> tuple[bool, bytes | None]:
        # `key_may_exist` looks into memtables and cached blocks only. It says False for what is certainly not there,
        # (True, value) for what is in memory, and (True, None) where it can't tell; (True, b"") may also mean that a
        # part of an index isn't in memory, so an empty value proves nothing. False hides no damaged block: blocks are
        # checked before they get into the cache. Two calls, since the one that brings a value loses 32 bytes of memory
        # for ever whenever there is none: 30 MiB a million new keys.
        try:
            if not self._db.key_may_exist(key):
                return True, None
            _, value = self._db.key_may_exist(key, True)  # type: ignore[misc]  # noqa: FBT003
        except Exception as error:
            raise self._error(error) from error
        return (True, value) if value else (False, None)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        try:
            # Of a list, even of one key: then it reads without the interpreter's lock.
            values: list[bytes | None] = self._db.get(list(keys))  # type: ignore[assignment]
        except Exception as error:
            raise self._error(error) from error
        return values

    def scan(self, low: bytes, high: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        if low >= high:
            return
        cursor = None
        try:
            cursor = Cursor(self._db.iter(_below(high)))
            self._cursors.add(cursor)
            yield from cursor.walk(low, high, reverse=reverse)
        except StoreError:
            raise
        except Exception as error:
            raise self._error(error) from error
        finally:
            if cursor is not None:
                cursor.steps = None
                self._cursors.discard(cursor)

    def write(self, batch: Batch) -> None:
        # RocksDB consumes its batch even when it refuses it; ours is the one that survives a stall.
        rows = WriteBatch(raw_mode=True)
        put = rows.put
        try:
            for kind, key, value in batch.operations:
                if kind == PUT:
                    put(key, value)
                elif kind == DELETE:
                    rows.delete(key)
                elif key < value:  # an inverted range would leave the database refusing every later write
                    rows.delete_range(key, value)
            self._db.write(rows, self._options)
            if self._ahead is not None:
                self._ahead.wrote(len(batch.operations), batch.size)
        except Exception as error:
            raise self._damaged(error) from error

    def sync(self) -> None:
        if self._file is None:
            raise StoreError("an engine without WAL has nothing to sync; flush it")
        try:
            self._file.sync(partial(self._db.flush_wal, sync=True))
        except Exception as error:
            raise self._error(error) from error

    def flush(self) -> None:
        try:
            self._db.flush(wait=True)
        except Exception as error:
            raise self._damaged(error) from error

    def compact(self, spans: Sequence[tuple[bytes, bytes]], stop: Callable[[], bool]) -> bool:
        options = CompactOptions()
        options.set_exclusive_manual_compaction(False)  # else RocksDB's own wait for it, and writes then stall
        try:
            tables = [(one["start_key"], one["end_key"], one["size"]) for one in self._db.live_files()]
            errors = self._background_errors()
            for low, high in pieces(tables, spans, self._step()):
                if stop():
                    return False
                self._db.compact_range(low, high, options)
                if self._background_errors() != errors:
                    return False  # of a lack of room, say; RocksDB doesn't always tell the caller
        except Exception as error:
            found = self._damaged(error)
            if isinstance(found, DiskFull):
                return False
            raise found from error
        return True

    def _step(self) -> int:
        """Bytes that one step of `compact` may rewrite in the room there is. RocksDB's own compactions, which become
        due behind it, get no more either, or they would take what is left."""
        free = shutil.disk_usage(self._db.path()).free
        most = max(min(COMPACTION_BYTES, free // FREE_PART), LEAST_STEP)
        self._db.set_options({"max_compaction_bytes": str(most)})
        return most

    def deleted(self) -> list[tuple[bytes, bytes]]:
        tables = self._db.live_files()
        return [(one["start_key"], one["end_key"] + b"\0") for one in tables if one["num_deletions"]]

    def trouble(self) -> str:
        return background_problem(Path(self._db.path()) / INFO_LOG) if self._background_errors() else ""

    def _background_errors(self) -> int | None:
        return self._db.property_int_value("rocksdb.background-errors")

    def snapshot(self, spans: Sequence[tuple[bytes, bytes]] = ()) -> RocksSnapshot:
        try:
            cursors = {span: Cursor(self._db.iter(_below(span[1]))) for span in spans}
            if not spans:
                cursors[b"", b""] = Cursor(self._db.iter())
            snapshot = RocksSnapshot(self._db.snapshot(), cursors, self._snapshots.discard)
        except Exception as error:
            raise self._error(error) from error
        self._snapshots.add(snapshot)
        return snapshot

    def close(self) -> None:
        if not self._open:
            return
        path, last = Path(self._db.path()), self._last_batch()
        self._open = False
        for cursor in self._cursors:
            cursor.steps = None
        for snapshot in list(self._snapshots):
            snapshot.close()
        if self._file is not None:
            self._file.close()
        db = self._db
        del self._db  # even if close() raises, which it does after a failed append, the last reference is gone
        try:
            db.close()
        except Exception as error:
            raise self._whole(classify(error)) from error
        if last:
            with suppress(OSError):  # of a full disk, say: then only the WAL of the next life tells more
                note(path, last)

    def _last_batch(self) -> BatchId:
        """Of a log, and durable, for whoever opens it next; 0 if that can't be told."""
        if not self.wal:
            return BatchId(0)
        try:
            self.sync()  # if closing can't write a table, the WAL has it
            return decode_stamp(self.get(STAMP_KEY)).batch
        except StoreError:
            return BatchId(0)

    def _damaged(self, error: Exception) -> StoreError:
        """A write that fails by damage: RocksDB met it in the background, and refuses all writes from then on."""
        return self._whole(self._error(error))

    def _whole(self, found: StoreError) -> StoreError:
        """Without a WAL the log has what is needed to get the data anew; a damaged log is another matter."""
        return DataDamaged(found.message) if isinstance(found, Corruption) and not self.wal else found

    def _error(self, error: Exception) -> StoreError:
        return classify(error) if self._open else StoreClosed("the database is closed")


def _below(high: bytes) -> ReadOptions:
    """For an iterator that ends before `high`. (A lower bound would get lost in rocksdict.)"""
    options = ReadOptions()
    options.set_iterate_upper_bound(high)
    options.set_readahead_size(SCAN_READAHEAD_BYTES)
    options.set_background_purge_on_iterator_cleanup(True)
    return options


def examine_log(path: Path) -> Found | None:
    """What the WAL of the closed log database at `path` holds; None where there is no database yet. Changes nothing.
    Raises `Corruption`, `StoreError`."""
    files, stored = wal_files(path), _tables_stamp(path)
    # A database that was written has a WAL at all times; one without files has lost them (`Found.missing`).
    said = noted(path)
    if not files and not stored.batch:
        return Found(BatchId(0), said, [], []) if said else None
    found = examine(files, stored, _identity(path))
    return found._replace(flushed=max(found.flushed, said))


def _identity(path: Path) -> bytes:
    """What `Engine.identity` is for a database that exists: of the random name that RocksDB gave it, durable before
    anything else was. Raises `Corruption`; `StoreError` if it can't be read."""
    if not exists(file := path / "IDENTITY"):
        raise Corruption(f"{path} has lost its identity: there is no {file}")
    return blake2b(read(file), digest_size=IDENTITY_BYTES).digest()


def _tables_stamp(path: Path) -> Stamp:
    """The stamp of the last batch that the tables of a closed log database hold, without the WAL."""
    if not exists(path / "CURRENT"):
        return Stamp()
    options = _options(LOG_MEMTABLE_BYTES, RocksMemory(PEEK_CACHE_BYTES, LOG_MEMTABLE_BYTES))
    options.create_if_missing(False)  # noqa: FBT003
    with temporary_directory(path.parent) as empty:
        options.set_wal_dir(empty)
        db = _open(path, options, AccessType.read_only())
        try:
            stamp: bytes | None = db.get(STAMP_KEY)
            db.close()
        except Exception as error:
            raise classify(error) from error
    return decode_stamp(stamp)


def _no_file() -> int | None:
    """`Engine.sync_file` of one without WAL."""
    return None


def _open(path: Path, options: Options, access: AccessType | None = None) -> Rdict:
    if access is None and not path.exists():
        try:
            path.mkdir(parents=True)
            sync_directory(path.parent)  # RocksDB syncs what is in its directory, and not that it is there
        except OSError as error:
            raise unwritten(path, error) from error
    try:
        # The family is named: else rocksdict opens what exists with the options that it finds there, a block cache of
        # its own (8 MiB) and no filters, whatever `options` says.
        families = {"default": options}
        return Rdict(str(path), options, column_families=families, access_type=access or AccessType.read_write())
    except Exception as error:
        raise classify(error) from error


def _table(memory: RocksMemory) -> BlockBasedOptions:
    """How tables are laid out, and which cache their blocks go through."""
    table = BlockBasedOptions()
    table.set_block_cache(memory.cache)
    table.set_block_size(BLOCK_BYTES)
    # A put looks up its key's newest record; for a new key the filter saves the read.
    table.set_bloom_filter(BLOOM_BITS, False)  # noqa: FBT003
    # Filters and indexes grow with the data. In the cache they are bounded; those of the newest tables stay, and of the
    # others the small blocks that lead to their partitions.
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    table.set_index_type(BlockBasedIndexType.two_level_index_search())
    table.set_partition_filters(True)
    table.set_metadata_block_size(INDEX_PARTITION_BYTES)
    table.set_pin_top_level_index_and_filter(True)
    return table


def _open_files() -> int:
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return OPEN_FILES if most == resource.RLIM_INFINITY else min(OPEN_FILES, most // 5)


def _options(memtable_bytes: int, memory: RocksMemory) -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)  # noqa: FBT003
    options.set_write_buffer_size(memtable_bytes)
    options.set_max_write_buffer_number(MEMTABLES)
    options.set_write_buffer_manager(memory.buffers)
    options.set_block_based_table_factory(_table(memory))
    options.set_max_open_files(_open_files())
    options.set_table_cache_num_shard_bits(TABLE_SHARD_BITS)
    options.set_max_background_jobs(BACKGROUND_JOBS)
    options.set_compaction_readahead_size(COMPACTION_READAHEAD_BYTES)
    options.set_keep_log_file_num(INFO_LOGS)
    options.set_max_log_file_size(INFO_LOG_BYTES)
    # Else whoever closes the last iterator on a replaced table unlinks it, and frees a flushed memtable: on the loop.
    options.set_avoid_unnecessary_blocking_io(True)
    options.set_stats_dump_period_sec(0)  # would fill RocksDB's info log with what nobody reads
    return options

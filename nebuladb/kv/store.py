"""One shard's state machine over an engine: see the package's contract."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from nebuladb.env import probe
from nebuladb.errors import Corruption, InvariantViolation, StoreError, TooManyRequests, Unavailable, WriteStalled
from nebuladb.ids import Generation, GroupId, NodeId
from nebuladb.kv.ahead import foreseen
from nebuladb.kv.answer import KeyValue, RangeResult, TxnResult
from nebuladb.kv.attached import Attached
from nebuladb.kv.branches import Branches
from nebuladb.kv.cache import RecordCache, RecordShare
from nebuladb.kv.change import Applied, LeaseInfo, LeaseState
from nebuladb.kv.command import Work
from nebuladb.kv.deletion import Deletion
from nebuladb.kv.draft import Draft
from nebuladb.kv.findings import Findings
from nebuladb.kv.hashing import HashJob, hash_spans
from nebuladb.kv.limits import DEFAULT_LIMITS, MAX_RESULT_BYTES, MAX_TXN_ROWS, TOMBSTONE_BYTES, Limits
from nebuladb.kv.loans import Misses, Room, fetched
from nebuladb.kv.machine import Machine
from nebuladb.kv.pin import Pin
from nebuladb.kv.rows import KEY_AT, POSITION, Keys, decode_lease, group_span, is_lease_id
from nebuladb.kv.selection import Selection
from nebuladb.kv.sessions import Sessions
from nebuladb.kv.source import EngineSource, SnapshotSource, close
from nebuladb.kv.state import State
from nebuladb.kv.trail import Trail
from nebuladb.kv.txn import Budget, Txn, check_revision, collect
from nebuladb.kv.view import Page, as_of, at, page
from nebuladb.kv.voids import Voids
from nebuladb.kv.walk import Bounds, Changes, walk
from nebuladb.storage.engine import Batch, Engine


class Store:
    """The state of one (group, generation). Raises `Corruption` if there is none or a row of it is damaged.

    `apply` is the only thing that changes what is read; `background` deletes and hashes and changes nothing that can be
    told from outside. After an error other than `WriteStalled` the store is dead: apply and background refuse, the
    replica stops.
    """

    def __init__(
        self,
        engine: Engine,
        group: GroupId,
        generation: Generation,
        node: NodeId,
        limits: Limits = DEFAULT_LIMITS,
        records: RecordShare | None = None,
    ) -> None:
        """`records`: what all stores of the node may cache together."""
        self._engine = engine
        self._node = node
        self._limits = limits
        self._keys = Keys(group, generation)
        self.generation = generation
        self._cache = RecordCache(records or RecordShare(limits.cache_bytes))
        self._source = EngineSource(engine, self._keys, self._cache)
        data = engine.get(self._keys.state)
        if data is None:
            raise Corruption(f"group {group} has no state under generation {generation}")
        self._state = State.decode(data)
        # Iterators wait for the disk in any case, and hold the interpreter's lock meanwhile: so do scans' look-ups.
        self._patient = SnapshotSource(engine, self._keys)
        self._voids = Voids(self._keys.current, self._state.revision)
        self._sessions = Sessions(self._source)
        self._findings = Findings()
        self.deletion = Deletion(self._source, engine.get(self._keys.deletion))
        self.deleted_bytes = 0
        """Written by background deletion; whoever counts what the engine holds unflushed takes it away."""
        self._pending: tuple[Machine, Batch] | None = None
        self.failed = False
        """Whether it can't be used any more: it met damage or another error of the engine, or was closed."""
        self._jobs: list[HashJob] = []
        self._pins: list[Pin] = []
        """Oldest first."""
        self._hashes: OrderedDict[int, bytes] = OrderedDict()
        self.hashed: list[tuple[int, bytes]] = []
        """(index, hash) finished by `background`; whoever reports them takes them away."""

    @staticmethod
    def initialise(
        engine: Engine,
        group: GroupId,
        generation: Generation,
        *,
        index: int,
        term: int,
        configuration: bytes,
    ) -> None:
        """Write the first state of a shard: empty, revision 1. Not durable before the engine is flushed."""
        batch = Batch()
        batch.put(Keys(group, generation).state, State(index, term, configuration).encode())
        engine.write(batch)

    @staticmethod
    def exists(engine: Engine, group: GroupId, generation: Generation) -> bool:
        """Whether there is a state of (group, generation)."""
        return engine.get(Keys(group, generation).state) is not None

    @staticmethod
    def generations(engine: Engine) -> list[tuple[GroupId, Generation]]:
        """Every (group, generation) that has rows, ascending: one seek each (S30)."""
        found: list[tuple[GroupId, Generation]] = []
        low = b""
        while True:
            rows = engine.scan(low, b"\xff" * (POSITION.size + 1))
            row = next(rows, None)
            close(rows)
            if row is None:
                return found
            group, generation = POSITION.unpack_from(row[0])
            found.append((GroupId(group), Generation(generation)))
            low = group_span(*found[-1])[1]

    @staticmethod
    def destroy(engine: Engine, group: GroupId, generation: Generation) -> None:
        """Remove every row of (group, generation). No store of it may be open."""
        batch = Batch()
        batch.delete_range(*group_span(group, generation))
        engine.write(batch)

    # --- what was applied

    @property
    def index(self) -> int:
        """Index of the last entry that is fully applied."""
        return self._state.index

    @property
    def term(self) -> int:
        """Its term."""
        return self._state.term

    @property
    def configuration(self) -> bytes:
        """The configuration as of `index`."""
        return self._state.configuration

    @property
    def revision(self) -> int:
        """The newest published revision."""
        return self._state.revision

    @property
    def floor(self) -> int:
        """The compact revision: the oldest that can be read; 0 = nothing was ever compacted."""
        return self._state.floor

    @property
    def epoch(self) -> int:
        """The descriptor's epoch."""
        return self._state.epoch

    @property
    def clock(self) -> int:
        """The lease clock, ms (S27)."""
        return self._state.clock

    @property
    def key_count(self) -> int:
        """Keys that exist."""
        return self._state.keys + self._state.deleted

    @property
    def size(self) -> int:
        """Bytes of the keys that exist and of their values."""
        return self._state.size + self._state.deleted_size

    @property
    def session_count(self) -> int:
        """Open sessions."""
        return len(self._sessions)

    @property
    def partial(self) -> bool:
        """Whether entry `index` + 1 is half applied."""
        return self._state.partial

    # --- apply

    def apply(self, works: Sequence[Work]) -> Applied:
        """Apply entries that follow `index` directly, as many as a slice may hold, and write the result.

        The caller looks at `Applied.index` and calls again with the rest, or, after `partial`, with the same works:
        entries at or below `index` are passed over. Raises `WriteStalled`: nothing has changed; the batch is kept, and
        the next call, with the same works, writes it.
        """
        if self.failed:
            raise InvariantViolation("a store is used after it failed")
        if self._pending is None:
            state = self._state
            if not works or works[-1].index <= state.index:
                return Applied(state.index, state.term, self.partial, revision=state.revision)
            self.failed = True  # until it has come to its end
            machine = Machine(self._source, state, self._sessions, self._node, self._limits, self._findings)
            machine.run(works)
            missed = machine.applied.wanted and not machine.draft.rows  # commands before it may have been answered
            if missed and (machine.state.index, machine.state.place) == (state.index, state.place):
                self.failed = False
                return machine.applied  # the first command has missed: nothing was done
            batch = machine.draft.batch()
            batch.put(self._keys.state, machine.state.encode())
            self._pending = machine, batch
            self.failed = False
        machine, batch = self._pending
        self._write(batch)
        self._pending = None
        machine.applied.background = machine.state.floor > self._state.floor or machine.hash_index > 0
        self._state = machine.state
        self._voids.applied(machine.state.revision, machine.draft.records)
        self._cache.update(machine.draft.records, machine.draft.rows, self._keys.current)
        self.deletion.buried += sum(map(len, machine.draft.buried))
        for pin in self._pins:
            pin.forget(machine.draft.forgotten)
        if machine.hash_index:
            self._start_hash(machine.hash_index)
        machine.applied.size = batch.size
        return machine.applied

    def _write(self, batch: Batch) -> None:
        try:
            self._engine.write(batch)
            if self._source.loans.counts:
                self._source.loans.written(batch)
        except WriteStalled:
            probe("apply stalled")
            raise
        except StoreError:
            self.failed = True
            raise

    # --- rows that are on the disk only

    def borrow(self, rows: Sequence[bytes]) -> None:
        """Before `rows`, which a `Misses` or `Applied.wanted` named, are fetched from the engine, in a thread."""
        self._source.loans.borrow(rows)

    def supply(self, rows: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        """The first of them are fetched: reads and apply find those until they are given back."""
        self._source.loans.supply(rows, values)

    def fetch(self, rows: Sequence[bytes]) -> Sequence[bytes | None]:
        """Read the first of `rows` from the disk, for `supply`; for who has nothing else to do meanwhile."""
        return fetched(self._engine.get_many, rows, Room().spend)

    def give_back(self, rows: Sequence[bytes]) -> None:
        """Whoever borrowed them has done its work, or given up."""
        self._source.loans.give_back(rows)

    @property
    def borrowed(self) -> int:
        """Rows on loan."""
        return len(self._source.loans)

    # --- reading

    def get(self, key: bytes, revision: int = 0, trail: Trail | None = None) -> KeyValue | None:
        """A key as it was at `revision` (0 or less: now). After `Misses` it goes on where `trail` is.

        Raises `Misses`, `Compacted`, `FutureRevision` or `Corruption`.
        """
        state = self._state
        if revision > 0:
            check_revision(revision, state.floor, state.revision)
            return as_of(self._source, key, revision, trail)
        revision = state.revision
        record = self._source.newest(key)
        if record is None:
            return None
        if record.main > revision:
            record, *_ = at(self._source, key, record, revision)
            if record is None:
                return None
        elif not record.version:
            return None
        return KeyValue(key, record.create, record.main, record.version, record.lease, record.value)

    def range(
        self,
        key: bytes,
        end: bytes = b"",
        *,
        revision: int = 0,
        limit: int = 0,
        max_bytes: int = MAX_RESULT_BYTES,
        keys_only: bool = False,
        count_only: bool = False,
    ) -> RangeResult:
        """A whole range in one answer, with its count. `end`: empty = one key, ``\\0`` = to the last (etcd 1).

        Raises `ResultTooLarge` beyond `max_bytes`, `MAX_RESULT_ROWS` keys or `MAX_TXN_ROWS` rows looked at (a larger
        range goes by `scan`), `Compacted`, `FutureRevision` or `Corruption`.
        """
        revision = self._readable(revision)
        budget = Budget(MAX_TXN_ROWS, max_bytes)
        if keys_only:  # of a lock or an election: few rows, however large the values
            budget.unbind()
        selection = Selection(limit, keys_only, count_only)
        return collect(self._patient, self._keys.span(key, end), revision, budget, selection, self._state.floor)

    def read(self, branches: Branches, findings: Findings | None = None) -> TxnResult:
        """A transaction that writes nothing, at the published revision (etcd 23); `findings`: of the tries before.
        Raises `Misses` for keys that stand alone and are on the disk only, and what `Txn.run` raises.
        """
        if branches.writes:
            raise InvariantViolation("a transaction that writes is read")
        revision = self._state.revision
        draft, findings = Draft(self._source, self._state.floor), findings or Findings()
        try:
            findings.go_on(self._source)
            return Txn(draft, revision + 1, revision, self._patient, findings.at).run(branches)
        except Misses as misses:
            raise foreseen(self._source, branches, misses) from None

    def scan(
        self,
        key: bytes,
        end: bytes = b"\0",
        *,
        revision: int = 0,
        limit: int = 1024,
        max_bytes: int = 1 << 20,
        max_rows: int = 4096,
        keys_only: bool = False,
    ) -> Page:
        """A stretch of a range; the next one begins at `Page.cursor`. `limit` 0 counts and returns no keys.

        More pages at the first one's revision may meet `Compacted`, a `pin`'s don't. Raises as `range`, but for size.
        """
        return page(
            self._patient, self._keys.span(key, end), self._readable(revision), limit=limit, max_bytes=max_bytes,
            max_rows=max_rows, keys_only=keys_only,
        )  # fmt: skip

    def pin(self, revision: int = 0) -> Pin:
        """A readable revision (0 or less: the published one), held for a read of several turns; to be closed (S24).

        Raises `TooManyRequests`, `Compacted` or `FutureRevision`.
        """
        revision = self._readable(revision)
        self._pins = [pin for pin in self._pins if not pin.closed]
        if len(self._pins) >= self._limits.pins:
            raise TooManyRequests(f"the shard serves {self._limits.pins} scans already")
        self._pins.append(Pin(self._patient, revision, self.index, self._voids))
        return self._pins[-1]

    def _readable(self, revision: int) -> int:
        if revision <= 0:
            return self._state.revision
        check_revision(revision, self._state.floor, self._state.revision)
        return revision

    def changes(
        self,
        after: int,
        *,
        sub: int = 0,
        limit_rows: int = 1024,
        limit_bytes: int = 1 << 20,
        previous: bool = False,
        cut: int = 0,
    ) -> Changes:
        """Published changes of revisions above `after`, in order, whole revisions: the first always, more while there
        are fewer than `limit_rows` and `limit_bytes`. Raises `Compacted` if some are gone, or `Corruption`.

        With `cut` none has more changes than that, or more than `limit_bytes`, but for the first, which then isn't
        whole (`Changes.cut`): the next call goes on at `sub` of revision `after` + 1, behind the last one's.

        With `previous` each carries what the key was before, unless that is compacted away.
        """
        state = self._state
        check_revision(after + 1, state.floor, state.revision + 1)
        below, bounds = (state.revision + 1, 0), Bounds(limit_rows, limit_bytes, cut)
        return walk(self._patient, (max(after, 0) + 1, sub), below, bounds, state.floor if previous else None)

    # --- leases

    def leases(self) -> Iterator[LeaseState]:
        """All leases by rising id, negative ones last; for a new lessor. To be exhausted within the turn."""
        low = self._keys.lease
        for row, data in self._engine.scan(low, low + b"\xff" * 9):
            yield LeaseState(int.from_bytes(row[KEY_AT:], signed=True), *decode_lease(data))

    def lease(self, lease: int) -> LeaseInfo | None:
        """What is left of a lease on the lease clock, in seconds rounded down."""
        data = self._source.get(self._keys.lease_key(lease)) if is_lease_id(lease) else None
        if data is None:
            return None
        row = decode_lease(data)
        # A moment has passed since the clock was read: of a lease of 5 s more than 4 are left, not 5 (as etcd says it).
        return LeaseInfo(max(row.expires - self._state.clock - 1, 0) // 1000, row.ttl // 1000)

    def attached(self, lease: int) -> Attached:
        """The keys of a lease that there is; to be closed. Raises `Unavailable` while an entry is half applied: what it
        has detached so far is of an unpublished revision."""
        if self._state.cursor:
            raise Unavailable("a large deletion is being applied; try again")
        return Attached(self._engine, *self._keys.attached(lease))

    # --- background

    def hash_at(self, index: int) -> bytes | None:
        """The finished hash that a HASH in entry `index` asked for, while it is remembered."""
        return self._hashes.get(index)

    def hashing(self, index: int) -> bool:
        """Whether the hash of entry `index` is being taken."""
        return any(job.index == index for job in self._jobs)

    @property
    def busy(self) -> bool:
        """Whether `background` has anything to do, though pins may hold it back for now."""
        return bool(self._jobs) or self.deletion.behind(self.floor)

    def reclaimed(self, revision: int) -> bool:
        """Whether all is deleted that a compaction at `revision`, at or below the floor, superseded. Raises
        `Unavailable` of a store that is not in use any more."""
        if self.failed:
            raise Unavailable("the shard's data was replaced; try again")
        return self.deletion.passed(revision)

    @property
    def _deletable(self) -> int:
        """What may be deleted as if it were the floor: no pin is below it."""
        return min([self.floor, *(pin.revision for pin in self._pins)])

    def background(self, budget: int = 1024) -> bool:
        """Do about `budget` rows of hashing or physical deletion; True if more can be done now.

        Raises `WriteStalled` (call again later), `Misses` (when they are supplied), `Corruption` or `StoreError`, which
        end the store's life: a hash would go on behind what it couldn't read.
        """
        if self.failed:
            raise InvariantViolation("a store is used after it failed")
        self._drop_old_snapshots()
        try:
            if self._jobs:
                self._hash(budget)
            elif self.deletion.behind(floor := self._deletable):
                self._delete(floor, budget)
        except Corruption:
            self.failed = True
            raise
        return bool(self._jobs) or self.deletion.behind(self._deletable)

    def _hash(self, budget: int) -> None:
        job = self._jobs[0]
        digest = job.step(budget)
        if digest is not None:
            del self._jobs[0]
            self._hashes[job.index] = digest
            self.hashed.append((job.index, digest))
            while len(self._hashes) > self._limits.hashes_kept:
                self._hashes.popitem(last=False)

    def _delete(self, floor: int, budget: int) -> None:
        batch, position = self.deletion.step(floor, budget)
        self._write(batch)
        self.deleted_bytes += batch.size + TOMBSTONE_BYTES * len(batch.operations)
        self.deletion.advance(position)
        probe("slice of superseded rows deleted")
        if not self.deletion.behind(self.floor):
            probe("superseded rows deleted")

    def _start_hash(self, index: int) -> None:
        while self._jobs and len(self._jobs) >= self._limits.hash_jobs:
            probe("hash dropped")
            # The first goes on: if each new one took its place, none would end where they are asked for more often.
            self._jobs.pop().close()
        self._jobs.append(
            HashJob(index, self._engine.snapshot(hash_spans(self._keys)), self._keys, self._source.misses)
        )

    def _drop_old_snapshots(self) -> None:
        oldest = self.index - self._limits.snapshot_age
        while self._jobs and self._jobs[0].index < oldest:
            probe("hash dropped")
            self._jobs.pop(0).close()
        self._pins = [pin for pin in self._pins if not pin.closed]
        while self._pins and self._pins[0].index < oldest:
            probe("pin expired")
            self._pins.pop(0).close()

    def close(self) -> None:
        """Let go of the engine, which stays open. Idempotent."""
        self.failed = True
        for job in self._jobs:
            job.close()
        for pin in self._pins:
            pin.close()
        self._jobs.clear()
        self._pins.clear()
        self._cache.close()

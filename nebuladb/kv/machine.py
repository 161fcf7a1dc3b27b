"""One apply call: entries run against a draft, until all are done or the slice is full.

`Machine` is made for one call and thrown away. What it decides depends on the state and the entries alone, never on
where slices end: a command sees the state after the command before it, be that in the engine or in the draft.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Final

from google.protobuf.message import DecodeError

from nebuladb.env import probe
from nebuladb.errors import (
    Compacted,
    Corruption,
    FutureRevision,
    InvalidArgument,
    InvariantViolation,
    NebulaError,
    StoreError,
    WrongEpoch,
)
from nebuladb.kv import check
from nebuladb.kv.ahead import rows_ahead
from nebuladb.kv.answer import (
    NO_PREVIOUS,
    Answer,
    DeleteResult,
    HashResult,
    LeaseResult,
    PutResult,
    Result,
    SessionResult,
)
from nebuladb.kv.change import Applied, key_value
from nebuladb.kv.command import Command, Kind, Work
from nebuladb.kv.dead import Buried, Clearing
from nebuladb.kv.draft import Draft
from nebuladb.kv.findings import Findings
from nebuladb.kv.leases import Leases
from nebuladb.kv.limits import MAX_COMMANDS, MAX_REQUEST_BYTES, Limits
from nebuladb.kv.loans import FETCH_BYTES, FIRST_ROWS, Misses
from nebuladb.kv.rows import KEY_AT, Record, decode_record
from nebuladb.kv.sessions import Sessions
from nebuladb.kv.source import EngineSource, close
from nebuladb.kv.state import State
from nebuladb.kv.txn import Txn
from nebuladb.pb.nebula.v1 import kv_pb2, lease_pb2, session_pb2

EXPIRE: Final = Struct(">qQ")
"""Body of a LEASE_EXPIRE."""

DELETION_ROWS: Final = 256
DELETION_BYTES: Final = 1 << 20
"""Rows that a sliced deletion holds in memory before it deletes them, the records of a lease's keys included."""

RECORDED: Final = frozenset(
    (Kind.PUT, Kind.DELETE, Kind.TXN, Kind.COMPACT, Kind.LEASE_GRANT, Kind.LEASE_REVOKE, Kind.LEASE_KEEP_ALIVE)
)
"""Kinds that a session makes exactly-once; the others ignore the session of their header."""


class Unfinished(Exception):
    """The command goes on in the next call."""


class Machine:
    """Runs works; afterwards `state`, `draft` and `applied` hold the outcome, and `hashes` the indexes to hash at."""

    def __init__(
        self,
        source: EngineSource,
        state: State,
        sessions: Sessions,
        node: int,
        limits: Limits,
        findings: Findings,
    ) -> None:
        """`findings`: those of the calls before."""
        self.state = state.copy()
        self.draft = draft = Draft(source, state.floor)
        self.applied = Applied(events=draft.events, leases=draft.leases)
        self.hash_index = 0
        """Not 0: a HASH of this entry came last; what the engine holds after the call is to be hashed (S28)."""
        self._source = source
        self._sessions = sessions
        self._node = node
        self._limits = limits
        self._findings = findings
        self._index = 0
        self._place = 0
        self._hashed = False
        self._examined = 0
        self._run = 0
        """Commands that were run."""

    def run(self, works: Sequence[Work]) -> None:
        """Apply as much of `works` as a slice may hold; those at or below the applied index are passed over."""
        state, applied, last = self.state, self.applied, works[-1].index
        try:
            self._findings.go_on(self._source)
        except Misses as misses:
            applied.wanted = list(misses.rows[: self._ahead])
            applied.partial, works = state.partial, ()
        for work in works:
            if work.index <= state.index:
                continue
            if work.index != state.index + 1:
                raise InvariantViolation(f"entry {work.index} follows entry {state.index}")
            self._index = work.index
            clock = state.clock
            if work.clock > clock:
                state.clock = work.clock
            first = state.place
            done = self._commands(work.commands)
            self._run += (len(work.commands) if done else state.place) - first
            if not done:
                applied.partial = state.partial
                if not applied.partial:
                    state.clock = clock  # it missed a row before it began
                if applied.wanted:
                    self._look_ahead(works)
                break
            state.place = 0
            state.index, state.term = work.index, work.term
            if work.configuration:
                state.configuration = applied.configuration = work.configuration
                break
            if self.hash_index or (work.index < last and self._full()):
                break
        loans = self._source.loans
        if not applied.wanted:
            loans.ahead = min(loans.ahead, FIRST_ROWS)  # what it misses next may be of another kind
            self._findings.forget()
        applied.midway |= bool(state.cursor)
        applied.index, applied.term, applied.revision = state.index, state.term, state.revision
        draft, limits = self.draft, self._limits
        size = (draft.size + draft.held // 2) * limits.slice_rows // limits.slice_bytes
        applied.examined = max(len(draft.rows) + self._examined, self._run, size)
        state.keys += draft.added
        state.size += draft.grown

    def _look_ahead(self, works: Sequence[Work]) -> None:
        """Ask for what later commands will miss too."""
        state, applied = self.state, self.applied
        begun = state.index + 1
        later = (
            command
            for work in works
            if work.index >= begun
            for command in (work.commands[state.place :] if work.index == begun else work.commands)
        )
        ahead = rows_ahead(self._source, later, self._ahead, applied.wanted[0])
        applied.wanted = list(dict.fromkeys((*applied.wanted, *ahead)))

    @property
    def _ahead(self) -> int:
        """Rows that may be asked for at once: a thousand of a MiB would be a GiB of loans. How large they are tells
        the shard's average, and what came last."""
        average = self.state.size // max(self.state.keys, 1) + 1
        return max(1, min(self._source.loans.ahead, FETCH_BYTES // average))

    def _full(self) -> bool:
        limits, draft = self._limits, self.draft
        rows, size = len(draft.rows) + self._examined, draft.size + draft.held // 2
        return max(rows, self._run) >= limits.slice_rows or size >= limits.slice_bytes

    def _commands(self, commands: Sequence[Command]) -> bool:
        """Run an entry's commands from `state.place` on; False if the slice ended before the entry did."""
        count = len(commands)
        if count > MAX_COMMANDS:
            raise InvariantViolation(f"entry {self._index} has {count} commands")
        state, draft, limits = self.state, self.draft, self._limits
        rows = draft.rows
        # One that is refused writes nothing, and takes as long.
        last = state.place + limits.slice_rows - self._run - 1
        self._hashed = state.place > 0 and any(command.kind == Kind.HASH for command in commands[: state.place])
        for place in range(state.place, count):
            self._place = place
            try:
                self._command(commands[place])
            except Misses as misses:
                # It has read and not written yet, so the slice ends before it.
                self.applied.wanted += misses.rows[: self._ahead]
                state.place = place
                return False
            except Buried as met:
                probe("dead rows cleared away")
                draft.bury(met.rows)
                state.place, self.applied.midway = place, True
                return False
            except Unfinished:
                probe("command sliced")
                state.place = place
                return False
            # `_full`, written out: this line runs for every command there is.
            if place + 1 < count and (
                place >= last
                or len(rows) + self._examined >= limits.slice_rows
                or draft.size + draft.held // 2 >= limits.slice_bytes
                or self.hash_index
            ):
                state.place = place + 1
                return False
        return True

    def _command(self, command: Command) -> None:
        handler = _HANDLERS.get(command.kind)
        if handler is None:
            raise InvariantViolation(f"entry {self._index} has a command of unknown kind {command.kind}")
        state = self.state
        in_session = command.session != 0 and command.kind in RECORDED
        answer = first = None
        refusal: NebulaError | None = None
        try:
            # These two are not recorded: after them the request may be tried again and must run then (S20).
            if command.epoch and command.epoch != state.epoch:
                raise WrongEpoch(f"the shard is at epoch {state.epoch}, not {command.epoch}", state.epoch)
            if in_session:
                answer = first = self._sessions.first_answer(self.draft, command)
        except NebulaError as error:
            refusal, in_session = _expected(error), False
        mine = command.origin == self._node and command.origin != 0
        if answer is None:
            result: Result = None
            if refusal is None:
                try:
                    if len(command.body) > MAX_REQUEST_BYTES:
                        check.body(len(command.body))
                    result = handler(self, command)
                except DecodeError:
                    refusal = InvalidArgument("the request can't be decoded")
                except NebulaError as error:
                    refusal = _expected(error)
            if not (mine or in_session):
                return
            answer = Answer(state.revision, result) if refusal is None else _refused(state.revision, refusal)
        if in_session:
            self._sessions.record(self.draft, command, self._stamp, answer if first is None else None)
        if mine:
            self.applied.answers.append((command.request, answer))

    @property
    def _stamp(self) -> int:
        """A number for the command that is running, rising in log order."""
        return self._index * MAX_COMMANDS + self._place

    # --- keys

    def _put(self, command: Command) -> Result:
        request = kv_pb2.PutRequest.FromString(command.body)
        key, value, lease = request.key, request.value, request.lease
        kept = request.ignore_value or request.ignore_lease
        if kept or not key:
            check.put(request)
        draft, state = self.draft, self.state
        if lease:
            draft.require_lease(lease)
        if kept:
            value, lease = draft.kept(request)
        main = state.revision + 1
        previous = draft.put(draft.newest(key), main, 0, key, value, lease)
        state.revision = main
        if previous is None or not request.prev_kv:
            return NO_PREVIOUS
        return PutResult(key_value(key, previous))

    def _delete(self, command: Command) -> Result:
        request = kv_pb2.DeleteRequest.FromString(command.body)
        check.delete(request)
        draft, state = self.draft, self.state
        if not request.range_end or request.prev_kv:
            # Not to be sliced: one key, or an answer as large as what is deleted, hence bounded.
            txn = self._transaction(command)
            try:
                result = txn.delete(request.key, request.range_end, prev_kv=request.prev_kv)
            finally:
                self._examined += txn.budget.examined
            if txn.sub:
                state.revision += 1
            return result
        low, high = draft.keys.span(request.key, request.range_end)
        return DeleteResult(self._delete_all(low, high, KEY_AT))

    def _delete_all(self, low: bytes, high: bytes, key_at: int) -> int:
        """Delete the keys of C or K rows in [low, high), in slices, under one revision; how many (S23).

        Until the last slice they lie under the unpublished revision + 1: reads and watches don't see them gone.
        """
        state, draft = self.state, self.draft
        main = state.revision + 1
        resumed, mark, before = bool(state.cursor), len(draft.events), state.deleted
        if resumed:
            low = low[:key_at] + state.cursor
        last = b""
        while True:
            chunk, whole = self._chunk(low, high)
            try:
                records = self._records(chunk, key_at)
            except Misses as misses:
                if state.deleted == before:
                    raise
                self.applied.wanted += misses.rows
                del draft.events[mark:]
                state.cursor = last + b"\0"
                raise Unfinished from None
            for key, record in records:
                if record.version:
                    draft.delete(main, state.deleted, key, record)
                    state.deleted += 1
                    state.deleted_size += len(key) + len(record.value)
                last = key
            self._examined += len(records)
            if whole and len(records) == len(chunk):
                break
            low = low[:key_at] + last + b"\0"
            if self._full() or len(draft.rows) + self._examined >= self._limits.long_rows:
                del draft.events[mark:]
                state.cursor = last + b"\0"
                raise Unfinished
        if resumed:
            # The feed would need all slices' events in memory; watchers read this revision from history instead.
            del draft.events[mark:]
            self.applied.missing = True
        deleted = state.deleted
        state.cursor, state.deleted, state.deleted_size = b"", 0, 0
        if deleted:
            state.revision = main
        return deleted

    def _chunk(self, low: bytes, high: bytes) -> tuple[list[tuple[bytes, bytes]], bool]:
        """The first rows of [low, high), and whether those are all."""
        most = min(DELETION_ROWS, self._limits.slice_rows)
        chunk: list[tuple[bytes, bytes]] = []
        size = 0
        rows = self.draft.scan(low, high)
        for pair in rows:
            if chunk and (len(chunk) >= most or size >= DELETION_BYTES):
                close(rows)
                return chunk, False
            chunk.append(pair)
            size += len(pair[1])
        return chunk, True

    def _records(self, chunk: Sequence[tuple[bytes, bytes]], key_at: int) -> list[tuple[bytes, Record]]:
        """The keys of C or K rows with their newest records; of K rows `DELETION_BYTES` of records at most, but one.
        Raises `Misses` with those that are on the disk only, as many as may be asked for at once."""
        if key_at == KEY_AT:
            return [(row[key_at:], decode_record(data)) for row, data in chunk]
        # All before the first is deleted: to read one may push another out of the cache, and that can't be undone.
        found: list[tuple[bytes, Record]] = []
        missing: list[bytes] = []
        size, most = 0, self._ahead
        for row, _ in chunk:
            key = row[key_at:]
            try:
                record = self._attached(key)
            except Misses as misses:
                missing += misses.rows
                if len(missing) >= most:
                    break
                continue
            found.append((key, record))
            size += len(record.value)
            if size >= DELETION_BYTES:
                break
        if missing:
            raise Misses(missing)
        return found

    def _attached(self, key: bytes) -> Record:
        record = self.draft.newest(key)
        if record is None or not record.version:
            raise Corruption(f"key {key!r} is attached to a lease and does not exist")
        return record

    def _txn(self, command: Command) -> Result:
        branches = check.txn(kv_pb2.TxnRequest.FromString(command.body))
        txn = self._transaction(command)
        try:
            result = txn.run(branches)
        finally:
            self._examined += txn.budget.examined
        if txn.sub:
            self.state.revision += 1
        return result

    def _transaction(self, command: Command) -> Txn:
        self._findings.begin(self._stamp)
        txn = Txn(self.draft, self.state.revision + 1, look=self._findings.at, bounded=command.bounded)
        txn.budget.dead = Clearing(self._limits.dead_rows)
        return txn

    def _compact(self, command: Command) -> Result:
        """Set the floor, O(1); `Deletion` does the work (S23, etcd 25)."""
        revision = kv_pb2.CompactRequest.FromString(command.body).revision
        state = self.state
        if revision <= state.floor:
            raise Compacted(f"revision {revision} has been compacted; the oldest is {state.floor}", state.floor)
        if revision > state.revision:
            raise FutureRevision(f"revision {revision} has not happened yet; the newest is {state.revision}")
        state.floor = self.draft.floor = revision
        return None

    # --- leases

    @property
    def _leases(self) -> Leases:
        return Leases(self.draft, self.state)

    def _lease_grant(self, command: Command) -> Result:
        request = lease_pb2.LeaseGrantRequest.FromString(command.body)
        return self._leases.grant(request, command.chosen, self._index)

    def _lease_keep_alive(self, command: Command) -> Result:
        request = lease_pb2.LeaseKeepAliveRequest.FromString(command.body)
        return self._leases.keep_alive(request.id, self._index)

    def _lease_revoke(self, command: Command) -> Result:
        lease = lease_pb2.LeaseRevokeRequest.FromString(command.body).id
        self._leases.require(lease)
        return self._revoke(lease)

    def _lease_expire(self, command: Command) -> Result:
        if len(command.body) != EXPIRE.size:
            raise InvalidArgument("an expiry has two numbers")
        lease, renewal = EXPIRE.unpack(command.body)
        row = self._leases.find(lease)
        if row is None or row.renewal != renewal or self.state.clock < row.expires:
            probe("expiry void")  # renewed, or revoked, since the leader saw it due (S27)
            return None
        return self._revoke(lease)

    def _revoke(self, lease: int) -> Result:
        low, high = self.draft.keys.attached(lease)
        self._delete_all(low, high, len(low))
        self._leases.remove(lease)
        return LeaseResult(lease, 0)

    # --- sessions and the rest

    def _session_open(self, command: Command) -> Result:
        session_pb2.SessionOpenRequest.FromString(command.body)
        return SessionResult(self._sessions.open(self.draft, self._stamp, command.chosen))

    def _session_close(self, command: Command) -> Result:
        self._sessions.close(self.draft, session_pb2.SessionCloseRequest.FromString(command.body).id)
        return None

    def _hash(self, _: Command) -> Result:
        # The first of an entry counts: a second one would be another state under the same index, and a node that still
        # has only the first would differ from one that has both.
        if not self._hashed:
            self._hashed = True
            self.hash_index = self._index
        return HashResult(self._index)

    def _clock(self, _: Command) -> Result:
        return None


def _expected(error: NebulaError) -> NebulaError:
    """`error` if it is an answer; raised again if it means that this replica must stop. Its traceback would lead back
    to who keeps it, and keep all that the slice has written until the collector comes."""
    if isinstance(error, StoreError | InvariantViolation):
        raise error
    return error.with_traceback(None)


def _refused(revision: int, error: NebulaError) -> Answer:
    detail = error.floor if isinstance(error, Compacted) else error.epoch if isinstance(error, WrongEpoch) else 0
    return Answer(revision, None, error.reason, detail, error.message)


_HANDLERS: Final[dict[int, Callable[[Machine, Command], Result]]] = {
    Kind.CLOCK: Machine._clock,
    Kind.PUT: Machine._put,
    Kind.DELETE: Machine._delete,
    Kind.TXN: Machine._txn,
    Kind.COMPACT: Machine._compact,
    Kind.LEASE_GRANT: Machine._lease_grant,
    Kind.LEASE_REVOKE: Machine._lease_revoke,
    Kind.LEASE_KEEP_ALIVE: Machine._lease_keep_alive,
    Kind.LEASE_EXPIRE: Machine._lease_expire,
    Kind.SESSION_OPEN: Machine._session_open,
    Kind.SESSION_CLOSE: Machine._session_close,
    Kind.HASH: Machine._hash,
}

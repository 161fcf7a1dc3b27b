"""All else that a client may ask, right or wrong; each answer is the one that a plain model gives (`Judge`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Final, NamedTuple

from nebuladb.errors import Compacted, NebulaError, Outcome, Reason, StoreError, Unavailable
from nebuladb.kv.answer import Answer, KeyValue, LeaseResult, SessionResult
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.limits import MAX_REQUEST_BYTES, MAX_TXN_OPERATIONS
from nebuladb.kv.pin import Pin
from nebuladb.kv.store import Store
from nebuladb.pb.nebula.v1 import kv_pb2, lease_pb2, session_pb2
from nebuladb.sim.actor import Actor
from nebuladb.sim.board import Board
from nebuladb.sim.core import Core
from nebuladb.sim.life import Written
from nebuladb.sim.look import Then
from nebuladb.sim.machine import Machine
from nebuladb.sim.violation import require
from nebuladb.sim.workloads.judge import JUDGED, SESSIONS, Judge, stepped
from nebuladb.sim.workloads.requests import compact
from nebuladb.sim.workloads.shapes import HIGH, LOW, Shapes

PAGE: Final = 3
MAX_PAGES: Final = 40
PAGE_PAUSES_MS: Final = (5, 5, 100)
"""Longest ones between two pages: in the long ones what a pin shows is compacted and would be deleted."""
KEPT: Final = 3
"""Requests of a session whose answers the client says it lacks, though it has them."""
REPEATED: Final = 0.15
"""Share of a session's requests that are one of those again."""
KEYS_ONLY: Final = 0.3
MANY: Final = 1 << 30
GONE: Final = (2, 5)
"""Which of the wrong commands are with a lease and in a session that there never was."""
WRONG_TXNS: Final = 6
"""Kinds of transactions that are refused."""


class _Scan(NamedTuple):
    """One that is under way: `expected` keys at `revision`."""

    source: Pin | Store
    store: Store
    machine: Machine
    revision: int
    expected: int
    pause: int
    """The longest between two pages, ms."""

    def lapsed(self, error: NebulaError) -> bool:
        """Whether a store that is still in use may meet it with `error`: `Compacted` if what it reads is compacted. A
        pin shows that all the same, and is `Unavailable` if it is old, or a key was made anew since."""
        compacted = self.revision < self.store.floor
        if isinstance(self.source, Pin):
            old = self.store.index - self.source.index > self.store._limits.snapshot_age
            return isinstance(error, Unavailable) and (compacted or old)
        return isinstance(error, Compacted) and compacted

    def close(self) -> None:
        """It is over."""
        if isinstance(self.source, Pin):
            self.source.close()


class Explorer(Actor):
    """Transactions of any shape, nested ones too, also such as only read; puts and deletes, leases and sessions of all
    kinds, wrong requests; scans in pages."""

    refusals = frozenset(Reason)

    def __init__(self, core: Core, machines: Sequence[Machine], board: Board, group: int, name: str) -> None:
        super().__init__(core, machines, board, group, name)
        self._session = self._sequence = self._lease = 0
        self._closed = 0
        """A session that it was told to be closed."""
        self._ended = 0
        """A lease that it was told to be no more."""
        self._again: set[int] = set()
        """Leases that it asked for by name, which may come at any time."""
        self._kept: list[tuple[Command, Answer]] = []
        """Of the session, in order; it must keep their answers."""
        self._wrong_commands = wrong_commands()
        self._shapes = Shapes(self._rng)
        self.judge = Judge(board.changes, group, name)

    def _begin(self) -> None:
        draw = self._rng.random()
        self._shapes.revision, self._shapes.lease = self._board.told(self.group), self._lease
        if not self._session and draw < 0.8:
            self._ask(Command(Kind.SESSION_OPEN, b""), self._settle)
        elif self._session and not self._lease and draw < 0.3:
            self._grant(0)
        elif draw < 0.12:
            self._look(self._scan)
        elif draw < 0.2:
            asked = self._shapes.key(), self._rng.randrange(20), self._rng.randrange(-20, 2)
            self._look(partial(self._history, *asked))
        elif draw < 0.35:
            self._look(partial(self._read, self._shapes.txn(writes=False), self._board.told(self.group)))
        elif draw < 0.42:
            self._wrong()
        elif draw < 0.55:
            self._sessions_and_leases()
        elif draw < 0.85:
            self._numbered(Command(Kind.TXN, self._shapes.txn().SerializeToString()))
        else:
            self._numbered(self._put() if draw < 0.93 else self._delete())

    # --- writes ------------------------------------------------------------------------------------------------------

    def _numbered(self, command: Command) -> None:
        """In the session, if there is one; sometimes twice at once: the second is told what the first was."""
        settle = partial(self._settled, command, self._board.told(self.group))
        if not self._session:
            self._ask(command, settle)
            return
        kept = self._kept = [one for one in self._kept[-KEPT:] if one[0].session == self._session]
        if kept and self._rng.random() < REPEATED:
            command, first = self._rng.choice(kept)
            self._ask(command, partial(self._repeated, command, first))
            return
        self._sequence += 1
        lowest = kept[0][0].sequence if kept else self._sequence
        numbered = command._replace(session=self._session, sequence=self._sequence, lowest=lowest)
        keep = partial(self._keep, numbered, settle)
        if self._rng.random() < 0.5:
            answers: list[Answer] = []

            def twice(outcome: Answer | NebulaError) -> None:
                if isinstance(outcome, Answer) and not outcome.reason:
                    answers.append(outcome)
                require(answers[1:] in ([], answers[:1]), f"{self.name}: one request, two answers: {answers}")

            self._ask(numbered, twice)

            def second(outcome: Answer | NebulaError) -> None:
                twice(outcome)
                keep(outcome)

            self._ask(numbered, second)
        else:
            self._ask(numbered, keep)

    def _keep(self, command: Command, settle: Written, outcome: Answer | NebulaError) -> None:
        """Its answer may be asked for again, unless the session took the request for none of its own."""
        if isinstance(outcome, Answer):
            if outcome.reason in SESSIONS:
                self._kept.clear()
            else:
                self._kept.append((command, outcome))
        settle(outcome)

    def _repeated(self, command: Command, first: Answer, outcome: Answer | NebulaError) -> None:
        """A request that was answered is answered the same, whatever the session was asked since (S20)."""
        if isinstance(outcome, Answer) and outcome.reason != Reason.SESSION_EXPIRED:
            same = outcome._replace(message=first.message) == first
            require(same, f"group {self.group}, {self.name}: {command} is answered {outcome}, it had been {first}")
        self._settle(outcome)

    def _settled(self, command: Command, floor: int, outcome: Answer | NebulaError) -> None:
        """What came of a write that may be judged; `floor` had been told when it was asked for."""
        if isinstance(outcome, Answer) and command.kind in JUDGED:
            self.judge.wrote(command, outcome)
            if stepped(outcome.result):
                self._board.wrote(self.group, outcome.revision, floor, f"a write of {self.name}")
            elif not outcome.reason:
                self._board.tell(self.group, outcome.revision, floor, f"a write of {self.name}")
        self._settle(outcome)

    def _settle(self, outcome: Answer | NebulaError) -> None:
        if isinstance(outcome, Answer) and outcome.reason == Reason.SESSION_EXPIRED:
            self._board.session_ended(self.group, self.name)
        if not isinstance(outcome, Answer) or outcome.reason == Reason.SESSION_EXPIRED:
            self._session = 0
        answer = self._done(outcome)
        if answer is None:
            return
        if isinstance(answer.result, SessionResult):
            self._session, self._sequence = answer.result.session, 0
        elif isinstance(answer.result, LeaseResult):
            self._lease = answer.result.lease if answer.result.ttl else 0
            if not self._lease and answer.result.lease not in self._again:
                self._ended = answer.result.lease
        self._ok()

    def _put(self) -> Command:
        put = self._shapes.put(self._shapes.key())
        request = kv_pb2.PutRequest(
            key=put.key, value=put.value, lease=put.lease, prev_kv=put.prev_kv, ignore_value=put.ignore_value,
            ignore_lease=put.ignore_lease,
        )  # fmt: skip
        return Command(Kind.PUT, request.SerializeToString())

    def _delete(self) -> Command:
        request = kv_pb2.DeleteRequest(key=self._shapes.key(), prev_kv=self._rng.random() < 0.7)
        if self._rng.random() < 0.5:
            request.range_end = HIGH
        return Command(Kind.DELETE, request.SerializeToString())

    def _sessions_and_leases(self) -> None:
        draw = self._rng.randrange(6)
        if draw == 0 and self._session:
            self._close_session()
        elif draw < 3 or not self._lease:
            if self._session and draw == 1:
                self._numbered(compact(1))  # refused unless it is the first
            elif self._session:
                again = self._lease if draw == 2 else 0  # refused, if it lives
                self._grant(again)
            else:
                self._ask(Command(Kind.SESSION_OPEN, b""), self._settle)
        elif draw == 3:
            put = kv_pb2.PutRequest(key=self._shapes.key(), value=b"leased", lease=self._lease, prev_kv=True)
            self._numbered(Command(Kind.PUT, put.SerializeToString()))
        elif draw == 4:
            keep = lease_pb2.LeaseKeepAliveRequest(id=self._lease).SerializeToString()
            self._numbered(Command(Kind.LEASE_KEEP_ALIVE, keep))
        else:
            revoke = lease_pb2.LeaseRevokeRequest(id=self._lease).SerializeToString()
            self._numbered(Command(Kind.LEASE_REVOKE, revoke))

    def _close_session(self) -> None:
        session, self._session = self._session, 0

        def closed(outcome: Answer | NebulaError) -> None:
            if isinstance(outcome, Answer):
                self._closed = session
            self._settle(outcome)

        body = session_pb2.SessionCloseRequest(id=session).SerializeToString()
        self._ask(Command(Kind.SESSION_CLOSE, body), closed)

    def _grant(self, lease: int) -> None:
        self._again.add(lease)
        if self._ended == lease:
            self._ended = 0
        grant = lease_pb2.LeaseGrantRequest(id=lease, ttl=1 + self._rng.randrange(60))
        self._numbered(Command(Kind.LEASE_GRANT, grant.SerializeToString()))

    def _wrong(self) -> None:
        """Refused by every replica alike, and certainly not done (S22)."""
        number = self._rng.randrange(len(self._wrong_commands) + WRONG_TXNS)
        if (self._ended or self._closed) and self._rng.random() < 0.5:
            number = self._rng.choice(GONE)
        command = self._wrong_request(number)

        def refused(outcome: Answer | NebulaError) -> None:
            if isinstance(outcome, Answer):
                require(outcome.reason != 0, f"{self.name}: {command} was not refused")
                self._failed()
            elif outcome.outcome is Outcome.UNKNOWN:
                self._unknown()
            else:
                self._failed()

        self._ask(command, refused)

    def _wrong_request(self, number: int) -> Command:
        if number >= len(self._wrong_commands):
            return self._wrong_txn(number - len(self._wrong_commands))
        command = self._wrong_commands[number]
        # Of a session, or with a lease, that there never was, or of one that is no more.
        if number == GONE[0] and self._ended:
            command = command._replace(body=kv_pb2.PutRequest(key=LOW, lease=self._ended).SerializeToString())
        return command._replace(session=self._closed) if command.session and self._closed else command

    @staticmethod
    def _wrong_txn(number: int) -> Command:
        txn, twice = kv_pb2.TxnRequest(), kv_pb2.TxnPut(key=LOW)
        match number:
            case 0:
                txn.success.add(put=twice)
                txn.success.add(put=twice)
            case 1:
                txn.success.add(put=twice)
                txn.success.add(delete=kv_pb2.TxnDelete(key=LOW, range_end=HIGH))
            case 2:
                txn.failure.add()
            case 3:
                txn.compare.add(key=LOW, result=77)  # a newer client's
            case 4:
                txn.compare.add(key=LOW, target=77)
            case _:
                for key in range(MAX_TXN_OPERATIONS + 1):
                    txn.failure.add(put=kv_pb2.TxnPut(key=b"%d" % key))
        return Command(Kind.TXN, txn.SerializeToString())

    # --- reads -------------------------------------------------------------------------------------------------------

    def _read(self, request: kv_pb2.TxnRequest, floor: int, store: Store, machine: Machine) -> Then:
        """A transaction that writes nothing needs no log entry (etcd 23): it sees a revision no older than was told."""
        self.judge.read(store, request)
        self._board.tell(self.group, store.revision, floor, f"a transaction of {self.name} on {machine.name}")
        return self._ok

    def _history(self, key: bytes, back: int, ahead: int, store: Store, _: Machine) -> Then:
        """Reads of the past, and of a lease."""
        one, some = store.revision - back, store.revision + ahead
        try:
            found = store.get(key, one)
            self._was(store, one, key, key + b"\0", [found] if found else [])
            kvs = store.range(LOW, HIGH, revision=some, limit=2).kvs
            self._was(store, some, LOW, HIGH, kvs, limit=2)
            self._leased(store)
        except StoreError:
            raise
        except NebulaError as error:
            self._rightly_unreadable(store, error, one, some)
            return self._failed
        return self._ok

    def _rightly_unreadable(self, store: Store, error: NebulaError, *revisions: int) -> None:
        """A read of one of `revisions` met `error`: it is compacted, or to come, or an entry is half applied."""
        compacted = any(0 < revision < store.floor for revision in revisions)
        future = any(revision > store.revision for revision in revisions)
        right = {Reason.COMPACTED: compacted, Reason.FUTURE_REVISION: future, Reason.UNAVAILABLE: True}
        where = f"group {self.group}, {self.name}: of {store.floor} to {store.revision} a read at {revisions}"
        require(right.get(error.reason, False), f"{where} is refused: {error!r}")

    def _was(
        self, store: Store, revision: int, low: bytes, high: bytes, found: Sequence[KeyValue], limit: int = MANY
    ) -> None:
        """`store` says that [`low`, `high`) began with `found` at `revision`; at or below 0: now."""
        revision = revision if revision > 0 else store.revision
        where = f"group {self.group}, {self.name}"
        require(
            store.floor <= revision <= store.revision,
            f"{where}: revision {revision} is read where {store.floor} to {store.revision} are to be had",
        )
        self._reads(found, revision, low, high, limit=limit)

    def _reads(
        self,
        found: Sequence[KeyValue],
        revision: int,
        low: bytes,
        high: bytes,
        *,
        limit: int = MANY,
        keys_only: bool = False,
    ) -> None:
        """It is told that [`low`, `high`) began with `found` at `revision`."""
        contents = self._board.changes.contents(self.group, revision, low, high)
        if contents is not None:
            wanted = [contents[key]._replace(value=b"") if keys_only else contents[key] for key in sorted(contents)]
            where = f"group {self.group}, {self.name}: from {low!r} at revision {revision}"
            require([*found] == wanted[:limit], f"{where} it reads {found}, it was {wanted[:limit]}")

    def _leased(self, store: Store) -> None:
        """What `store` says of the lease: its keys, and a time that is left."""
        info = store.lease(self._lease)
        contents = self._board.changes.contents(self.group, store.revision, b"\0", b"\xff")
        if info is not None and contents is not None:
            keys = tuple(key for key in sorted(contents) if contents[key].lease == self._lease)
            attached = store.attached(self._lease)
            said = tuple(attached.read())
            attached.close()
            right = said == keys and 0 <= info.remaining < info.ttl
            what = f"lease {self._lease} is {info} with {said}, its keys are {keys}"
            require(right, f"group {self.group}, {self.name}: {what}")

    def _scan(self, store: Store, machine: Machine) -> None:
        """Page by page, over many turns, as one revision; pinned, or refused when that is compacted meanwhile (S24)."""
        try:
            source: Pin | Store = store.pin() if self._rng.random() < 0.5 else store
        except NebulaError:
            self._failed()
            return
        expected = store.scan(b"\0", b"\xff", limit=0, max_rows=1 << 30).counted
        pause = self._rng.choice(PAGE_PAUSES_MS)
        self._next_page(_Scan(source, store, machine, store.revision, expected, pause), b"\0", 0, MAX_PAGES)

    def _next_page(self, scan: _Scan, low: bytes, count: int, left: int) -> None:
        source, keys_only = scan.source, self._rng.random() < KEYS_ONLY
        try:
            gone = scan.machine.store(self.group) is not scan.store
        except NebulaError:
            gone = True
        try:
            if isinstance(source, Pin):
                page = source.scan(low, b"\xff", limit=PAGE, keys_only=keys_only)
            else:
                page = source.scan(low, b"\xff", limit=PAGE, revision=scan.revision, keys_only=keys_only)
        except NebulaError as error:
            require(
                gone or scan.machine.spoiled or scan.lapsed(error),
                f"group {self.group}, {self.name}: a scan of revision {scan.revision} meets {error!r}",
            )
            scan.close()
            self._failed()
            return
        if gone:
            scan.close()
            self._failed()
            return
        count += len(page.kvs)
        self._reads(page.kvs, scan.revision, low, page.cursor or b"\xff", keys_only=keys_only)
        if page.cursor and left:
            pause = 1 + self._rng.randrange(scan.pause)
            self._core.scheduler.after(pause, self._next_page, scan, page.cursor, count, left - 1)
            return
        scan.close()
        wanted = scan.expected
        require(bool(page.cursor) or count == wanted, f"{self.name}: a scan found {count} keys of {wanted}")
        self._ok()


@cache
def wrong_commands() -> list[Command]:
    """Refused, each for a reason of its own."""
    plain = kv_pb2.PutRequest(key=LOW).SerializeToString()
    return [
        Command(Kind.PUT, b"\xff\xff\xff"),
        Command(Kind.PUT, kv_pb2.PutRequest(value=b"x").SerializeToString()),
        Command(Kind.PUT, kv_pb2.PutRequest(key=LOW, lease=1).SerializeToString()),
        Command(Kind.PUT, kv_pb2.PutRequest(key=LOW, value=bytes(MAX_REQUEST_BYTES)).SerializeToString()),
        Command(Kind.PUT, plain, epoch=77),
        Command(Kind.PUT, plain, session=7, sequence=1),
        Command(Kind.PUT, kv_pb2.PutRequest(key=LOW, lease=-1).SerializeToString()),
        Command(Kind.LEASE_GRANT, lease_pb2.LeaseGrantRequest(ttl=1 << 60).SerializeToString()),
        Command(Kind.SESSION_CLOSE, session_pb2.SessionCloseRequest(id=7).SerializeToString()),
        Command(Kind.COMPACT, kv_pb2.CompactRequest(revision=1 << 50).SerializeToString()),
    ]

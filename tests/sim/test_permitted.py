"""What may be refused, forgotten or ended, and what may not: the oracles object to each that was nobody's wish."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import cast

import pytest

from nebuladb.errors import Compacted, Corruption, FutureRevision, NebulaError, Reason, Unavailable, UnknownOutcome
from nebuladb.kv import sessions
from nebuladb.kv.answer import Answer, SessionResult
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.loans import Misses
from nebuladb.kv.store import Store
from nebuladb.node.looks import Looks
from nebuladb.node.retention import Rule
from nebuladb.pb.nebula.v1 import session_pb2
from nebuladb.sim.board import Board
from nebuladb.sim.client import Client
from nebuladb.sim.core import Core
from nebuladb.sim.faults import FETCH_MS, Faults
from nebuladb.sim.invariants.changes import Changes
from nebuladb.sim.invariants.floors import Floors
from nebuladb.sim.look import Look, Then
from nebuladb.sim.loop import Loop
from nebuladb.sim.machine import Machine
from nebuladb.sim.process import SlowFetcher
from nebuladb.sim.session_client import SessionClient
from nebuladb.sim.trace import Trace
from nebuladb.sim.uses import Uses
from nebuladb.sim.violation import Violation
from nebuladb.sim.workloads.compactor import Compactor
from nebuladb.sim.workloads.explorer import Explorer, _Scan
from nebuladb.storage.memory import MemoryEngine
from tests.unit.kv.helpers import GROUP, Log, compact, fresh, put, run


def world() -> Core:
    return Core(1, Faults(), Trace())


# --- history ---------------------------------------------------------------------------------------------------------


def floors(*rules: Rule, jump: bool = False) -> Floors:
    """Of a group whose revision r was published at r seconds."""
    found = Floors(clocks_jump=jump)
    for revision in range(2, 11):
        found.published(GROUP, revision, 1_000 * revision)
    for rule in rules:
        found.rule(rule)
    return found


def test_history_is_compacted_as_far_as_somebody_asked() -> None:
    found = floors()
    found.asked(GROUP, 11)  # it is to come, so it is refused
    found.asked(GROUP, 5)
    found.seen(GROUP, 5, 10_000)
    with pytest.raises(Violation, match="compacted at 6; 5 is the highest"):
        found.seen(GROUP, 6, 10_000)


@pytest.mark.parametrize(
    ("rule", "jump", "highest"),
    [
        (Rule(), False, 1),
        (Rule(revisions=3), False, 7),
        (Rule(period=2_000), False, 8),
        (Rule(period=2_000), True, 10),
    ],
)
def test_history_is_compacted_as_far_as_a_rule_says(rule: Rule, jump: bool, highest: int) -> None:
    found = floors(rule, jump=jump)
    found.seen(GROUP, highest, 10_000)
    with pytest.raises(Violation, match=f"compacted at {highest + 1}"):
        found.seen(GROUP, highest + 1, 10_000)


# --- what was -------------------------------------------------------------------------------------------------------


def explorer() -> Explorer:
    return Explorer(world(), [], Board(Changes()), GROUP, "any1")


def compacted_at(floor: int) -> Store:
    (store, _), log = fresh(), Log()
    for _ in range(9):
        run(store, log, put(b"k", b""))
    run(store, log, compact(floor))
    return store


def test_a_read_of_what_there_is_is_not_refused() -> None:
    store, asks = compacted_at(4), explorer()
    newest = store.revision
    asks._rightly_unreadable(store, Compacted("", 4), 3, 5)
    asks._rightly_unreadable(store, FutureRevision(""), 5, newest + 1)
    asks._rightly_unreadable(store, Unavailable(), 5)
    for wrong in (Compacted("", 4), FutureRevision("")):
        with pytest.raises(Violation, match="is refused"):
            asks._rightly_unreadable(store, wrong, 4, newest)


def test_a_scan_is_broken_off_only_where_what_it_reads_is_compacted_or_long_ago() -> None:
    store = compacted_at(4)
    pin = store.pin()

    def scan(revision: int, *, pinned: bool) -> _Scan:
        return _Scan(pin if pinned else store, store, cast("Machine", None), revision, 1, 5)

    assert scan(3, pinned=False).lapsed(Compacted("", 4))
    assert not scan(4, pinned=False).lapsed(Compacted("", 4))
    assert not scan(3, pinned=False).lapsed(Unavailable())
    assert scan(3, pinned=True).lapsed(Unavailable())
    assert not scan(4, pinned=True).lapsed(Unavailable())
    assert not scan(3, pinned=True).lapsed(Compacted("", 4))
    pin.index -= store._limits.snapshot_age + 1
    assert scan(4, pinned=True).lapsed(Unavailable())


# --- writes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "reason", "allowed"),
    [
        (Client, Reason.KEY_NOT_FOUND, False),
        (SessionClient, Reason.SESSION_EXPIRED, True),
        (SessionClient, Reason.SESSION_WINDOW, False),
        (Compactor, Reason.COMPACTED, True),
        (Compactor, Reason.FUTURE_REVISION, False),
    ],
)
def test_a_write_is_refused_only_for_what_its_client_must_expect(
    kind: type[Client], reason: Reason, allowed: bool
) -> None:
    client = kind(world(), [], Board(Changes()), GROUP, "c")
    refused = Answer(5, None, reason)
    if allowed:
        assert client._done(refused) is None
    else:
        with pytest.raises(Violation, match="refused that may not be"):
            client._done(refused)


# --- sessions --------------------------------------------------------------------------------------------------------

ROOM = 2
EXPIRED = Answer(9, None, Reason.SESSION_EXPIRED)


class Clients:
    """Who tell `Uses` what they do, a moment after another."""

    def __init__(self) -> None:
        self.uses = Uses(GROUP)
        self._now = 0

    def ask(self, command: Command) -> Callable[[Answer | NebulaError], None]:
        self._now += 1
        use = self.uses.begins(command, self._now)
        assert use is not None

        def told(outcome: Answer | NebulaError) -> None:
            self._now += 1
            self.uses.ends(use, outcome, self._now, "c")

        return told

    def open(self, session: int) -> None:
        self.ask(Command(Kind.SESSION_OPEN, b""))(Answer(1, SessionResult(session)))

    def use(self, session: int, outcome: Answer | NebulaError) -> None:
        self.ask(Command(Kind.PUT, b"", session=session, sequence=1))(outcome)


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> Clients:
    monkeypatch.setattr(sessions, "MAX_SESSIONS", ROOM)
    found = Clients()
    for session in (1, 2, 3):
        found.open(session)
    return found


def test_of_more_sessions_than_have_room_the_one_used_last_stays(clients: Clients) -> None:
    clients.use(1, EXPIRED)
    with pytest.raises(Violation, match="session 3 has ended, and only 0 others"):
        clients.use(3, EXPIRED)


def test_a_session_that_was_used_ends_only_after_as_many_others(clients: Clients) -> None:
    clients.use(2, Answer(5))
    clients.use(3, Answer(6))
    with pytest.raises(Violation, match="session 2 has ended, and only 1 others"):
        clients.use(2, EXPIRED)
    clients.open(4)
    clients.use(2, EXPIRED)


def test_a_use_whose_outcome_nobody_knows_may_come_at_any_time(clients: Clients) -> None:
    clients.use(1, UnknownOutcome())
    clients.use(2, Unavailable())
    clients.use(3, Answer(5))
    with pytest.raises(Violation, match="only 1 others"):
        clients.use(3, EXPIRED)
    clients.ask(Command(Kind.SESSION_OPEN, b""))
    clients.use(3, EXPIRED)


def test_a_session_that_was_closed_or_never_was_may_be_said_to_have_ended(clients: Clients) -> None:
    clients.use(7, EXPIRED)
    closing = Command(Kind.SESSION_CLOSE, session_pb2.SessionCloseRequest(id=3).SerializeToString())
    assert clients.uses.begins(closing, 99) is None
    clients.use(3, EXPIRED)


# --- reads that take the disk ----------------------------------------------------------------------------------------


class ColdStore:
    """Its rows are on the disk only."""

    def __init__(self) -> None:
        self.borrowed: list[bytes] = []
        self.rows: dict[bytes, bytes | None] = {}

    def borrow(self, rows: Sequence[bytes]) -> None:
        self.borrowed += rows

    def supply(self, rows: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        self.rows.update(zip(rows, values, strict=True))

    def give_back(self, rows: Sequence[bytes]) -> None:
        for row in rows:
            self.borrowed.remove(row)

    def get(self, row: bytes) -> bytes | None:
        if row not in self.rows:
            raise Misses([row])
        return self.rows[row]


class ColdDisk:
    def chill(self, _: Random, cold: Container[bytes]) -> None: ...

    def warm(self) -> None: ...

    def get_many(self, rows: Sequence[bytes]) -> list[bytes | None]:
        if b"bad" in rows:
            raise Corruption("damage")
        return [row.upper() for row in rows]


class ColdMachine:
    name, spoiled = "n1", False

    def __init__(self, core: Core) -> None:
        self.disk = ColdDisk()
        self.stores: Sequence[ColdStore] = [ColdStore()]
        loop = Loop(core, Random(1), lambda action: action(), lambda: 1)
        with loop:
            looks = Looks(
                SlowFetcher(core, cast("MemoryEngine", self.disk), Random(1)),
                cast("Callable[[int], Store]", self.store),
            )
        self.process = SimpleNamespace(loop=loop, looks=looks)

    def store(self, _: int) -> ColdStore:
        if not self.stores:
            raise Unavailable
        return self.stores[-1]


def test_a_clients_read_waits_for_what_is_on_the_disk_only() -> None:
    core, found, failed = world(), list[bytes | None](), list[str]()
    machine = ColdMachine(core)

    def look(second: bytes = b"b") -> None:
        def read(store: Store) -> Then:
            cold = cast("ColdStore", store)
            return partial(found.extend, [cold.get(b"a"), cold.get(second)])

        given = core, Random(1), cast("Machine", machine), GROUP, read
        Look(*given, lambda then: then(), lambda: failed.append("")).begin()

    def passes() -> None:
        core.scheduler.run(core.scheduler.now + 10 * FETCH_MS)

    look()
    (store,) = machine.stores
    passes()
    assert (found, failed, store.borrowed) == ([b"A", b"B"], [], [])
    assert core.report.faults["cold read"] == 2

    for gone in ([ColdStore()], []):  # another generation took its place; the node stands still
        machine.stores = [store := ColdStore()]
        look()
        machine.stores = gone
        passes()
        assert (failed.pop(), failed, store.borrowed, len(found)) == ("", [], [], 2)

    machine.stores, machine.spoiled = [ColdStore()], True
    look(b"bad")  # damage is never served
    passes()
    assert (failed.pop(), failed, len(found)) == ("", [], 2)
    machine.stores, machine.spoiled = [ColdStore()], False
    look(b"bad")
    with pytest.raises(Corruption):
        passes()

    machine.stores = [store := ColdStore()]
    look()
    machine.process.loop.close()  # the node died
    passes()
    assert (failed.pop(), failed, store.borrowed, len(found)) == ("", [], [], 2)


def test_reads_are_refused_only_where_there_are_as_many_as_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    core, failed = world(), list[str]()
    machine = ColdMachine(core)

    def look() -> None:
        def read(store: Store) -> None:
            cast("ColdStore", store).get(b"a")

        Look(
            core, Random(1), cast("Machine", machine), GROUP, read, lambda then: then(), lambda: failed.append("")
        ).begin()

    monkeypatch.setattr("nebuladb.node.looks.MAX_LOOKS", 1)
    look()
    look()
    assert failed == [""]
    core.scheduler.run(10 * FETCH_MS)
    machine.stores = [ColdStore()]
    look()
    assert failed == [""]

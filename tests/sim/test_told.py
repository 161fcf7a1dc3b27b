"""What watches, sessions, leases and reads of the past tell a client: the oracles object to every part of a lie."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from nebuladb.errors import Reason
from nebuladb.kv import sessions
from nebuladb.kv.answer import Answer, KeyValue
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.store import Store
from nebuladb.kv.watch import WatchHub
from nebuladb.kv.watcher import Event, EventBatch
from nebuladb.node.applier import GroupData
from nebuladb.node.meta import Meta
from nebuladb.raft import StateRole
from nebuladb.sim.board import Board
from nebuladb.sim.core import Core
from nebuladb.sim.faults import Faults
from nebuladb.sim.invariants.changes import Asked, Changes
from nebuladb.sim.machine import Machine
from nebuladb.sim.recovery import Recovery
from nebuladb.sim.session_client import SessionClient
from nebuladb.sim.trace import Trace
from nebuladb.sim.violation import Violation
from nebuladb.sim.workloads.explorer import Explorer
from nebuladb.sim.workloads.keyspaces import Maker
from nebuladb.sim.workloads.lease import LOCK, TTL, Leaseholder, Lock
from nebuladb.sim.workloads.watch import Observer
from tests.unit.kv.helpers import GROUP, Log, compact, delete, finish, fresh, grant, put, revoke, run

ALL = Asked(b"\0", b"\xff")


def written(*commands: Command) -> tuple[Store, Log, Changes]:
    """A store that has run them from revision 1 on, and what it published."""
    (store, _), log, changes = fresh(), Log(), Changes()
    changes.published(GROUP, store)
    for command in commands:
        run(store, log, command)
        changes.published(GROUP, store)
    return store, log, changes


def batch(revision: int, kv: KeyValue, previous: KeyValue | None = None, *, deleted: bool = False) -> EventBatch:
    return EventBatch(revision, (Event(kv, deleted, previous),))


def explorer(changes: Changes) -> Explorer:
    """Without a cluster."""
    return Explorer(Core(1, Faults(), Trace()), [], Board(changes), GROUP, "any1")


def observer(changes: Changes) -> Observer:
    return Observer(Core(1, Faults(), Trace()), [], Board(changes), GROUP, "watch1")


# --- reads -----------------------------------------------------------------------------------------------------------


def test_a_read_of_one_key_is_what_that_was_at_its_revision() -> None:
    store, _, changes = written(put(b"k", b"1"), put(b"k", b"2"), delete(b"gone"))

    class Stale:
        """Of the newest revision, with a row that was read before."""

        revision = store.revision

        def __init__(self, value: KeyValue | None) -> None:
            self.get = {b"k": value}.get

    assert changes.read(GROUP, store, b"k", "r") == KeyValue(b"k", 2, 3, 2, 0, b"2")
    assert changes.read(GROUP, store, b"gone", "r") is None
    for stale in (KeyValue(b"k", 2, 2, 1, 0, b"1"), None):
        with pytest.raises(Violation, match="at revision 3 it reads"):
            changes.read(GROUP, cast("Store", Stale(stale)), b"k", "r")


# --- watches ---------------------------------------------------------------------------------------------------------


def test_an_event_has_all_of_the_key_and_of_what_it_was() -> None:
    store, _, changes = written(grant(7), put(b"k", b"1"), put(b"k", b"2", 7), delete(b"k"))
    first = KeyValue(b"k", 2, 2, 1, 0, b"1")
    second = KeyValue(b"k", 2, 3, 2, 7, b"2")
    gone = KeyValue(b"k", 0, 4, 0, 0, b"")
    asked = ALL._replace(prev_kv=True)
    changes.told(GROUP, batch(2, first), 1, asked, 0, "w")
    changes.told(GROUP, batch(3, second, first), 2, asked, 0, "w")
    changes.told(GROUP, batch(3, second), 2, ALL, 0, "w")
    changes.told(GROUP, batch(4, gone, second, deleted=True), 3, asked, 0, "w")
    changes.told(GROUP, batch(3, second), 2, asked, 3, "compacted up to there")
    for wrong in (
        second._replace(lease=0),
        second._replace(create_revision=3),
        second._replace(version=1),
        second._replace(value=b"1"),
    ):
        with pytest.raises(Violation, match="it was"):
            changes.told(GROUP, batch(3, wrong, first), 2, asked, 0, "w")
    for previous in (None, second, first._replace(value=b"x")):
        with pytest.raises(Violation, match="before that"):
            changes.told(GROUP, batch(3, second, previous), 2, asked, 0, "w")
    with pytest.raises(Violation, match="before that"):
        changes.told(GROUP, batch(3, second, first), 2, ALL, 0, "not asked for")
    assert store.revision == 4


def test_what_a_filter_leaves_out_is_not_told_and_all_else_is() -> None:
    _, _, changes = written(put(b"k", b"1"), delete(b"k"), put(b"k", b"2"))
    no_put, no_delete = ALL._replace(no_put=True), ALL._replace(no_delete=True)
    gone = KeyValue(b"k", 0, 3, 0, 0, b"")
    changes.told(GROUP, batch(3, gone, deleted=True), 1, no_put, 0, "w")
    changes.complete(GROUP, 3, 4, no_put, "w")
    changes.complete(GROUP, 2, 3, no_delete, "w")
    with pytest.raises(Violation, match="never told of revision 3"):
        changes.complete(GROUP, 1, 4, no_put, "w")
    with pytest.raises(Violation, match="never told of revision 4"):
        changes.complete(GROUP, 2, 4, no_delete, "w")
    with pytest.raises(Violation, match="it was"):
        changes.told(GROUP, batch(3, gone, deleted=True), 2, no_delete, 0, "w")


def test_a_watch_is_canceled_only_where_what_it_wants_is_compacted() -> None:
    store, log, changes = written(*[put(b"k", b"%d" % n) for n in range(9)])
    hub = WatchHub(store)
    data = GroupData(store, hub)
    watching = observer(changes)
    watching.after = 3
    run(store, log, compact(6))
    watching._rightly_canceled(6, data, hub, "w")
    watching._rightly_canceled(6, None, hub, "the group is gone")
    watching._rightly_canceled(0, None, hub, "the group is gone")
    watching._rightly_canceled(0, GroupData(store, WatchHub(store)), hub, "and came back")
    with pytest.raises(Violation, match="canceled"):
        watching._rightly_canceled(7, data, hub, "not compacted so far")
    with pytest.raises(Violation, match="canceled"):
        watching._rightly_canceled(0, data, hub, "the group is there")
    watching.after = 5
    with pytest.raises(Violation, match="canceled"):
        watching._rightly_canceled(6, data, hub, "all that it wants is there")


# --- reads of the past -----------------------------------------------------------------------------------------------


def test_a_read_of_the_past_is_compared() -> None:
    store, log, changes = written(put(b"any/1", b"1"), put(b"any/2", b"2"), put(b"any/1", b"3"))
    asks = explorer(changes)
    low, high = b"any/", b"any0"
    asks._was(store, 3, low, high, store.range(low, high, revision=3).kvs)
    asks._was(store, 0, low, high, store.range(low, high).kvs)
    asks._was(store, 3, low, high, store.range(low, high, revision=3).kvs[:1], limit=1)
    for wrong in (store.range(low, high).kvs, store.range(low, high, revision=3).kvs[:1], ()):
        with pytest.raises(Violation, match="it was"):
            asks._was(store, 3, low, high, wrong)
    with pytest.raises(Violation, match="to be had"):
        asks._was(store, 5, low, high, ())
    run(store, log, compact(3))
    asks._was(store, 3, low, high, store.range(low, high, revision=3).kvs)
    with pytest.raises(Violation, match="to be had"):
        asks._was(store, 2, low, high, ())


def test_a_page_of_a_scan_is_compared() -> None:
    store, _, changes = written(put(b"any/1", b"1"), put(b"any/2", b"2"), put(b"any/1", b"3"))
    asks = explorer(changes)
    then, now = store.scan(b"\0", b"\xff", revision=3).kvs, store.scan(b"\0", b"\xff").kvs
    keys = store.scan(b"\0", b"\xff", revision=3, keys_only=True).kvs
    asks._reads(then, 3, b"\0", b"\xff", keys_only=False)
    asks._reads(keys, 3, b"\0", b"\xff", keys_only=True)
    asks._reads(then[:1], 3, b"\0", b"any/2", keys_only=False)
    for wrong in (now, keys, then[:1], (*then, then[0])):
        with pytest.raises(Violation, match="it was"):
            asks._reads(wrong, 3, b"\0", b"\xff", keys_only=False)


def test_what_is_said_of_a_lease_is_compared() -> None:
    store, _, changes = written(grant(7, 10), put(b"any/1", b"", 7), put(b"any/2", b"", 7), put(b"any/1"))
    asks = explorer(changes)
    asks._lease = 7
    asks._leased(store)
    right = store.lease(7)
    assert right is not None
    for wrong, keys in (
        (right, ()),
        (right, (b"any/1", b"any/2")),
        (right._replace(remaining=10), (b"any/2",)),
        (right._replace(remaining=-1), (b"any/2",)),
    ):
        view = SimpleNamespace(read=lambda keys=keys: keys, close=lambda: None)
        lying = SimpleNamespace(
            revision=store.revision, lease=lambda _, wrong=wrong: wrong, attached=lambda _, view=view: view
        )
        with pytest.raises(Violation, match="lease 7 is"):
            asks._leased(cast("Store", lying))


# --- sessions --------------------------------------------------------------------------------------------------------


def test_a_session_ends_only_where_there_was_no_room_for_all() -> None:
    board = Board(Changes())
    board.opened[GROUP] = vars(sessions)["MAX_SESSIONS"]
    with pytest.raises(Violation, match="its session has ended"):
        board.session_ended(GROUP, "sessions1")
    board.opened[GROUP] += 1
    board.session_ended(GROUP, "sessions1")


def test_clients_with_sessions_report_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    expired = Answer(5, None, Reason.SESSION_EXPIRED)
    asks = explorer(Changes())
    asks._session = 9
    with pytest.raises(Violation, match="its session has ended"):
        asks._settle(expired)
    client = SessionClient(Core(1, Faults(), Trace()), [], Board(Changes()), GROUP, "sessions1")
    monkeypatch.setattr(client, "_ask", lambda _, written: written(expired))
    with pytest.raises(Violation, match="its session has ended"):
        client._submit(Command(Kind.PUT, b""), lambda _: None)


def test_a_request_has_one_answer_as_long_as_its_client_says_that_it_lacks_it() -> None:
    asks = explorer(Changes())
    asks._session = 9
    command, first = Command(Kind.DELETE, b"", session=9, sequence=4, lowest=4), Answer(7)
    asks._keep(command, lambda _: None, first)
    assert asks._kept == [(command, first)]
    asks._repeated(command, first, first)
    for wrong in (Answer(8), Answer(7, None, Reason.SESSION_WINDOW)):
        with pytest.raises(Violation, match="it had been"):
            asks._repeated(command, first, wrong)
    asks._keep(command, lambda _: None, Answer(7, None, Reason.SESSION_WINDOW))
    assert asks._kept == []


# --- leases ----------------------------------------------------------------------------------------------------------


def test_who_gets_the_lock_while_another_is_sure_of_it_is_a_violation_unless_it_is_told_too_late() -> None:
    one, other = (cast("Leaseholder", SimpleNamespace(name=name, until=1_000)) for name in ("one", "other"))
    lock = Lock(GROUP)
    lock.acquired(one, 5, 0, 900)
    with pytest.raises(Violation, match="holds it with token 5"):
        lock.acquired(other, 6, 5, 1_000)
    # It had asked first and got it, its lease ended, and the answer came behind all that (seed 200133).
    other.until = 899  # type: ignore[misc]
    lock.acquired(other, 3, 0, 900)
    with pytest.raises(Violation, match="after token 5"):
        lock.acquired(other, 4, 5, 900)
    third = cast("Leaseholder", SimpleNamespace(name="third", until=2_000))
    with pytest.raises(Violation, match="holds it with token 5"):
        lock.acquired(third, 6, 5, 1_000)
    lock.acquired(third, 6, 5, 1_001)


def test_recovery_waits_for_the_end_of_leases_and_finds_what_they_left() -> None:
    store, log, _ = written(grant(7, TTL), grant(8, 60), put(LOCK, b"", 7), put(b"lease/a/1", b"", 7))
    raft = SimpleNamespace(role=StateRole.FOLLOWER, last_index=9)
    host = SimpleNamespace(replicas={GROUP: SimpleNamespace(raft=raft, applied=8)})
    node = SimpleNamespace(groups={GROUP: GroupData(store, WatchHub(store))}, host=host)
    machines = [cast("Machine", SimpleNamespace(node=one)) for one in (None, node)]
    recovery = cast("Recovery", SimpleNamespace(_machines=machines, _groups=[GROUP]))
    for left in (LOCK, b"lease/a/1"):
        with pytest.raises(Violation, match="have ended"):
            Lock(GROUP).holds(store)
        run(store, log, delete(left))
    Lock(GROUP).holds(store)
    run(store, log, revoke(7))
    finish(store)
    assert not Recovery._leases_end(recovery)  # nobody leads
    raft.role = StateRole.LEADER
    assert not Recovery._leases_end(recovery)  # there is more to apply
    raft.last_index = 8
    assert Recovery._leases_end(recovery)
    run(store, log, grant(9, TTL))
    assert not Recovery._leases_end(recovery)


# --- recovery --------------------------------------------------------------------------------------------------------


def test_who_began_a_drop_is_not_idle_before_it_is_done() -> None:
    """Else the drop, whose outcome its asker doesn't know, might come when recovery counts on the groups."""
    world = Core(1, Faults(churn_every=1), Trace())
    maker = Maker(world, [], Board(Changes()), "maker", lambda _: None, lambda _: None)
    maker.stopped, maker._dropping = True, "user1"
    begun: list[bool] = []
    for end in (maker._unknown, maker._ok):
        end()
        begun.append(maker.busy)
        maker._finished(Meta())
    assert begun == [True, False]

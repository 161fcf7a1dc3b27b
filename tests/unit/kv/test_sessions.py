"""What a session keeps on every replica, and what a leap of its client costs (S20)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nebuladb.ids import NodeId
from nebuladb.kv import sessions
from nebuladb.kv.answer import SessionResult
from nebuladb.kv.command import Command, Kind, Work
from nebuladb.kv.draft import Draft
from nebuladb.kv.limits import SESSION_WINDOW
from nebuladb.kv.store import Store
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.storage.memory import MemoryEngine
from tests.unit.kv.helpers import GENERATION, GROUP, NODE, Log, fresh, open_session, put, reopen, run, txn


def test_a_session_whose_client_leaps_ahead_costs_no_more_than_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """One request with the highest numbers there are kept every replica of the shard busy for ever."""
    looked = 0

    class Sizes(dict[int, int]):
        def pop(self, *arguments: Any) -> Any:
            nonlocal looked
            looked += 1
            assert looked <= SESSION_WINDOW
            return super().pop(*arguments)

    read = sessions.Sessions._sizes

    def sizes(self: sessions.Sessions, draft: Draft, name: int, session: sessions.Session) -> dict[int, int]:
        session.sizes = Sizes(read(self, draft, name, session))
        return session.sizes

    monkeypatch.setattr(sessions.Sessions, "_sizes", sizes)
    store, _ = fresh()
    log = Log()
    [opened] = run(store, log, open_session())
    assert isinstance(opened.result, SessionResult)
    session, last = opened.result.session, (1 << 64) - 1
    answers = run(store, log, put(b"k", b"1", session=session, sequence=last, lowest=last))
    assert [a.reason for a in answers] == [0]
    assert looked == SESSION_WINDOW


def test_a_session_has_the_answers_that_went_through_other_nodes_too() -> None:
    """Who asks again after a failover asks another node; the request ran a second time there."""
    _, engine = fresh()
    other = Store(engine, GROUP, GENERATION, NodeId(NODE + 1))
    log, session = Log(), 1 << 16
    request = put(b"k", b"1", session=session, sequence=1)
    assert run(other, log, open_session(), request) == [], "whose answers they are is another node"
    store = reopen(engine)
    revision = store.revision
    [again] = run(store, log, request)
    assert (again.reason, again.revision, store.revision) == (0, revision, revision)


LARGE = 2 << 20
FEW = 8
"""Times `LARGE` that one slice may read, and more than it does."""


class Reads(MemoryEngine):
    """Counts the bytes of what it gives."""

    def __init__(self) -> None:
        super().__init__(wal=False)
        self.size = 0

    def get_cached(self, key: bytes) -> tuple[bool, bytes | None]:
        known, value = super().get_cached(key)
        self.size += len(value or b"")
        return known, value

    def scan(self, low: bytes, high: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        for row, value in super().scan(low, high, reverse=reverse):
            self.size += len(value)
            yield row, value


def large_answers(count: int) -> tuple[Store, Reads, Log, list[Command]]:
    """A store whose key has a large value, and the requests, each of a session of its own, that were answered with
    it."""
    store, engine = fresh(engine=(reads := Reads()))
    log = Log()
    half = bytes(LARGE // 2)
    run(store, log, put(b"a", half), put(b"b", half))
    wanted = [kv_pb2.Operation(range=kv_pb2.RangeRequest(key=key)) for key in (b"a", b"b")]
    ask = kv_pb2.TxnRequest(success=[*wanted, kv_pb2.Operation(put=kv_pb2.TxnPut(key=b"c"))])
    requests = []
    for _ in range(count):
        [opened] = run(store, log, open_session())
        assert isinstance(opened.result, SessionResult)
        requests.append(txn(ask, session=opened.result.session, sequence=1))
        [first] = run(store, log, requests[-1])
        assert first.reason == 0
    return reopen(engine), reads, log, requests


def most_read_by_a_slice(store: Store, engine: Reads, work: Work) -> int:
    most = 0
    while store.index < work.index:
        engine.size = 0
        store.apply([work])
        most = max(most, engine.size)
    return most


def test_a_request_that_is_repeated_a_hundred_times_at_once_is_answered_in_slices() -> None:
    """Each of the repeats holds the whole first answer, and takes as long as that is large."""
    store, engine, log, [request] = large_answers(1)
    assert most_read_by_a_slice(store, engine, log.work(*([request] * 100))) < FEW * LARGE


def test_sessions_whose_answers_a_new_process_has_not_counted_yet_come_back_in_slices() -> None:
    store, engine, log, requests = large_answers(20)
    later = [request._replace(body=b"", kind=Kind.DELETE, sequence=2) for request in requests]
    assert most_read_by_a_slice(store, engine, log.work(*later)) < FEW * LARGE


def test_sessions_are_evicted_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 20)
    store, engine, log, _ = large_answers(20)
    assert most_read_by_a_slice(store, engine, log.work(*[open_session() for _ in range(20)])) < FEW * LARGE

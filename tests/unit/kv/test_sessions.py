"""What a session keeps on every replica, and what a leap of its client costs (S20)."""

from __future__ import annotations

from typing import Any

import pytest

from nebuladb.ids import NodeId
from nebuladb.kv import sessions
from nebuladb.kv.answer import SessionResult
from nebuladb.kv.draft import Draft
from nebuladb.kv.limits import SESSION_WINDOW
from nebuladb.kv.store import Store
from tests.unit.kv.helpers import GENERATION, GROUP, NODE, Log, fresh, open_session, put, reopen, run


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

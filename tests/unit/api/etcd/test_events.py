"""Watch responses from parts, against protobuf's own parser."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebuladb.api.etcd import events
from nebuladb.kv.answer import KeyValue
from nebuladb.kv.watcher import Event, EventBatch
from nebuladb.pb.etcd import mvcc_pb2
from nebuladb.pb.etcd import watch_pb2 as pb

numbers = st.integers(1, (1 << 63) - 1)
leases = st.integers(-(1 << 63), (1 << 63) - 1)
data = st.binary(max_size=40)
key_values = st.builds(KeyValue, data, numbers, numbers, numbers, leases, data)
told = st.builds(Event, key_values, st.booleans(), st.none() | key_values)
revisions_of = st.lists(st.lists(st.lists(told, min_size=1, max_size=3), min_size=1, max_size=4), max_size=5)
"""Of each revision its parts."""


def message(kv: KeyValue) -> mvcc_pb2.KeyValue:
    return mvcc_pb2.KeyValue(**kv._asdict())


@given(
    revisions_of,
    leases,
    st.booleans(),
    st.sampled_from([1, 60, 300, 1 << 20]),
    st.sampled_from([50, 200, 1 << 20]),
    st.sampled_from([1, 100, 1 << 20]),
    st.lists(st.integers(1, 4)),
    st.booleans(),
)
def test_they_say_every_event_once_and_split_no_revision_but_into_fragments(
    parts_of: list[list[list[Event]]],
    watch_id: int,
    fragment: bool,
    pack: int,
    piece: int,
    chunk: int,
    takes: list[int],
    empty: bool,
) -> None:
    given_out = []
    for number, its in enumerate(parts_of, 2):
        trailing = empty and len(its) > 1  # the last part may be empty
        given_out += [EventBatch(number, tuple(part), more=trailing or part is not its[-1]) for part in its]
        given_out += [EventBatch(number, ())] * trailing
    revisions = [[event for part in its for event in part] for its in parts_of]
    through = len(revisions) + 10
    parts: list[tuple[int, bytes]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(events, "PACK_BYTES", pack)
        patch.setattr(events, "FRAGMENT_BYTES", piece)
        patch.setattr(events, "CHUNK_BYTES", chunk)
        telling = events.Telling(watch_id, fragment=fragment)
        while given_out:
            count = takes.pop() if takes else len(given_out)
            taken, given_out = given_out[:count], given_out[count:]
            parts += telling.responses(taken, through if not given_out else taken[-1].revision - taken[-1].more)
    assert telling.size == 0
    responses = [pb.WatchResponse.FromString(data) for _, data in parts]
    said = [event for response in responses for event in response.events]
    expected = [event for its in revisions for event in its]
    assert [event.kv for event in said] == [message(event.kv) for event in expected]
    assert [event.type == mvcc_pb2.Event.DELETE for event in said] == [event.deleted for event in expected]
    previous = [event.prev_kv if event.HasField("prev_kv") else None for event in said]
    assert previous == [None if event.previous is None else message(event.previous) for event in expected]
    assert all(response.watch_id == watch_id and len(response.events) > 0 for response in responses)
    ends = {sum(map(len, revisions[: number + 1])): number + 2 for number in range(len(revisions))}
    count = 0
    for (revision, _), response in zip(parts, responses, strict=True):
        count += len(response.events)
        assert response.fragment <= fragment
        if not response.fragment:  # it ends where a revision does, and says so
            assert revision == (through if response is responses[-1] else ends[count])
    for (one, _), (other, _) in pairwise(parts):
        assert one <= other
    assert not responses or not responses[-1].fragment


def test_what_is_encoded_once_is_told_again() -> None:
    kv = KeyValue(b"k", 2, 2, 1, 0, b"v")
    batch = EventBatch(2, (Event(kv, deleted=False),))
    first = list(events.Telling(1, fragment=False).responses([batch], 2))
    wire = batch.wire
    assert wire is not None
    assert list(events.Telling(1, fragment=False).responses([batch], 2)) == first
    assert batch.wire is wire


def test_of_a_revision_in_parts_is_told_with_fragment_what_is_known_not_to_be_the_end() -> None:
    kv = KeyValue(b"k", 2, 2, 1, 0, bytes(events.FRAGMENT_BYTES // 2))
    part, end = EventBatch(2, (Event(kv, deleted=False),) * 3, more=True), EventBatch(2, ())
    telling = events.Telling(1, fragment=True)
    pieces = [pb.WatchResponse.FromString(data) for _, data in telling.responses([part], 1)]
    assert [(len(piece.events), piece.fragment) for piece in pieces] == [(1, True), (1, True)]
    assert telling.size > events.FRAGMENT_BYTES // 2
    [(revision, data)] = telling.responses([end], 7)
    last = pb.WatchResponse.FromString(data)
    assert (revision, len(last.events), last.fragment, telling.size) == (7, 1, False, 0)


def test_what_follows_a_revision_in_fragments_is_not_of_their_response(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client takes the first fragment's header for that of all that it puts together."""
    monkeypatch.setattr(events, "FRAGMENT_BYTES", 1_000)
    monkeypatch.setattr(events, "CHUNK_BYTES", 1)
    one, *later = [
        EventBatch(
            revision, (Event(KeyValue(b"k", 2, revision, 1, 0, bytes(600)), deleted=False),) * 3, more=revision == 2
        )
        for revision in (2, 3, 4)
    ]
    told = list(events.Telling(1, fragment=True).responses([one, EventBatch(2, ()), *later], 4))
    assert [
        (revision, [event.kv.mod_revision for event in pb.WatchResponse.FromString(data).events])
        for revision, data in told
    ][:4] == [(2, [2]), (2, [2]), (2, [2]), (4, [3])]

"""Watch responses from parts, against protobuf's own parser."""

from __future__ import annotations

import asyncio
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
batches = st.lists(st.lists(told, min_size=1, max_size=4), max_size=5)


def message(kv: KeyValue) -> mvcc_pb2.KeyValue:
    return mvcc_pb2.KeyValue(**kv._asdict())


@given(batches, leases, st.booleans(), st.sampled_from([1, 60, 300, 1 << 20]), st.sampled_from([50, 200, 1 << 20]))
def test_they_say_every_event_once_and_never_split_a_revision(
    revisions: list[list[Event]], watch_id: int, fragment: bool, pack: int, piece: int
) -> None:
    given_out = [EventBatch(number, tuple(its)) for number, its in enumerate(revisions, 2)]
    through = len(revisions) + 10
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(events, "PACK_BYTES", pack)
        patch.setattr(events, "FRAGMENT_BYTES", piece)
        parts = list(events.responses(watch_id, given_out, through, fragment=fragment))
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
    first = list(events.responses(1, [batch], 2, fragment=False))
    wire = batch.wire
    assert wire is not None
    assert list(events.responses(1, [batch], 2, fragment=False)) == first
    assert batch.wire is wire


async def test_a_large_revision_is_encoded_in_slices_once_and_others_have_turns_between() -> None:
    """All at once 200,000 events kept the leader's loop until it was none."""
    many = 10 * events.SLICE_EVENTS + 1
    given_out = EventBatch(
        2, tuple(Event(KeyValue(b"k%d" % number, 0, 2, 0, 0, b""), deleted=True) for number in range(many))
    )
    turns = asyncio.Lock()
    plain = list(events.responses(1, [EventBatch(2, given_out.events)], 2, fragment=False))
    made: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        event = events._event

        def counted(one: Event) -> bytes:
            made[-1] += 1
            return event(one)

        patch.setattr(events, "_event", counted)
        waiting = [asyncio.create_task(events.encode([given_out], turns)) for _ in range(3)]
        made.append(0)
        while not all(task.done() for task in waiting):
            await asyncio.sleep(0)
            made.append(0)
    assert max(made) <= events.SLICE_EVENTS
    assert sum(made) == many
    assert given_out.wire is not None
    assert list(events.responses(1, [given_out], 2, fragment=False)) == plain
    small = EventBatch(3, given_out.events[:1])
    told = list(events.responses(1, [small, given_out, small], 3, fragment=False))
    assert [len(pb.WatchResponse.FromString(data).events) for _, data in told] == [1, many, 1]
    await events.encode([small], turns)
    assert turns.locked() is False

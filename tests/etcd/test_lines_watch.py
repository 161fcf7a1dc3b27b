"""Lines 31 to 42: watches. 45 and the promises: over restarts and changes of leader, in test_lines_nodes.py."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nebuladb.pb.etcd import mvcc_pb2
from nebuladb.pb.etcd import watch_pb2 as pb
from tests.etcd.client import Client, Watch
from tests.etcd.servers import ETCD, Nebula, RealEtcd, Server
from tests.etcd.test_lines_txn import put

PROGRESS_SECONDS = 1
COMPACTED = "etcdserver: mvcc: required revision has been compacted"


@pytest.fixture
def watch(client: Client) -> Iterator[Watch]:
    with client.watch() as stream:
        yield stream


def seen(response: pb.WatchResponse) -> list[tuple[int, bytes, int]]:
    """(kind, last part of the key, revision) of its events."""
    return [(event.type, event.kv.key.rpartition(b"/")[2], event.kv.mod_revision) for event in response.events]


@pytest.mark.etcd(31)
def test_created_comes_first_and_ids_start_at_0(client: Client, watch: Watch, place: bytes, end: bytes) -> None:
    revision = client.put(place + b"a").header.revision
    for number in range(3):
        created = watch.create(place, end)
        assert (created.created, created.canceled, created.watch_id, list(created.events)) == (True, False, number, [])
        assert created.header.revision == revision
    late = watch.create(place, end, start_revision=revision)
    assert (late.created, late.watch_id, list(late.events)) == (True, 3, [])
    assert seen(watch.next()) == [(mvcc_pb2.Event.PUT, b"a", revision)]


@pytest.mark.etcd(32, 33)
def test_creations_that_fail(client: Client, watch: Watch, place: bytes) -> None:
    empty = watch.create(place + b"b", place + b"a")
    assert (empty.created, empty.canceled, empty.watch_id) == (True, True, -1)
    assert empty.cancel_reason == "mvcc: watcher range is empty"
    assert watch.create(place, place).cancel_reason == "mvcc: watcher range is empty"
    assert watch.create(place, watch_id=5).watch_id == 5
    twice = watch.create(place, watch_id=5)
    assert (twice.created, twice.canceled, twice.watch_id) == (True, True, -1)
    assert twice.cancel_reason == "mvcc: duplicate watch ID provided on the WatchStream"
    assert watch.create(place).watch_id == 0, "a refusal takes no id"
    revision = client.put(place).header.revision
    assert {watch.next().watch_id, watch.next().watch_id} == {0, 5}, "the others live"
    assert revision


@pytest.mark.etcd(34, 35)
def test_where_a_watch_starts(client: Client, watch: Watch, place: bytes) -> None:
    first = client.put(place, b"1").header.revision
    second = client.put(place, b"2").header.revision
    now, future, negative, past = (  # the past one last: its event may come before another one is created
        watch.create(place, start_revision=start).watch_id for start in (0, second + 3, 0, second)
    )
    assert seen(watch.next()) == [(0, b"", second)], "inclusive; and only of the one that asked"
    for _ in range(3):
        last = client.put(place).header.revision
    assert last == second + 4 - 1
    came: dict[int, list[int]] = {now: [], past: [], future: [], negative: []}
    while any(last not in revisions for revisions in came.values()):
        response = watch.next()
        came[response.watch_id] += [revision for _, _, revision in seen(response)]
    later = [second + 1, second + 2, second + 3]
    assert came == {now: later, past: later, future: [second + 3], negative: later}
    assert first < second


@pytest.mark.etcd(34)
def test_a_negative_start(nebula: Client, place: bytes) -> None:
    # etcd 3.5.16 keeps such a watcher for ever, silent, until something is compacted; 3.6 says this.
    with nebula.watch() as watch:
        refused = watch.create(place, start_revision=-1)
    assert (refused.created, refused.canceled, refused.watch_id) == (True, True, -1)
    assert refused.cancel_reason == COMPACTED


@pytest.mark.etcd(36)
def test_a_start_that_is_compacted(client: Client, watch: Watch, place: bytes) -> None:
    first = client.put(place, b"1").header.revision
    second = client.put(place, b"2").header.revision
    client.compact(second)
    created = watch.create(place, start_revision=first)
    assert (created.created, created.canceled) == (True, False)
    gone = watch.next()
    assert (gone.created, gone.canceled, gone.compact_revision, gone.watch_id) == (
        False,
        True,
        second,
        created.watch_id,
    )
    watch.create(place, start_revision=second)
    assert seen(watch.next()) == [(0, b"", second)]


@pytest.mark.etcd(37)
@pytest.mark.parametrize("fragment", [False, True])
def test_a_revision_is_split_only_by_fragments(client: Client, place: bytes, end: bytes, fragment: bool) -> None:
    keys = [place + b"%d" % number for number in range(3)]
    client.txn(success=[put(key, b"x" * 450_000) for key in keys])
    with client.watch() as watch:
        watch.create(place, end, prev_kv=True, fragment=fragment)
        client.txn(success=[put(key, b"y" * 450_000) for key in keys])
        came = watch.until(lambda response: not response.fragment)
    assert [event.kv.key for response in came for event in response.events] == keys
    assert [response.fragment for response in came] == [True] * (len(came) - 1) + [False]
    assert len(came) > 1 if fragment else len(came) == 1
    client.delete(place, end)


@pytest.mark.etcd(38)
def test_what_was_there_before(client: Client, watch: Watch, place: bytes) -> None:
    start = client.revision() + 1
    client.put(place, b"1")
    client.put(place, b"2")
    client.delete(place)
    last = client.put(place, b"3").header.revision
    watch.create(place, start_revision=start, prev_kv=True)
    events = [
        event for response in watch.until(lambda r: r.events[-1].kv.mod_revision == last) for event in response.events
    ]
    before = [event.prev_kv.value if event.HasField("prev_kv") else None for event in events]
    assert before == [None, b"1", b"2", None]
    middle = start + 1
    client.compact(middle)
    with client.watch() as late:
        late.create(place, start_revision=middle, prev_kv=True)
        first = late.next().events[0]
        assert (first.kv.value, first.HasField("prev_kv")) == (b"2", False), "at mod - 1, which is compacted"


@pytest.mark.etcd(39)
def test_filters(client: Client, watch: Watch, place: bytes) -> None:
    puts = watch.create(place, filters=[pb.WatchCreateRequest.NODELETE]).watch_id
    deletes = watch.create(place, filters=[pb.WatchCreateRequest.NOPUT]).watch_id
    watch.create(place, filters=[pb.WatchCreateRequest.NOPUT, pb.WatchCreateRequest.NODELETE])
    all_ = watch.create(place).watch_id
    first = client.put(place).header.revision
    last = client.delete(place).header.revision
    came: dict[int, list[tuple[int, bytes, int]]] = {puts: [], deletes: [], all_: []}
    while sum(map(len, came.values())) < 4:
        response = watch.next()
        came[response.watch_id] += seen(response)
    put_, delete_ = (0, b"", first), (1, b"", last)
    assert came == {puts: [put_], deletes: [delete_], all_: [put_, delete_]}


@pytest.fixture(params=["nebula", "real_etcd"])
def eager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    """One node that tells watches every second how far they have come."""
    server: Server
    if request.param == "nebula":
        server = Nebula(tmp_path, 1, environ={"NEBULA_WATCH_PROGRESS_NOTIFY_INTERVAL": f"{PROGRESS_SECONDS}s"})
    elif ETCD is None:
        pytest.skip("etcd isn't installed here (Debian: etcd-server)")
    else:
        server = RealEtcd(tmp_path, 1, f"--experimental-watch-progress-notify-interval={PROGRESS_SECONDS}s")
    with server, Client(server.endpoints[0]) as client:
        yield client


@pytest.mark.etcd(40)
def test_progress_notifications(eager: Client, place: bytes) -> None:
    client = eager
    first = client.put(place).header.revision
    with client.watch() as watch:
        told = watch.create(place, progress_notify=True).watch_id
        silent = watch.create(place + b"never").watch_id
        notice = watch.next()
        assert (notice.watch_id, list(notice.events), notice.header.revision) == (told, [], first)
        elsewhere = client.put(place + b"elsewhere").header.revision
        for notice in watch.until(lambda response: response.header.revision == elsewhere):
            assert (notice.watch_id, list(notice.events)) == (told, [])
        # Whoever hears of events every moment needs no notices: one comes only after an interval without any.
        end, before = time.monotonic() + 3 * PROGRESS_SECONDS, 0.0
        last = elsewhere
        while time.monotonic() < end:
            begun = time.monotonic()
            last = client.put(place).header.revision
            while not (response := watch.next()).events:
                assert time.monotonic() - before >= PROGRESS_SECONDS
            assert (response.watch_id, seen(response)) == (told, [(0, b"", last)])
            before = begun
        notice = watch.next()
        assert (notice.watch_id, list(notice.events), notice.header.revision) == (told, [], last), silent


@pytest.mark.etcd(41)
def test_progress_on_request(client: Client, watch: Watch, place: bytes) -> None:
    watch.create(place)
    revision = client.put(place).header.revision
    watch.next()
    other = client.put(place + b"x").header.revision
    assert other == revision + 1
    watch.progress()
    progress = watch.next()
    assert (progress.watch_id, list(progress.events), progress.header.revision) == (-1, [], other)
    # One that is behind: what is due to it comes first, or there is no answer yet.
    for _ in range(200):
        other = client.put(place, b"x" * 100).header.revision
    with client.watch() as late:
        late.create(place, start_revision=revision)
        came: list[pb.WatchResponse] = []
        while not came or came[-1].events:
            late.progress()
            with contextlib.suppress(queue.Empty):
                came.append(late.next(0.2))
    events = [event.kv.mod_revision for response in came for event in response.events]
    assert events == [revision, *range(other - 199, other + 1)]
    assert (came[-1].watch_id, came[-1].header.revision) == (-1, other)


@pytest.mark.etcd(42)
def test_an_empty_key_and_unknown_ids(client: Client, watch: Watch, place: bytes) -> None:
    assert watch.create(b"", b"\0").watch_id == 0
    watch.cancel(77)
    revision = client.put(place).header.revision
    assert watch.next().events[0].kv.mod_revision == revision, "of all keys; and of the unknown id nothing is said"
    watch.cancel(0)
    gone = watch.next()
    assert (gone.watch_id, gone.canceled, gone.created) == (0, True, False)
    client.put(place)
    assert watch.create(place).created, "nothing more of the one that was cancelled"

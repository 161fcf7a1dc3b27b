"""Lines 1 to 15: ranges, puts, deletes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nebuladb.pb.etcd import kv_pb2 as pb
from tests.etcd.client import Client, Refused

KEY_MISSING = "INVALID_ARGUMENT etcdserver: key is not provided"
FUTURE = "OUT_OF_RANGE etcdserver: mvcc: required revision is a future revision"
COMPACTED = "OUT_OF_RANGE etcdserver: mvcc: required revision has been compacted"


def refused(call: Callable[[], Any]) -> str:
    """The code and the text that `call` is refused with."""
    with pytest.raises(Refused) as error:
        call()
    return str(error.value)


def names(response: pb.RangeResponse) -> list[bytes]:
    return [found.key.rpartition(b"/")[2] for found in response.kvs]


@pytest.mark.etcd(1)
def test_ends_of_ranges(client: Client, place: bytes, end: bytes) -> None:
    for name in (b"a", b"aa", b"b"):
        client.put(place + name, name)
    assert names(client.range(place + b"a")) == [b"a"]
    assert names(client.range(place + b"a", place + b"b")) == [b"a", b"aa"]
    rest = client.range(place + b"aa", b"\0")
    assert names(rest)[:2] == [b"aa", b"b"]
    whole = client.range(b"\0", b"\0", keys_only=True)
    assert whole.count >= rest.count + 1
    assert {place + b"a", place + b"aa", place + b"b"} <= {found.key for found in whole.kvs}
    assert client.range(place + b"b", place + b"a").count == 0
    for call in (client.range, client.put, client.delete):
        assert refused(lambda call=call: call(b"")) == KEY_MISSING  # type: ignore[misc]


@pytest.mark.etcd(2, 3)
def test_revisions_of_reads_and_headers(client: Client, place: bytes) -> None:
    first = client.put(place, b"1").header.revision
    second = client.put(place, b"2").header.revision
    third = client.put(place, b"3").header.revision
    assert (second, third) == (first + 1, first + 2)
    for revision in (0, -1, -(1 << 63)):
        assert client.range(place, revision=revision).kvs[0].value == b"3"
    past = client.range(place, revision=first)
    assert past.kvs[0].value == b"1"
    assert past.header.revision == third, "the store's own"
    assert refused(lambda: client.range(place, revision=third + 1)) == FUTURE
    client.compact(second)
    assert refused(lambda: client.range(place, revision=first)) == COMPACTED
    assert client.range(place, revision=second).kvs[0].value == b"2"


@pytest.fixture
def family(client: Client, place: bytes) -> bytes:
    """a to d: created in another order than their names', changed in another again, values in a third."""
    for name in (b"c", b"a", b"d", b"b"):
        client.put(place + name, b"%d" % (9 - name[0] % 5))
    client.put(place + b"a", b"5")
    client.put(place + b"c", b"4")
    client.put(place + b"a", b"0")
    return place


@pytest.mark.etcd(4)
def test_sorting_without_an_order_ascends(client: Client, family: bytes, end: bytes) -> None:
    by = {
        target: names(client.range(family, end, sort_target=target)) for target in pb.RangeRequest.SortTarget.values()
    }
    assert by[pb.RangeRequest.KEY] == [b"a", b"b", b"c", b"d"]
    assert by[pb.RangeRequest.CREATE] == [b"c", b"a", b"d", b"b"]
    assert by[pb.RangeRequest.MOD] == [b"d", b"b", b"c", b"a"]
    assert by[pb.RangeRequest.VERSION][2:] == [b"c", b"a"]
    assert by[pb.RangeRequest.VALUE][0] == b"a"
    down = client.range(family, end, sort_target=pb.RangeRequest.MOD, sort_order=pb.RangeRequest.DESCEND)
    assert names(down) == by[pb.RangeRequest.MOD][::-1]


@pytest.mark.etcd(4)
@pytest.mark.parametrize("bad", [{"sort_order": 7}, {"sort_target": 9}, {"sort_order": 1, "sort_target": -1}])
def test_a_sort_that_does_not_exist(nebula: Client, bad: dict[str, int]) -> None:
    # etcd 3.5.16 takes such an order, and panics at such a target; 3.6 says this.
    text = "INVALID_ARGUMENT etcdserver: invalid sort option"
    assert refused(lambda: nebula.range(b"a", b"b", **bad)) == text
    request = pb.RangeRequest(key=b"a", **bad)  # type: ignore[arg-type]
    assert refused(lambda: nebula.txn(success=[request])) == text


@pytest.mark.etcd(5)
def test_bounds_on_revisions_are_inclusive(client: Client, family: bytes, end: bytes) -> None:
    whole = {found.key[len(family) :]: found for found in client.range(family, end).kvs}
    for name, field in (("mod", "mod_revision"), ("create", "create_revision")):
        middle = getattr(whole[b"b"], field)
        least = client.range(family, end, **{f"min_{name}_revision": middle})
        most = client.range(family, end, **{f"max_{name}_revision": middle})
        assert {*names(least)} == {key for key, found in whole.items() if getattr(found, field) >= middle}
        assert {*names(most)} == {key for key, found in whole.items() if getattr(found, field) <= middle}
        assert {*names(least)} & {*names(most)} == {b"b"}
    assert client.range(family, end, min_mod_revision=0, max_mod_revision=0).count == 4


@pytest.mark.etcd(6, 7)
def test_the_limit_comes_last_and_count_is_of_the_whole_range(client: Client, family: bytes, end: bytes) -> None:
    last = client.range(family, end, limit=1, sort_target=pb.RangeRequest.MOD, sort_order=pb.RangeRequest.DESCEND)
    assert (names(last), last.count, last.more) == ([b"a"], 4, True)
    created = client.get(family + b"d")
    assert created is not None
    late = client.range(family, end, limit=1, min_create_revision=created.create_revision)
    assert (names(late), late.count, late.more) == ([b"b"], 4, True)
    for limit, more in ((3, True), (4, False), (5, False), (0, False)):
        some = client.range(family, end, limit=limit)
        assert (len(some.kvs), some.count, some.more) == (min(limit or 4, 4), 4, more)


@pytest.mark.etcd(8)
def test_counts_and_keys_alone(client: Client, family: bytes, end: bytes) -> None:
    counted = client.range(family, end, count_only=True, limit=2)
    assert (list(counted.kvs), counted.count) == ([], 4)
    by_value = client.range(family, end, sort_target=pb.RangeRequest.VALUE, sort_order=pb.RangeRequest.DESCEND)
    bare = client.range(
        family, end, sort_target=pb.RangeRequest.VALUE, sort_order=pb.RangeRequest.DESCEND, keys_only=True
    )
    assert names(bare) == names(by_value)
    assert {found.value for found in bare.kvs} == {b""}
    assert [found.mod_revision for found in bare.kvs] == [found.mod_revision for found in by_value.kvs]


@pytest.mark.etcd(10, 13, 14)
def test_a_life_of_a_key(client: Client, place: bytes) -> None:
    assert not client.put(place, b"1", prev_kv=True).HasField("prev_kv")
    second = client.put(place, b"2", prev_kv=True)
    assert (second.prev_kv.value, second.prev_kv.version) == (b"1", 1)
    gone = client.delete(place, prev_kv=True)
    assert (gone.deleted, gone.prev_kvs[0].value, gone.header.revision) == (1, b"2", second.header.revision + 1)
    nothing = client.delete(place, prev_kv=True)
    assert (nothing.deleted, list(nothing.prev_kvs)) == (0, [])
    assert nothing.header.revision == gone.header.revision
    again = client.put(place, b"3", prev_kv=True)
    assert not again.HasField("prev_kv")
    found = client.get(place)
    assert found is not None
    assert (found.version, found.create_revision, found.mod_revision) == (1, *[again.header.revision] * 2)


@pytest.mark.etcd(11)
def test_keeping_a_value_or_a_lease(client: Client, place: bytes) -> None:
    missing = "INVALID_ARGUMENT etcdserver: key not found"
    assert refused(lambda: client.put(place, ignore_value=True)) == missing
    assert refused(lambda: client.put(place, b"v", ignore_lease=True)) == missing
    lease = client.grant(60).ID
    client.put(place, b"v", lease=lease)
    value, attached = "etcdserver: value is provided", "etcdserver: lease is provided"
    assert refused(lambda: client.put(place, b"x", ignore_value=True)) == f"INVALID_ARGUMENT {value}"
    assert refused(lambda: client.put(place, b"x", lease=lease, ignore_lease=True)) == f"INVALID_ARGUMENT {attached}"
    client.put(place, b"w", ignore_lease=True)
    found = client.get(place)
    assert found is not None
    assert (found.value, found.lease) == (b"w", lease)
    client.put(place, ignore_value=True)
    found = client.get(place)
    assert found is not None
    assert (found.value, found.lease, found.version) == (b"w", 0, 3)
    client.revoke(lease)


@pytest.mark.etcd(12)
def test_a_put_without_a_lease_detaches_it(client: Client, place: bytes) -> None:
    lease = client.grant(60).ID
    client.put(place, b"v", lease=lease)
    assert list(client.time_to_live(lease, keys=True).keys) == [place]
    client.put(place, b"w")
    assert list(client.time_to_live(lease, keys=True).keys) == []
    client.revoke(lease)
    assert client.get(place) is not None
    text = "NOT_FOUND etcdserver: requested lease not found"
    assert refused(lambda: client.put(place, b"x", lease=lease)) == text


@pytest.mark.etcd(15)
def test_range_stream(nebula: Client, place: bytes, end: bytes) -> None:
    # Debian's etcd doesn't have it: the statement of its design (KEP-5966) and Range itself are what it is held to.
    value = bytes(200_000)
    for number in range(12):
        nebula.put(place + b"%02d" % number, value)
    whole = nebula.range(place, end)
    parts = [part.range_response for part in nebula.stream(
        "KV/RangeStream", pb.RangeRequest(key=place, range_end=end), pb.RangeStreamResponse
    )]  # fmt: skip
    assert len(parts) > 1
    assert [found for part in parts for found in part.kvs] == list(whole.kvs)
    assert all(not part.HasField("header") and not part.more and not part.count for part in parts[:-1])
    last = parts[-1]
    assert (last.header.revision, last.count, last.more) == (whole.header.revision, 12, False)
    few = list(nebula.stream(
        "KV/RangeStream", pb.RangeRequest(key=place, range_end=end, limit=2), pb.RangeStreamResponse
    ))  # fmt: skip
    assert (few[-1].range_response.more, few[-1].range_response.count) == (True, 12)
    bad = pb.RangeRequest(key=place, revision=whole.header.revision + 5)
    assert refused(lambda: list(nebula.stream("KV/RangeStream", bad, pb.RangeStreamResponse))) == FUTURE
    nebula.delete(place, end)

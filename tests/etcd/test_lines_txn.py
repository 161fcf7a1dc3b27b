"""Lines 16 to 24: transactions."""

from __future__ import annotations

import pytest

from nebuladb.pb.etcd import kv_pb2 as pb
from tests.etcd.client import Client, txn
from tests.etcd.test_lines_kv import COMPACTED, FUTURE, refused

DUPLICATE = "INVALID_ARGUMENT etcdserver: duplicate key given in txn request"
TOO_MANY = "INVALID_ARGUMENT etcdserver: too many operations in txn request"


def put(key: bytes, value: bytes = b"", **more: int) -> pb.PutRequest:
    return pb.PutRequest(key=key, value=value, **more)  # type: ignore[arg-type]


def read(key: bytes, **more: int) -> pb.RangeRequest:
    return pb.RangeRequest(key=key, **more)  # type: ignore[arg-type]


def delete(key: bytes, end: bytes = b"") -> pb.DeleteRangeRequest:
    return pb.DeleteRangeRequest(key=key, range_end=end)


@pytest.mark.etcd(16)
def test_one_revision_and_later_operations_see_earlier_ones(client: Client, place: bytes, end: bytes) -> None:
    before = client.revision()
    done = client.txn(
        success=[
            put(place + b"a", b"1"),
            read(place + b"a"),
            put(place + b"b"),
            delete(place + b"c"),
            read(place + b"b"),
        ]
    )
    assert done.header.revision == before + 1
    assert done.responses[1].response_range.kvs[0].value == b"1"
    assert done.responses[4].response_range.kvs[0].mod_revision == before + 1
    assert {found.mod_revision for found in client.range(place, end).kvs} == {before + 1}
    nothing = client.txn(success=[delete(place + b"z"), read(place + b"a")])
    assert nothing.header.revision == before + 1
    with client.watch() as watch:
        watch.create(place, end, start_revision=before + 1)
        events = watch.next().events
        assert [event.kv.key for event in events] == [place + b"a", place + b"b"], "sub-revisions are their order"


@pytest.mark.etcd(17)
def test_at_most_128_operations_over_all_levels(client: Client, place: bytes) -> None:
    many = [read(place)] * 129
    assert refused(lambda: client.txn(compare=[pb.Compare(key=place)] * 129)) == TOO_MANY
    assert refused(lambda: client.txn(success=many)) == TOO_MANY
    assert refused(lambda: client.txn(failure=many)) == TOO_MANY
    client.txn(compare=[pb.Compare(key=place)] * 128, success=many[:128], failure=many[:128])
    nested = txn(success=many[:100])
    assert refused(lambda: client.txn(success=[*many[:30], nested])) == TOO_MANY
    client.txn(success=[*many[:27], nested])


@pytest.mark.etcd(18)
def test_a_key_is_written_once(client: Client, place: bytes, end: bytes) -> None:
    a = place + b"a"
    for branch in (
        [put(a), put(a)],
        [put(a), delete(a)],
        [delete(place, end), put(a)],
        [put(a), txn(success=[put(a)])],
        [txn(success=[put(a)]), txn(failure=[put(a)])],
        [delete(a), txn(success=[txn(failure=[put(a)])])],
    ):
        assert refused(lambda branch=branch: client.txn(success=branch)) == DUPLICATE  # type: ignore[misc]
        assert refused(lambda branch=branch: client.txn(failure=branch)) == DUPLICATE  # type: ignore[misc]
    client.txn(success=[txn(success=[put(a)], failure=[put(a)])], failure=[put(a)])
    assert client.txn(success=[delete(a), delete(place, end)]).responses[0].response_delete_range.deleted == 1


@pytest.mark.etcd(19)
def test_all_compares_are_of_the_state_before(client: Client, place: bytes) -> None:
    absent = pb.Compare(key=place, target=pb.Compare.VERSION, version=0)
    done = client.txn(success=[put(place, b"x"), txn([absent], success=[read(place)], failure=[put(place + b"no")])])
    inner = done.responses[1].response_txn
    assert inner.succeeded, "before the transaction it was absent"
    assert inner.responses[0].response_range.kvs[0].value == b"x", "but an operation sees it"


@pytest.mark.etcd(20)
def test_a_missing_key_is_zero_and_has_no_value(client: Client, place: bytes) -> None:
    def holds(**which: object) -> bool:
        return client.txn([pb.Compare(key=place, **which)]).succeeded  # type: ignore[arg-type]

    for target, field in ((0, "version"), (1, "create_revision"), (2, "mod_revision"), (4, "lease")):
        assert holds(target=target, result=pb.Compare.EQUAL, **{field: 0})
        assert holds(target=target, result=pb.Compare.LESS, **{field: 1})
        assert not holds(target=target, result=pb.Compare.NOT_EQUAL, **{field: 0})
    for result in pb.Compare.CompareResult.values():
        assert not holds(target=pb.Compare.VALUE, result=result, value=b"")
        assert not holds(target=pb.Compare.VALUE, result=result, value=b"x")


@pytest.mark.etcd(21)
def test_every_key_of_a_compared_range_must_satisfy_it(client: Client, place: bytes, end: bytes) -> None:
    client.put(place + b"a", b"1")
    client.put(place + b"b", b"2")
    compare = pb.Compare(key=place, range_end=end, target=pb.Compare.VALUE, result=pb.Compare.LESS)
    for value, holds in ((b"3", True), (b"2", False), (b"0", False)):
        compare.value = value
        assert client.txn([compare]).succeeded is holds


@pytest.mark.etcd(22)
def test_a_bad_revision_fails_all_of_it(client: Client, place: bytes) -> None:
    client.put(place, b"0")
    current = client.put(place, b"1").header.revision
    client.compact(current)
    for revision, text in ((current + 5, FUTURE), (current - 1, COMPACTED)):
        writes = [put(place, b"2"), read(place, revision=revision)]
        assert refused(lambda writes=writes: client.txn(success=writes)) == text  # type: ignore[misc]
        assert refused(lambda writes=writes: client.txn(success=[txn(success=writes)])) == text  # type: ignore[misc]
        reads = [read(place, revision=revision)]
        assert refused(lambda reads=reads: client.txn(success=reads)) == text  # type: ignore[misc]
    found = client.get(place)
    assert found is not None
    assert (found.value, client.revision()) == (b"1", current)


@pytest.mark.etcd(24)
def test_an_empty_operation_and_inner_headers(client: Client, place: bytes) -> None:
    missing = "INVALID_ARGUMENT etcdserver: key not found"
    assert refused(lambda: client.txn(success=[pb.RequestOp()])) == missing
    done = client.txn(success=[put(place), read(place), delete(place + b"x"), txn(success=[read(place)])])
    inner = [
        done.responses[0].response_put.header,
        done.responses[1].response_range.header,
        done.responses[2].response_delete_range.header,
        done.responses[3].response_txn.header,
        done.responses[3].response_txn.responses[0].response_range.header,
    ]
    for header in inner:
        assert (header.cluster_id, header.member_id, header.raft_term) == (0, 0, 0)
    assert {header.revision for header in inner} <= {0, done.header.revision}
    assert inner[0].revision == inner[1].revision == done.header.revision
    assert done.header.cluster_id
    assert done.header.raft_term


@pytest.mark.etcd(64)
@pytest.mark.parametrize("keep", ["ignore_value", "ignore_lease"])
def test_what_makes_etcd_panic(nebula: Client, place: bytes, keep: str) -> None:
    nebula.put(place, b"v")
    before = nebula.revision()
    branch = [delete(place, b"\0"), put(place, b"", **{keep: 1})]
    assert refused(lambda: nebula.txn(success=branch)) == "INVALID_ARGUMENT etcdserver: key not found"
    found = nebula.get(place)
    assert found is not None
    assert (found.value, nebula.revision()) == (b"v", before)

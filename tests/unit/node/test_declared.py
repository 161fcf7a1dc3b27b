"""Alarms that are declared for the whole cluster: their rows, and what they forbid."""

from __future__ import annotations

import pytest

from nebuladb.errors import ClusterCorrupt, Corruption, NoSpace
from nebuladb.kv.answer import KeyValue
from nebuladb.kv.command import Command, Kind
from nebuladb.node.declared import Declared, DeclaredAlarm, forbidden
from nebuladb.node.meta import Meta
from nebuladb.pb.nebula.v1 import kv_pb2
from tests.unit.node.wire import put_request

PUT = Command(Kind.PUT, put_request(b"k", b"v"))
DELETE = Command(Kind.DELETE, kv_pb2.DeleteRequest(key=b"k").SerializeToString())
TXN = Command(
    Kind.TXN,
    kv_pb2.TxnRequest(
        failure=[kv_pb2.Operation(put=kv_pb2.TxnPut(key=b"k", value=b"v"))],
    ).SerializeToString(),
)
DELETES = Command(
    Kind.TXN,
    kv_pb2.TxnRequest(success=[kv_pb2.Operation(delete=kv_pb2.TxnDelete(key=b"k"))]).SerializeToString(),
)
GRANT, REVOKE, KEEP, COMPACT, HASH = (
    Command(kind, b"") for kind in (Kind.LEASE_GRANT, Kind.LEASE_REVOKE, Kind.LEASE_KEEP_ALIVE, Kind.COMPACT, Kind.HASH)
)


def test_golden_row() -> None:
    alarm = DeclaredAlarm(Declared.NO_SPACE, 0x1234)
    assert alarm.key == b"alarm/nospace/0000000000001234"
    assert alarm.encode() == b'{"format":1}'
    assert DeclaredAlarm.decode(alarm.key, alarm.encode()) == alarm
    assert DeclaredAlarm(Declared.CORRUPT, (1 << 64) - 1).key == b"alarm/corrupt/ffffffffffffffff"
    for key, value in (
        (alarm.key, b'{"format":2}'),
        (b"alarm/other/0000000000001234", alarm.encode()),
        (b"alarm/nospace", alarm.encode()),
        (b"alarm/nospace/x", alarm.encode()),
    ):
        with pytest.raises(Corruption):
            DeclaredAlarm.decode(key, value)


def test_meta_has_them() -> None:
    alarms = [DeclaredAlarm(Declared.CORRUPT, 9), DeclaredAlarm(Declared.NO_SPACE, 7)]
    meta = Meta(KeyValue(alarm.key, 2, 2, 1, 0, alarm.encode()) for alarm in alarms)
    assert meta.declared == alarms
    assert meta.alarmed == {Declared.CORRUPT, Declared.NO_SPACE}
    assert not Meta().alarmed


def test_what_no_space_forbids() -> None:
    alarms = frozenset((Declared.NO_SPACE,))
    for command in (PUT, TXN, GRANT):
        assert isinstance(forbidden(alarms, command), NoSpace), command
    for command in (DELETE, DELETES, REVOKE, KEEP, COMPACT, HASH):
        assert forbidden(alarms, command) is None, command


def test_what_corrupt_forbids() -> None:
    alarms = frozenset((Declared.CORRUPT, Declared.NO_SPACE))
    for command in (PUT, TXN, GRANT, DELETE, DELETES, REVOKE, COMPACT):
        assert isinstance(forbidden(alarms, command), ClusterCorrupt), command
    for command in (KEEP, HASH):
        assert forbidden(alarms, command) is None, command

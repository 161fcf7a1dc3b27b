"""etcd's alarms: what operators declared, and what nodes say of their disks and data (etcd 27, 56)."""

from __future__ import annotations

from typing import Final

from nebuladb.api.backend import Backend
from nebuladb.api.drive import Due, drive
from nebuladb.api.etcd.errors import EtcdError
from nebuladb.node.alarms import AlarmKind
from nebuladb.node.declared import MAX_DECLARED, Declared, DeclaredAlarm
from nebuladb.node.disk import LOW_BIT
from nebuladb.node.keyspaces import transaction
from nebuladb.node.meta import Meta
from nebuladb.pb.etcd import maintenance_pb2 as pb

_KINDS: Final = {pb.NOSPACE: Declared.NO_SPACE, pb.CORRUPT: Declared.CORRUPT}
_NUMBERS: Final = {kind: number for number, kind in _KINDS.items()}


def alarms(backend: Backend) -> list[pb.AlarmMember]:
    """All that this node knows, by node and kind. Those of a disk or of differing data go when it is so no more."""
    found = {(alarm.node, _NUMBERS[alarm.kind]) for alarm in backend.meta.declared}
    node = backend.node
    if node.host.disk.space & LOW_BIT:
        found.add((backend.id, pb.NOSPACE))
    found |= {
        (other, pb.NOSPACE) for other, peer in node.host.peers.items() if peer.connected and peer.status & LOW_BIT
    }
    for alarm in node.alarms_now.all():
        if alarm.kind is AlarmKind.INCONSISTENT:
            found.add((alarm.node, pb.CORRUPT))
    return [pb.AlarmMember(memberID=member, alarm=kind) for member, kind in sorted(found)]


def kinds(backend: Backend) -> list[str]:
    """The names of those that are raised."""
    return sorted({pb.AlarmType.Name(alarm.alarm) for alarm in alarms(backend)}, reverse=True)


async def change(backend: Backend, request: pb.AlarmRequest, timeout: float) -> list[pb.AlarmMember]:
    """Declare an alarm, or take one back; returns it, or nothing where there was none to take back, as etcd does."""
    due = Due(timeout)
    kind = _KINDS.get(request.alarm)
    await backend.refresh(due.left())
    if kind is None:
        return []
    alarm = DeclaredAlarm(kind, request.memberID)
    was = alarm in backend.meta.declared
    if request.action == pb.AlarmRequest.ACTIVATE:
        await drive(backend, lambda meta: _declare(meta, alarm), due)
    elif was:
        await drive(backend, lambda meta: _take_back(meta, alarm), due)
    else:
        return []
    return [pb.AlarmMember(memberID=request.memberID, alarm=request.alarm)]


def _declare(meta: Meta, alarm: DeclaredAlarm) -> bytes | None:
    if alarm in meta.declared:
        return None
    if len(meta.declared) >= MAX_DECLARED:
        raise EtcdError("RESOURCE_EXHAUSTED", f"etcdserver: {MAX_DECLARED} alarms are raised already; disarm some")
    # The first one is put again: of those that find room in one picture one gets it. Where none is, there is room.
    rows = [alarm, *meta.declared[:1]]
    return transaction({one.key: meta.mod(one.key) for one in rows}, {one.key: one.encode() for one in rows})


def _take_back(meta: Meta, alarm: DeclaredAlarm) -> bytes | None:
    if alarm not in meta.declared:
        return None
    return transaction({alarm.key: meta.mod(alarm.key)}, {alarm.key: None})

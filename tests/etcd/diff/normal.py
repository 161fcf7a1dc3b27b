"""What is made equal before answers are compared: all of it, and nothing else (docs/etcd.md lists it)."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import Message

from nebuladb.pb.etcd import header_pb2, lease_pb2, maintenance_pb2

TTL_SLACK = 3
"""Seconds by which what is left of two leases may differ that were granted by one request."""


def normal(answer: Message, leases: Mapping[int, int]) -> None:
    """Make of one server's answer, in place, what is the same on each. `leases`: ids that it chose → the other's."""
    match answer:
        case header_pb2.ResponseHeader():  # which cluster, which member, which term
            answer.cluster_id, answer.member_id = int(answer.cluster_id > 0), int(answer.member_id > 0)
            answer.raft_term = int(answer.raft_term > 0)
        case maintenance_pb2.StatusResponse():  # sizes, terms and indexes: there or not; who leads: the one asked?
            answer.leader = int(answer.leader == answer.header.member_id)
            for name in ("dbSize", "dbSizeInUse", "raftIndex", "raftTerm", "raftAppliedIndex"):
                setattr(answer, name, int(getattr(answer, name) > 0))
            own = f"memberID:{answer.header.member_id} "
            answer.errors[:] = sorted(error.replace(own, "memberID:1 ") for error in answer.errors)
        case maintenance_pb2.AlarmResponse():  # whose alarm: of the one asked?
            for alarm in answer.alarms:
                alarm.memberID = 1 if alarm.memberID == answer.header.member_id else alarm.memberID
        case maintenance_pb2.HashKVResponse():  # hash_revision: since etcd 3.6
            answer.hash = answer.hash_revision = 0
        case maintenance_pb2.HashResponse():
            answer.hash = 0
        case lease_pb2.LeaseLeasesResponse():
            answer.leases.sort(key=lambda lease: leases.get(lease.ID, lease.ID))
        case lease_pb2.LeaseTimeToLiveResponse():
            answer.keys.sort()
    for field, value in answer.ListFields():
        if field.name in ("lease", "ID"):
            setattr(answer, field.name, leases.get(value, value))
        elif field.message_type is not None:
            for part in value if field.is_repeated else (value,):
                normal(part, leases)


def differ(one: Message, other: Message) -> bool:
    """Whether two normal answers differ by more than the time that passed between two clocks' looks."""
    kind = lease_pb2.LeaseTimeToLiveResponse
    if isinstance(one, kind) and isinstance(other, kind) and one.TTL > 0 < other.TTL:
        other.TTL = one.TTL if abs(one.TTL - other.TTL) <= TTL_SLACK else other.TTL
    return one != other

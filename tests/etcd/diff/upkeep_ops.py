"""Maintenance."""

from __future__ import annotations

from random import Random
from typing import Any, Final

from nebuladb.pb.etcd import maintenance_pb2 as pb
from tests.etcd.diff import values
from tests.etcd.diff.calls import Call, Operation, Snapshot
from tests.etcd.diff.kv_ops import do_delete, do_put
from tests.etcd.diff.lease_ops import do_grant, do_keep_alive
from tests.etcd.diff.txn_ops import do_flat_txn, do_read_txn
from tests.etcd.diff.values import World, chance

SELF: Final = 1
"""Stands for the id of the member that is asked; each `Target` puts its own."""


def do_status(_: Random, __: World) -> Operation:
    """Its status."""
    yield Call("Maintenance/Status", pb.StatusRequest())


def do_hash(rng: Random, world: World) -> Operation:
    """A hash at a revision, or of all."""
    if chance(rng, 20):
        yield Call("Maintenance/Hash", pb.HashRequest())
    else:
        revision = 0 if chance(rng, 20) else values.edge(rng, world)
        # At a revision that was compacted etcd remembers, for a while, the hash of then, with the floor of then.
        if revision not in world.floors:
            yield Call("Maintenance/HashKV", pb.HashKVRequest(revision=revision))


def do_defragment(_: Random, __: World) -> Operation:
    """Defragmentation."""
    yield Call("Maintenance/Defragment", pb.DefragmentRequest())


def do_move_leader(rng: Random, _: World) -> Operation:
    """To the leader itself, or to nobody."""
    yield Call("Maintenance/MoveLeader", pb.MoveLeaderRequest(targetID=rng.choice((SELF, 0, 4711))))


def do_snapshot(_: Random, __: World) -> Operation:
    """A snapshot."""
    yield Snapshot()


def do_alarm(rng: Random, world: World) -> Operation:
    """An alarm is raised, meets requests, and goes; or one that isn't there is asked for or put out."""
    # No unknown action: etcd 3.5.16 takes it into its log, and panics when it applies it.
    member, alarm = rng.choice((SELF, 0, 4711)), rng.choice((pb.NOSPACE, pb.NOSPACE, pb.CORRUPT, pb.NONE, 9))
    action: Any = rng.choice((pb.AlarmRequest.GET, pb.AlarmRequest.DEACTIVATE))
    yield Call("Maintenance/Alarm", pb.AlarmRequest(action=action, memberID=member, alarm=alarm))  # type: ignore[arg-type]
    if chance(rng, 50):
        return
    alarm = rng.choice((pb.NOSPACE, pb.NOSPACE, pb.CORRUPT))
    yield Call("Maintenance/Alarm", pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=member, alarm=alarm))
    for _ in range(rng.randrange(4)):
        # No nested transactions: etcd overlooks what they put when it is out of space (etcd 27).
        draw = rng.choice((do_put, do_delete, do_flat_txn, do_read_txn, do_keep_alive, do_grant, do_status))
        yield from draw(rng, world)
    for action in (pb.AlarmRequest.GET, pb.AlarmRequest.DEACTIVATE, pb.AlarmRequest.GET):
        yield Call("Maintenance/Alarm", pb.AlarmRequest(action=action, memberID=member, alarm=alarm))

"""``nebula.v1.Keyspace``. Creating and dropping drive the steps of ``node.keyspaces`` through the meta group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Set
from typing import Any, Final, NamedTuple

from nebuladb.api.backend import Backend, parse
from nebuladb.api.drive import Due, Turns, drive, goes_on, until
from nebuladb.api.status import descriptor_message
from nebuladb.errors import InvalidArgument, NebulaError, UnknownOutcome
from nebuladb.ids import DEFAULT_GROUP
from nebuladb.node.keyspaces import MAX_SHARDS, Spec, check_name, checked, create_step, drop_step
from nebuladb.node.meta import Meta
from nebuladb.node.read_lease import longest
from nebuladb.pb.nebula.v1 import keyspace_pb2 as pb
from nebuladb.shard import Keyspace, Partitioning, Role

_PARTITIONING: Final = {
    Partitioning.RANGE: pb.RANGE,
    Partitioning.HASH: pb.HASH,
    Partitioning.SINGLE: pb.SINGLE,
}
_FROM_WIRE: Final = {number: partitioning for partitioning, number in _PARTITIONING.items()}


class KeyspaceService:
    """Each method takes a request's bytes and gives a response's."""

    name = "nebula.v1.Keyspace"

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._turns = Turns()
        """Of keyspaces that are made: each takes the next free groups. Those that are dropped don't meet."""

    async def List(self, raw: bytes, context: Any) -> bytes:
        parse(pb.KeyspaceListRequest, raw)
        await self._backend.refresh(self._backend.answer_within(context))
        async with self._backend.glances:
            keyspaces = sorted(self._backend.routing.keyspaces.items())
            response = pb.KeyspaceListResponse(header=self._backend.header())
            response.keyspaces.extend(self._info(keyspace) for _, keyspace in keyspaces)
            return response.SerializeToString()

    async def Describe(self, raw: bytes, context: Any) -> bytes:
        request = parse(pb.KeyspaceDescribeRequest, raw)
        await self._backend.refresh(self._backend.answer_within(context))
        async with self._backend.glances:
            self._backend.routing.shards(request.name)
            info = self._info(self._backend.routing.keyspaces[request.name])
            response = pb.KeyspaceDescribeResponse(header=self._backend.header(), keyspace=info)
            return response.SerializeToString()

    async def Create(self, raw: bytes, context: Any) -> bytes:
        spec = _spec(parse(pb.KeyspaceCreateRequest, raw))
        due, unfinished = Due(self._backend.answer_within(context)), _unfinished(spec.name, "created")
        await drive(self._backend, lambda meta: create_step(meta, spec), due, unfinished, self._turns)
        groups = self._groups(spec.name)
        await until(lambda: self._groups(spec.name) != groups or all(map(self._serves, groups)), due, unfinished)
        if not groups or self._groups(spec.name) != groups or spec.name not in self._backend.routing.keyspaces:
            raise UnknownOutcome(
                f"keyspace {spec.name!r} was created, and somebody dropped it meanwhile; create it again"
            )
        response = pb.KeyspaceCreateResponse(header=self._backend.header())
        response.keyspace.CopyFrom(self._info(self._backend.routing.keyspaces[spec.name]))
        return response.SerializeToString()

    async def Drop(self, raw: bytes, context: Any) -> bytes:
        request = parse(pb.KeyspaceDropRequest, raw)
        name, first = request.name, request.group
        check_name(name)
        due, unfinished = Due(self._backend.answer_within(context)), _unfinished(name, "dropped")
        groups: dict[int, _Voters] = {}
        """Group → who voted in it, as far as that can be told still."""

        def step(meta: Meta) -> bytes | None:
            nonlocal first
            found = self._groups(name)
            first = first or min(found, default=0)
            if first not in found:
                return None  # it is gone, and what has its name now is another one
            for group in found:
                if group in meta.shards or group not in groups:
                    groups[group] = _voters(meta, group)
            return drop_step(meta, name)

        await drive(self._backend, step, due, unfinished)
        waited = groups or self._dropped(first)  # whoever dropped it may not be done with that
        if not first:
            unfinished = _unknown(name)
        # A node that hasn't heard of it yet might still route to it; without a majority nothing comes of that.
        await until(lambda: self._powerless(waited), due, unfinished)
        # But by its lease who led a shard there answers reads without one.
        leases = (replica.lease.length for replica in self._backend.node.host.replicas.values())
        over = due.left() - longest(max(leases, default=0)) / 1_000
        await until(lambda: due.left() <= over, due, unfinished)
        dropped = bool(groups or request.group)  # also by whoever did it when the answer to this request got lost
        return pb.KeyspaceDropResponse(header=self._backend.header(), dropped=dropped).SerializeToString()

    def _groups(self, name: str) -> range:
        """The groups of a keyspace that a user made, whatever its state; none if there is no such keyspace."""
        keyspace = self._backend.meta.keyspaces.get(name)
        plan = keyspace.plan if keyspace else None
        return range(plan.first_group, plan.first_group + plan.shards) if plan else range(0)

    def _serves(self, group: int) -> bool:
        """Whether a new group has a leader, as far as this node can tell: one that leaves gets no replica of it."""
        shard = self._backend.meta.shards.get(group)
        if shard is not None and self._backend.node.identity.node not in dict(shard.replicas).values():
            return True
        return self._backend.leader(group) != 0

    def _dropped(self, first: int) -> dict[int, _Voters]:
        """Group → who voted in it, of all from `first` on that are gone and have replicas still, whatever their
        keyspace was: nothing says that any more."""
        meta = self._backend.meta
        gone = {removal.group for removal in meta.removals if removal.group not in meta.shards}
        return {group: _voters(meta, group) for group in sorted(gone) if group >= first}

    def _powerless(self, groups: Mapping[int, _Voters]) -> bool:
        """Whether no group has a majority of its voters left that haven't destroyed their replica."""
        meta = self._backend.meta
        left: defaultdict[int, set[int]] = defaultdict(set)
        for one in meta.removals:
            if one.group in groups and one.node not in meta.learners | groups[one.group].never:
                left[one.group].add(one.node)
        return all(groups[group].powerless(nodes) for group, nodes in left.items())

    def _info(self, keyspace: Keyspace) -> pb.KeyspaceInfo:
        return pb.KeyspaceInfo(
            name=keyspace.name,
            partitioning=_PARTITIONING[keyspace.partitioning],
            shards=map(descriptor_message, self._backend.routing.shards(keyspace.name)),
        )


class _Voters(NamedTuple):
    """Who votes in a group, as its descriptor says."""

    certain: int
    """So many do, whatever is under way."""
    perhaps: frozenset[int]
    """Nodes that join or leave it, and so vote, or don't yet, or don't any more."""
    never: frozenset[int]
    """Nodes with a learner."""

    def powerless(self, left: Set[int]) -> bool:
        """Whether `left` are no majority, whichever of those that join or leave vote: worst is that `left` do."""
        return len(left) <= (self.certain + len(left & self.perhaps)) // 2


def _voters(meta: Meta, group: int) -> _Voters:
    """Who votes in a group; of one whose descriptor is gone already nobody knows: as many as in `default`."""
    shard = meta.shards.get(group)
    if shard is None:
        return _voters(meta, DEFAULT_GROUP)._replace(perhaps=frozenset(), never=frozenset())
    roles = {node: shard.role(replica) for replica, node in shard.replicas}
    return _Voters(
        sum(role is Role.VOTER for role in roles.values()),
        frozenset(node for node, role in roles.items() if role in (Role.JOINING, Role.LEAVING)),
        frozenset(node for node, role in roles.items() if role is Role.LEARNER),
    )


def _unfinished(name: str, what: str) -> NebulaError:
    return goes_on(f"keyspace {name!r} is being {what}, which goes on; repeat the request to wait for it")


def _unknown(name: str) -> NebulaError:
    return goes_on(
        f"there is no keyspace {name!r}; of one that was dropped, perhaps of that name, there are replicas still, "
        "which are being destroyed: repeat the request to wait for it"
    )


def _spec(request: pb.KeyspaceCreateRequest) -> Spec:
    """Raises `InvalidArgument`."""
    partitioning = _FROM_WIRE.get(request.partitioning)
    if partitioning is None:
        raise InvalidArgument("partitioning: give range, hash or single")
    if len(request.split_keys) >= MAX_SHARDS:  # counted before they are looked at: a message may have two million
        raise InvalidArgument(f"a keyspace has 1 to {MAX_SHARDS} shards, not {len(request.split_keys) + 1}")
    shards = request.shards if partitioning is Partitioning.HASH else request.shards or len(request.split_keys) + 1
    spec = checked(Spec(request.name, partitioning, shards, tuple(request.split_keys)))
    if spec.shards != shards:
        raise InvalidArgument(f"{len(request.split_keys)} split keys make {spec.shards} shards, not {shards}")
    return spec

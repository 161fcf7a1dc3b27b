"""Shard descriptors and keyspaces, and the JSON under which the meta group keeps them (``docs/formats.md``)."""

from __future__ import annotations

import json
import zlib
from enum import StrEnum
from typing import Any, Final, NamedTuple

from nebuladb.errors import Corruption
from nebuladb.shard.canonical import canonical

SLOTS: Final = 65_536
"""Hash slots of a hash keyspace. Final: a key's slot never changes."""

DESCRIPTOR_VERSION: Final = 1
PLANNED_VERSION: Final = 2
"""Of the record of a keyspace that a user made."""
CHANGED_VERSION: Final = 2
"""Of a descriptor whose replicas are not those that it began with, or not all of them voters."""


class Partitioning(StrEnum):
    """How a keyspace's keys are spread over shards."""

    RANGE = "range"
    HASH = "hash"
    SINGLE = "single"


def slot_of(key: bytes) -> int:
    """The hash slot of a key: the upper 16 bits of its CRC-32."""
    return zlib.crc32(key) >> 16


class KeyspaceState(StrEnum):
    """How far a keyspace is. Only a ready one is routed to; both others end by themselves (``node.keyspaces``)."""

    CREATING = "creating"
    READY = "ready"
    DROPPING = "dropping"


class Role(StrEnum):
    """What a replica is, or is to become. Who is told to go never stays: LEAVING is final (S16)."""

    VOTER = "voter"
    JOINING = "joining"
    """A learner, or nothing yet, that shall vote once it has caught up (S13)."""
    LEARNER = "learner"
    """Has the log and doesn't vote."""
    LEAVING = "leaving"


class Plan(NamedTuple):
    """From what a keyspace was made. All ids are issued with the record, so its shards are a function of it
    (``shard.layout``), and whoever finds it half built can go on."""

    shards: int
    splits: tuple[bytes, ...]
    """Of a range keyspace: where each shard but the first starts, ascending."""
    first_group: int
    """The shards' groups are this one and those that follow."""
    first_replica: int
    """Shard `i` has the replica ids from this + i * len(nodes) on, one a node."""
    nodes: tuple[int, ...]
    """Ascending."""


class Keyspace(NamedTuple):
    """A named set of keys."""

    name: str
    partitioning: Partitioning
    state: KeyspaceState = KeyspaceState.READY
    plan: Plan | None = None
    """None for the cluster's own keyspaces, which are there from the founding on and for ever."""

    def encode(self) -> bytes:
        """Canonical JSON; format 1 without a plan, else 2, split keys in hex."""
        fields: dict[str, object] = {"name": self.name, "partitioning": self.partitioning.value}
        if self.plan is None:
            return canonical({"format": DESCRIPTOR_VERSION, **fields})
        plan = self.plan._asdict() | {"splits": [key.hex() for key in self.plan.splits]}
        return canonical({"format": PLANNED_VERSION, "state": self.state.value, **fields, **plan})

    @classmethod
    def decode(cls, data: bytes) -> Keyspace:
        """Raises `Corruption` on anything but what `encode` writes."""
        fields = _parse(data, DESCRIPTOR_VERSION, PLANNED_VERSION)
        try:
            name, partitioning = fields["name"], Partitioning(fields["partitioning"])
            if fields["format"] == DESCRIPTOR_VERSION:
                return cls(name, partitioning)
            plan = Plan(
                int(fields["shards"]),
                tuple(map(bytes.fromhex, fields["splits"])),
                int(fields["first_group"]),
                int(fields["first_replica"]),
                tuple(map(int, fields["nodes"])),
            )
            return cls(name, partitioning, KeyspaceState(fields["state"]), plan)
        except (KeyError, TypeError, ValueError) as error:
            raise Corruption(f"a keyspace's record can't be read: {error}") from error


class Descriptor(NamedTuple):
    """A shard: what it owns and where its replicas are. `group` is its Raft group's id and its own.

    Invariant: it lists every replica that the group's configuration may name, from before it can until after it can't.
    """

    group: int
    keyspace: str
    epoch: int
    """Of what the shard owns; where its replicas are is no request's concern."""
    start: bytes
    """First key (range, single)."""
    end: bytes
    """First key after it; empty = no end."""
    slots: tuple[int, int]
    """[first, last) hash slots; (0, 0) unless the keyspace is a hash one."""
    replicas: tuple[tuple[int, int], ...]
    """(replica id, node id), ascending."""
    initial: tuple[int, int] = (1, 1)
    """(index, term) that every replica starts at (S17)."""
    founders: tuple[int, ...] = ()
    """The voters there; empty: all of `replicas`, which are those of the creation still and all vote."""
    roles: tuple[tuple[int, Role], ...] = ()
    """(replica id, role), ascending, of those that aren't plain voters."""

    @property
    def first_voters(self) -> tuple[int, ...]:
        """Who votes at `initial`, ascending: the configuration from which every replica starts to read the log."""
        return self.founders or tuple(sorted(replica for replica, _ in self.replicas))

    def role(self, replica: int) -> Role:
        """Of one of `replicas`."""
        return dict(self.roles).get(replica, Role.VOTER)

    def with_role(self, replica: int, node: int, role: Role) -> Descriptor:
        """The same with `replica`, which is on `node`, in that role."""
        replicas = dict(self.replicas) | {replica: node}
        roles = {known: found for known, found in self.roles if known != replica}
        if role is not Role.VOTER:
            roles[replica] = role
        return self._replace(
            founders=self.first_voters, replicas=tuple(sorted(replicas.items())), roles=tuple(sorted(roles.items()))
        )

    def without(self, replica: int) -> Descriptor:
        """The same without `replica`, which the configuration doesn't name any more and never will again."""
        return self._replace(
            founders=self.first_voters,
            replicas=tuple(pair for pair in self.replicas if pair[0] != replica),
            roles=tuple(pair for pair in self.roles if pair[0] != replica),
        )

    def owns(self, key: bytes) -> bool:
        """Whether `key` belongs to this shard."""
        if self.slots[1]:
            return self.slots[0] <= slot_of(key) < self.slots[1]
        return key >= self.start and (not self.end or key < self.end)

    def encode(self) -> bytes:
        """Canonical JSON, keys in hex; format 1 as long as the replicas are those of the creation, and all vote."""
        fields: dict[str, object] = {
            "end": self.end.hex(),
            "epoch": self.epoch,
            "format": DESCRIPTOR_VERSION,
            "group": self.group,
            "initial": self.initial,
            "keyspace": self.keyspace,
            "replicas": self.replicas,
            "slots": self.slots,
            "start": self.start.hex(),
        }
        if self.founders or self.roles:
            fields |= {"format": CHANGED_VERSION, "founders": self.founders, "roles": self.roles}
        return canonical(fields)

    @classmethod
    def decode(cls, data: bytes) -> Descriptor:
        """Raises `Corruption` on anything but what `encode` writes."""
        fields = _parse(data, DESCRIPTOR_VERSION, CHANGED_VERSION)
        try:
            changed = fields["format"] == CHANGED_VERSION
            first, last = fields["slots"]
            index, term = fields["initial"]
            return cls(
                int(fields["group"]),
                str(fields["keyspace"]),
                int(fields["epoch"]),
                bytes.fromhex(fields["start"]),
                bytes.fromhex(fields["end"]),
                (int(first), int(last)),
                tuple((int(replica), int(node)) for replica, node in fields["replicas"]),
                (int(index), int(term)),
                tuple(map(int, fields["founders"])) if changed else (),
                tuple((int(replica), Role(role)) for replica, role in fields["roles"]) if changed else (),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise Corruption(f"a shard descriptor can't be read: {error}") from error


def _parse(data: bytes, *versions: int) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except ValueError as error:
        raise Corruption(f"a meta record is not JSON: {error}") from error
    if not isinstance(fields, dict) or fields.get("format") not in versions:
        raise Corruption(f"a meta record has an unknown format; this build knows {', '.join(map(str, versions))}")
    return fields

"""What every service needs of the node: routing, proposing, confirming, headers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sized
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError, Message

from nebuladb.api.asked import Asked
from nebuladb.api.deliveries import Deliveries
from nebuladb.api.leadership import Leadership
from nebuladb.api.leaving import Leaving
from nebuladb.api.pace import Pace
from nebuladb.api.portions import Portions
from nebuladb.api.status import refusal
from nebuladb.errors import (
    InvalidArgument,
    KeyspaceNotFound,
    NebulaError,
    ResultTooLarge,
    Unavailable,
    WrongEpoch,
    WrongShard,
)
from nebuladb.ids import META_GROUP, lease_group
from nebuladb.kv.answer import Answer, KeyValue
from nebuladb.kv.attached import Attached
from nebuladb.kv.change import LeaseInfo
from nebuladb.kv.command import Command
from nebuladb.kv.store import Store
from nebuladb.kv.watch import WatchHub
from nebuladb.node.catch_up import Lag
from nebuladb.node.declared import forbidden
from nebuladb.node.departure import departs
from nebuladb.node.keyspaces import MAX_CLUSTER_SHARDS
from nebuladb.node.lessor import Lessor
from nebuladb.node.meta import DEFAULT, Meta
from nebuladb.node.pump import Pump
from nebuladb.pb.etcd import lease_pb2 as etcd_lease_pb2
from nebuladb.pb.nebula.v1 import common_pb2 as pb
from nebuladb.pb.nebula.v1 import lease_pb2
from nebuladb.raft import Configuration
from nebuladb.shard import Descriptor, RoutingTable

DEFAULT_SECONDS: Final = 5.0
"""For a call that names no deadline."""
MAX_SECONDS: Final = 300.0
EARLIER: Final = 0.25
"""A request is given up so many seconds before its caller's deadline, so that the caller hears what came of it: whose
time is up is looked for every 0.2 s (`host.EXPIRE_TICKS`)."""
EARLIER_PART: Final = 5
"""But by this part of the caller's time at most: else nothing of a short one would be left."""
MAX_SCANNING: Final = 32
"""Scans that read a page at the same time; the others hold none."""
MAX_LISTED_HERE: Final = 1_000
"""Leases that are told on the loop; of a million others would hear nothing for a second."""
MAX_KEYS_BYTES: Final = 64 << 20
"""Of a lease's keys in an answer."""
KEYS_AT_ONCE: Final = 1_000
KEYS_AT_ONCE_BYTES: Final = 256 << 10
"""Of them that are encoded in one go, in a thread."""

TimeToLive = lease_pb2.LeaseTimeToLiveResponse | etcd_lease_pb2.LeaseTimeToLiveResponse
M = TypeVar("M", bound=Message)
T = TypeVar("T")


class Divided(InvalidArgument):
    """The request is none for a keyspace that has several shards, as this one has as far as this node knows."""


class Backend:
    """One node as the services see it."""

    def __init__(self, pump: Pump) -> None:
        self.pump = pump
        self.node = pump.node
        self.cluster = pump.node.founding.cluster
        self.id = pump.node.identity.node
        self.deliveries = Deliveries()
        self.portions = Portions()
        self.asked = Asked()
        self.leadership = Leadership(self.leader)
        self.leaving = Leaving()
        self.parts = 0
        """Of ``nebula.v1``'s watches: each has one a shard."""
        self.pace = Pace()
        """Of reads that take several turns."""
        self.glances = Pace()
        """Of those that are short and don't wait for long ones: by the thousand they would keep the loop, too. What is
        said of a cluster's shards is one of them, of which there may be 8,192."""
        self.scanning = asyncio.Semaphore(MAX_SCANNING)
        """Of scans that read a page."""
        self.backups = 0
        """In progress."""
        self.listing = asyncio.Lock()
        """Many leases, or the keys of one, in a thread: for one request at a time."""
        self.lags_elsewhere: Callable[[int], Awaitable[list[Lag]]] = _alone
        """What other nodes say of how far a node is behind in the groups that they lead."""

    @property
    def meta(self) -> Meta:
        """The cluster's picture as this node has it."""
        return self.node.meta

    def timeout(self, context: Any) -> float:
        """Seconds that the caller still gives."""
        remaining = context.time_remaining()
        return DEFAULT_SECONDS if remaining is None else min(float(remaining), MAX_SECONDS)

    def answer_within(self, context: Any) -> float:
        """Seconds in which to answer, so that the answer comes before the caller's deadline. An answer says whether a
        write has failed, or that there is no leader; the deadline says neither."""
        seconds = self.timeout(context)
        if context.time_remaining() is None:
            return seconds
        return seconds - min(EARLIER, seconds / EARLIER_PART)

    @property
    def routing(self) -> RoutingTable:
        """Keyspaces and shards. Raises `Unavailable` while this node doesn't know the cluster's first entry yet: that
        there is no such keyspace would be a lie then."""
        if not self.meta.version:
            raise Unavailable("this node is starting and does not know the keyspaces yet; try again")
        return self.meta.routing

    async def refresh(self, timeout: float) -> None:
        """Make `meta` at least as new as now. Raises like a linearizable read of the meta group."""
        await self.pump.confirm(META_GROUP, timeout)
        self.pump.store(META_GROUP)

    async def learned(self, error: NebulaError, before: Meta, context: Any) -> bool:
        """Whether `error` only shows that this node's picture, which was `before`, lagged behind: then ask again.

        A node that has not heard of a keyspace or shard yet must not say that there is none, nor that keys lie in
        several: the keyspace may have been dropped and made anew, with fewer. Raises `NoLeader` where nobody can tell.
        """
        if not isinstance(error, KeyspaceNotFound | WrongEpoch | WrongShard | Divided):
            return False
        if self.meta is before:
            await self.refresh(self.answer_within(context))
        return self.meta is not before

    # --- routing ---------------------------------------------------------------------------------------------------

    def route(self, keyspace: str, key: bytes, epoch: int = 0) -> Descriptor:
        """The shard of a key. Raises `KeyspaceNotFound`, `WrongEpoch`."""
        return _checked(self.routing.find(keyspace or DEFAULT, key), epoch)

    def route_range(self, keyspace: str, key: bytes, range_end: bytes, epoch: int = 0) -> Descriptor:
        """The one shard of a range; `WrongShard` if there are several."""
        return _checked(self.routing.sole(keyspace or DEFAULT, key, range_end), epoch)

    def route_group(self, keyspace: str, group: int) -> Descriptor:
        """The shard of a keyspace by its id; 0 = the only one. Raises `KeyspaceNotFound`, `WrongShard`."""
        shards = self.routing.shards(keyspace or DEFAULT)
        if not group and len(shards) == 1:
            return shards[0]
        for shard in shards:
            if shard.group == group:
                return shard
        raise WrongShard(f"keyspace {keyspace or DEFAULT!r} has no shard {group}; see `nebula-cli shard list`")

    def check_groups(self, keyspace: str, groups: Collection[int]) -> None:
        """As `route_group` of each, which looks at all shards: for a thousand of them that is a million."""
        unknown = set(groups) - {shard.group for shard in self.routing.shards(keyspace or DEFAULT)} if groups else ()
        for group in sorted(unknown):
            self.route_group(keyspace, group)

    def route_lease(self, keyspace: str, lease: int) -> Descriptor:
        """The shard of a lease: its id names it, unless the keyspace has only one."""
        shards = self.routing.shards(keyspace or DEFAULT)
        return shards[0] if len(shards) == 1 else self.route_group(keyspace, lease_group(lease))

    # --- doing -----------------------------------------------------------------------------------------------------

    async def propose(self, shard: Descriptor, command: Command, timeout: float) -> Answer:
        """The answer of a command that was done. Raises the error of one that was refused, failed or is unknown."""
        alarmed = self.node.meta.alarmed
        if alarmed and shard.group != META_GROUP and (error := forbidden(alarmed, command)):
            raise error
        if shard.roles and departs(shard, self.id, self._configuration(shard.group)):
            raise Unavailable(f"this node is leaving shard {shard.group}; nothing was done, try another node")
        try:
            answer = await self.pump.propose(shard.group, command, timeout)
            if answer.reason:
                raise refusal(answer)
        except NebulaError as error:
            error.group = shard.group
            raise
        return answer

    async def current(
        self, shard: Descriptor, timeout: float, *, serializable: bool = False, max_staleness: int = 0
    ) -> Store:
        """The shard's store, at least as new as now unless the caller asked for less: with `serializable` as old as it
        may be, or, with `max_staleness`, at least as new as so many milliseconds ago."""
        try:
            if not serializable:
                await self.pump.confirm(shard.group, timeout)
            elif max_staleness > 0:
                await self.pump.confirm_within(shard.group, max_staleness, timeout)
            return self.pump.store(shard.group)
        except NebulaError as error:
            error.group = shard.group
            raise

    async def lease(
        self,
        shard: Descriptor,
        lease: int,
        timeout: float,
        told: Callable[[int, LeaseInfo | None], TimeToLive],
        *,
        keys: bool,
    ) -> bytes:
        """What `told` makes of a revision of the shard, at least as new as now, and of what is left of a lease then;
        None: there is none. And its keys, if they are asked for, of one lease at a time."""
        await self.current(shard, timeout)
        if not keys:
            revision, info, _ = await self._lease(shard.group, lease, keys=False)
            return told(revision, info).SerializeToString()
        await self.listing.acquire()
        telling = asyncio.create_task(self._with_keys(shard.group, lease, told))
        telling.add_done_callback(self._listed)
        return await asyncio.shield(telling)

    async def _with_keys(self, group: int, lease: int, told: Callable[[int, LeaseInfo | None], TimeToLive]) -> bytes:
        revision, info, attached = await self._lease(group, lease, keys=True)
        response = told(revision, info)
        if attached is None:
            return response.SerializeToString()
        try:
            return await asyncio.to_thread(_with_keys, response, attached)
        finally:
            attached.close()

    async def _lease(self, group: int, lease: int, *, keys: bool) -> tuple[int, LeaseInfo | None, Attached | None]:
        """With its keys, to be closed, if it is there and they are wanted."""
        store, found = await self.pump.looks.read(group, self.pump.store(group), lambda store: store.lease(lease))
        return store.revision, found, store.attached(lease) if keys and found is not None else None

    async def leases(self, group: int, told: Callable[[dict[int, tuple[int, int, int]]], T]) -> tuple[int, T]:
        """The store's revision, and what `told` makes of `Lessor.leases` of a group then. Of many it does so in a
        thread, of one request at a time: each has a copy of them all."""
        if len(self._lessor(group)) <= MAX_LISTED_HERE:
            async with self.pace:
                return self.pump.store(group).revision, told(self._lessor(group).leases())
        await self.listing.acquire()
        try:
            revision = self.pump.store(group).revision
            telling = asyncio.create_task(asyncio.to_thread(told, self._lessor(group).leases()))
        except BaseException:
            self.listing.release()
            raise
        telling.add_done_callback(self._listed)
        return revision, await asyncio.shield(telling)

    def _listed(self, telling: asyncio.Task[Any]) -> None:
        """The next one may list. Not before: the thread goes on though its caller is gone."""
        self.listing.release()
        if not telling.cancelled():
            telling.exception()  # retrieved: a caller that isn't gone raises it

    def _lessor(self, group: int) -> Lessor:
        return self.node.host.replicas[group].lessor

    def hub(self, shard: Descriptor) -> WatchHub:
        """The shard's watches on this node."""
        return self.pump.hub(shard.group)

    def header(self, group: int = 0, revision: int = 0) -> pb.Header:
        """What every response begins with."""
        replica = self.node.host.replicas.get(group)
        term = replica.raft.term if replica else 0
        return pb.Header(cluster_id=self.cluster, node_id=self.id, group=group, revision=revision, raft_term=term)

    def leader(self, group: int) -> int:
        """Node id of the leader of `group` as this node knows it; 0 = unknown."""
        replica = self.node.host.replicas.get(group)
        return replica.nodes.get(replica.raft.leader, 0) if replica else 0

    def _configuration(self, group: int) -> Configuration | None:
        replica = self.node.host.replicas.get(group)
        return replica.raft.configuration if replica else None

    def descriptor(self, group: int) -> Descriptor | None:
        """The shard with this id."""
        return self.meta.shards.get(group)


async def _alone(_: int) -> list[Lag]:
    """There are no other nodes."""
    return []


def parse(kind: type[M], raw: bytes) -> M:
    """A request's message. Raises `InvalidArgument`."""
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise InvalidArgument(f"the request is no {kind.__name__}: {error}") from error


def check_points(pairs: Sized) -> None:
    """Pairs of a shard and a revision that a request names. To be called before one is looked at: a message of 4 MiB
    may have two million, of two bytes each, for which the loop takes half a second. Raises `InvalidArgument`."""
    if len(pairs) > MAX_CLUSTER_SHARDS:
        raise InvalidArgument(f"the request names {len(pairs)} shards; a cluster has {MAX_CLUSTER_SHARDS} at most")


def _with_keys(response: TimeToLive, attached: Attached) -> bytes:
    """The bytes of a response about a lease, with its keys. In one go a million would keep the interpreter, and the
    loop with it, for as long as that takes. Raises `ResultTooLarge`."""
    kind, parts = type(response), [response.SerializeToString()]
    some: list[bytes] = []
    held = size = 0

    def encode() -> None:
        nonlocal held, size
        parts.append(kind(keys=some).SerializeToString())
        size += len(parts[-1])
        if size > MAX_KEYS_BYTES:
            raise ResultTooLarge(f"the lease's keys have more than {MAX_KEYS_BYTES >> 20} MiB; ask without them")
        some.clear()
        held = 0

    for key in attached.read():
        some.append(key)
        held += len(key)
        if len(some) == KEYS_AT_ONCE or held >= KEYS_AT_ONCE_BYTES:
            encode()
    encode()
    return b"".join(parts)


def key_value(kv: KeyValue) -> pb.KeyValue:
    """A key as clients see it."""
    return pb.KeyValue(
        key=kv.key,
        create_revision=kv.create_revision,
        mod_revision=kv.mod_revision,
        version=kv.version,
        value=kv.value,
        lease=kv.lease,
    )


def session_fields(session: pb.SessionRef) -> dict[str, int]:
    """A request's session as a command carries it."""
    return {"session": session.id, "sequence": session.sequence, "lowest": session.lowest_unanswered}


def _checked(shard: Descriptor, epoch: int) -> Descriptor:
    if epoch and epoch != shard.epoch:
        error = WrongEpoch(
            f"shard {shard.group} is at epoch {shard.epoch}, not {epoch}; use the descriptor in the details",
            shard.epoch,
        )
        error.group = shard.group  # else there is no descriptor in them
        raise error
    return shard

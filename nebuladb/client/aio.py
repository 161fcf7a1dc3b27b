"""The asynchronous client."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final, Self, TypeVar

from google.protobuf.message import Message

from nebuladb.client import methods
from nebuladb.client.clock import boottime
from nebuladb.client.errors import Failure
from nebuladb.client.items import Items
from nebuladb.client.lease import LeaseKeeper
from nebuladb.client.lock import Lock
from nebuladb.client.many import Many
from nebuladb.client.methods import Method
from nebuladb.client.requests import built, check_mapping
from nebuladb.client.scan import Rows, ScanPlan
from nebuladb.client.session import Session
from nebuladb.client.transport import StreamBroken, Transport, check_size
from nebuladb.client.types import BatchResult, Event, KeyValue, LeaseInfo, StateHash, key_value
from nebuladb.client.watch import WatchPlan
from nebuladb.client.writes import WriteRequest, Writes
from nebuladb.env import Rng
from nebuladb.errors import ConfigurationError, InvalidArgument, KeyspaceNotFound, LeaseNotFound, Reason
from nebuladb.pb.nebula.v1 import cluster_pb2, common_pb2, keyspace_pb2, kv_pb2, lease_pb2

Answer = TypeVar("Answer", bound=Message)

WATCH_PATIENCE: Final = 60.0
"""Seconds for which a watch looks for a node that serves it, before it gives up."""

CHANGE_PATIENCE: Final = 30.0
"""Seconds for which a change of keyspaces or members is waited for, which may take many steps."""

PARTITIONINGS: Final = {"hash": keyspace_pb2.HASH, "range": keyspace_pb2.RANGE, "single": keyspace_pb2.SINGLE}

STEADY: Final = 1.0
"""Seconds after which a watch that said nothing counts as served: nodes that only begin one must not keep us busy."""

LEADERLESS: Final = 5.0
"""Likewise if it ends the watch for want of a leader: it looks for one for some 3 s before it does."""


LONGEST: Final = 1e12
"""Seconds: older than this nothing is."""


def staleness(seconds: float) -> int:
    """Milliseconds, as a request has them; at least one if it is more than 0. Raises `InvalidArgument`."""
    if not 0 <= seconds < math.inf:
        raise InvalidArgument(f"max_staleness is {seconds}; give seconds, 0 or more (0: as it is now)")
    return math.ceil(min(seconds, LONGEST) * 1000)


class AsyncClient(Writes):
    """A cluster, seen from one keyspace. Safe to share by the tasks of one event loop, that of its first call.

    After `close` every call raises `ClientClosed`; what was under way then does, too, or if it may have written
    something, `UnknownOutcome`. In another loop and in a forked child every call raises `ClientClosed`, too, and
    `close` does nothing.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        keyspace: str = "default",
        timeout: float = 5.0,
        clock: Callable[[], float] = boottime,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: Rng | None = None,
    ) -> None:
        """`endpoints`: client addresses, HOST:PORT; the first that answers is used. `timeout`: seconds a request, all
        its attempts together. Raises `ConfigurationError` for what can't be either, and for a keyspace without a name.

        `clock` (seconds), `sleep` and `rng`, for pauses between attempts, are there to be replaced in tests.
        """
        if not keyspace:  # the wire would take it for "default", in some of the calls
            raise ConfigurationError(f"keyspace is {keyspace!r}; give its name, e.g. 'default'")
        self.keyspace = keyspace
        self._transport = Transport(endpoints, timeout, clock=clock, sleep=sleep, rng=rng)
        self._many = Many(self._transport, keyspace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End every connection. Idempotent; does nothing in another loop than the client's, or in a forked child."""
        await self._transport.close()

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The addresses, as they were given but for repetitions."""
        return tuple(self._transport.endpoints.addresses)

    # Reads

    async def get(
        self, key: bytes, *, revision: int = 0, serializable: bool = False, max_staleness: float = 0.0
    ) -> KeyValue | None:
        """`key` now, or at `revision`; None if it isn't there. `serializable`: perhaps an old one, from any node;
        `max_staleness`, in seconds: at most so old. Raises `InvalidArgument` for a number that can't be either."""
        request = built(
            kv_pb2.GetRequest,
            keyspace=self.keyspace,
            key=key,
            revision=revision,
            serializable=serializable or max_staleness > 0,
            max_staleness=staleness(max_staleness),
        )
        response = await self._transport.call(methods.GET, request)
        return key_value(response.kv) if response.HasField("kv") else None

    async def get_many(self, keys: Iterable[bytes]) -> dict[bytes, KeyValue | None]:
        """Every one of `keys`, asked of all shards at once; not of one moment."""
        return await self._many.get(keys)

    def scan(
        self,
        start: bytes = b"",
        end: bytes = b"",
        *,
        limit: int = 0,
        revision: int = 0,
        keys_only: bool = False,
        serializable: bool = False,
        max_staleness: float = 0.0,
        page_size: int = 0,
    ) -> Rows:
        """The keys of [start, end) in order; no end: to the last. Of each shard all are of one revision, also over a
        change of nodes; `Rows.revisions` says which.

        It raises `Compacted` if that is compacted while the reader takes no page for 10 s, or before another node goes
        on with it: scan again."""
        plan = ScanPlan(
            built(
                kv_pb2.ScanRequest,
                keyspace=self.keyspace,
                key=start,
                range_end=end,
                limit=limit,
                revision=revision,
                keys_only=keys_only,
                serializable=serializable or max_staleness > 0,
                max_staleness=staleness(max_staleness),
                page_size=page_size,
            )
        )
        return Rows(plan, self._scan(plan))

    async def _scan(self, plan: ScanPlan) -> AsyncGenerator[list[KeyValue], None]:
        check_size(plan.request)
        transport = self._transport
        attempts = transport.attempts()
        while not plan.done:
            step = attempts.next(transport.clock())
            try:
                async with transport.open(methods.SCAN, plan.request, step, step.seconds) as read:
                    while not plan.done:
                        page = await read()
                        if page is None:
                            return
                        attempts.worked(step.address, transport.clock())
                        yield plan.absorb(page)
                        attempts.waited(transport.clock())
            except StreamBroken as broken:
                pause = attempts.failed(step.address, broken.failure, transport.clock())
                await transport.sleep(pause)
                plan.resume()

    def watch(
        self,
        key: bytes,
        range_end: bytes = b"",
        *,
        start_revision: int = 0,
        start_revisions: Mapping[int, int] | None = None,
        prev_kv: bool = False,
        no_put: bool = False,
        no_delete: bool = False,
        patience: float = WATCH_PATIENCE,
    ) -> Items[Event]:
        """Every change of `key`, or of [key, range_end), from `start_revision` on (0: from now on), once, in order.

        "Now" is when the first event is asked for, and the request has come to a node: not when this is called. To miss
        nothing of what comes behind a write, begin at its ``revision + 1``; behind a scan, at what `Rows.revisions`
        says, each plus 1.

        Over several shards `start_revisions` says for each where to begin; one that it leaves out begins now. Behind an
        event go on at its own ``mod_revision``, since others may share it.

        It goes on over broken connections, dead nodes and changes of leader, and leaves a node that is cut off from the
        majority; it raises `Compacted` where events are lost for good, and the last error if no node serves it for
        `patience` seconds. An event that is waited for with a timeout is not lost (`Items`).
        """
        if not patience >= 0:
            raise InvalidArgument(f"patience is {patience}; give seconds, 0 or more (0: the client's timeout)")
        request = built(
            kv_pb2.WatchRequest,
            keyspace=self.keyspace,
            key=key,
            range_end=range_end,
            start_revision=start_revision,
            prev_kv=prev_kv,
            no_put=no_put,
            no_delete=no_delete,
        )
        starts = start_revisions or {}
        check_mapping("start_revisions", starts)
        for shard, revision in starts.items():
            request.start_revisions.append(built(kv_pb2.ShardRevision, group=shard, revision=revision))
        return Items(self._watch(WatchPlan(request), patience))

    async def _watch(self, plan: WatchPlan, patience: float) -> AsyncGenerator[list[Event], None]:
        transport = self._transport
        attempts = transport.attempts(timeout=patience)
        while True:
            step = attempts.next(transport.clock())
            created = math.inf
            try:
                stream = transport.open(methods.WATCH, plan.request, step, step.seconds)
                async with stream as read:
                    while (response := await read()) is not None:
                        stream.patience = None  # a node that hangs doesn't even begin it
                        found = plan.absorb(response)
                        if isinstance(found, Failure):
                            raise StreamBroken(found)
                        if response.created:
                            created = transport.clock()
                        else:
                            attempts.worked(step.address, transport.clock())
                        if found:
                            yield found
                raise StreamBroken(WatchPlan.ended(step.address))
            except StreamBroken as broken:
                now = transport.clock()
                leaderless = broken.failure.error.reason is Reason.NO_LEADER
                if now - created >= (LEADERLESS if leaderless else STEADY):
                    attempts.worked(step.address, now)
                await transport.sleep(attempts.failed(step.address, broken.failure, now))

    # Writes are in the base; a session's are exactly-once

    async def batch(self, puts: Mapping[bytes, bytes], deletes: Iterable[bytes] = ()) -> BatchResult:
        """Write many keys, in all shards at once: a transaction for each 128 keys of a shard, not one over all.

        An error whose outcome is FAILED says that nothing of it was done; any other that a part may have been. After
        one of them has failed no other is begun.
        """
        return await self._many.batch(puts, deletes)

    def session(self) -> Session:
        """Exactly-once writes; use it with ``async with``."""
        return Session(self._transport, self.keyspace)

    async def compact(self, revision: int, *, group: int = 0) -> None:
        """Make what was superseded at or before `revision` unreadable, in shard `group` (0: the only one)."""
        request = built(kv_pb2.CompactRequest, keyspace=self.keyspace, revision=revision, group=group)
        await self._transport.call(methods.COMPACT, request)

    # Leases

    def keep_alive(self, lease: int) -> LeaseKeeper:
        """Renews `lease` in the background: ``async with client.keep_alive(lease) as keeper:``."""
        return LeaseKeeper(self._transport, self.keyspace, lease)

    def lock(self, name: bytes, *, ttl: int = 10, value: bytes = b"", timeout: float = math.inf) -> Lock:
        """The lock that is the key `name`: ``async with client.lock(b"report") as lock:``, see `Lock`.

        `ttl`, seconds: of a holder that is gone it is free after so long. `value`: what the key says meanwhile, of its
        holder perhaps. `timeout`, seconds for which others are waited for (0: not at all); then it raises
        `DeadlineExceeded`.
        """
        return Lock(self, name, ttl, value, timeout)

    async def time_to_live(self, lease: int, *, keys: bool = False) -> LeaseInfo:
        """What is left of a lease, and its keys if asked for; raises `LeaseNotFound`."""
        request = built(lease_pb2.LeaseTimeToLiveRequest, keyspace=self.keyspace, id=lease, keys=keys)
        found = await self._transport.call(methods.LEASE_TIME_TO_LIVE, request)
        if found.ttl < 0:
            raise LeaseNotFound(f"lease {lease} doesn't exist: it was never granted, was revoked, or has expired")
        return LeaseInfo(found.id, found.ttl, found.granted_ttl, tuple(found.keys))

    async def leases(self) -> tuple[int, ...]:
        """The ids of all leases."""
        request = built(lease_pb2.LeaseListRequest, keyspace=self.keyspace)
        return tuple((await self._transport.call(methods.LEASE_LIST, request)).ids)

    # The cluster. `endpoint` asks that node and no other, and fails at once if it is away

    async def keyspaces(self) -> Sequence[keyspace_pb2.KeyspaceInfo]:
        """All keyspaces with their shards."""
        return (await self._transport.call(methods.KEYSPACE_LIST, keyspace_pb2.KeyspaceListRequest())).keyspaces

    async def describe_keyspace(self, name: str) -> keyspace_pb2.KeyspaceInfo:
        """One keyspace; raises `KeyspaceNotFound`."""
        request = built(keyspace_pb2.KeyspaceDescribeRequest, name=name)
        return (await self._transport.call(methods.KEYSPACE_DESCRIBE, request)).keyspace

    async def create_keyspace(
        self,
        name: str,
        partitioning: str = "hash",
        *,
        shards: int = 0,
        split_at: Sequence[bytes] = (),
        timeout: float = CHANGE_PATIENCE,
    ) -> keyspace_pb2.KeyspaceInfo:
        """Make a keyspace and wait until it serves. `partitioning`: hash (with `shards`), range (`split_at`: where each
        shard but the first starts) or single.

        Repeating it does nothing more; raises `KeyspaceExists` if there is one of this name that was made otherwise.
        """
        if partitioning not in PARTITIONINGS:
            raise InvalidArgument(f"partitioning is {partitioning!r}; give one of {', '.join(PARTITIONINGS)}")
        request = built(
            keyspace_pb2.KeyspaceCreateRequest,
            name=name,
            partitioning=PARTITIONINGS[partitioning],
            shards=shards,
            split_keys=split_at,
        )
        return (await self._transport.call(methods.KEYSPACE_CREATE, request, timeout=timeout)).keyspace

    async def drop_keyspace(self, name: str, *, timeout: float = CHANGE_PATIENCE) -> bool:
        """Destroy a keyspace with all its keys, and wait until nobody can read or write it. False: there was none."""
        request = built(keyspace_pb2.KeyspaceDropRequest, name=name)
        with suppress(KeyspaceNotFound):  # it may be half made, or half dropped
            found = await self.describe_keyspace(name)
            request.group = min(shard.group for shard in found.shards)
        return (await self._transport.call(methods.KEYSPACE_DROP, request, timeout=timeout)).dropped

    async def shards(self, keyspace: str = "") -> Sequence[tuple[common_pb2.ShardDescriptor, int]]:
        """Each shard with its leader's node id (0: unknown), of one keyspace or of all."""
        request = built(cluster_pb2.ShardsRequest, keyspace=keyspace)
        found = await self._transport.call(methods.SHARDS, request)
        leaders = (*found.leaders, *(0,) * (len(found.shards) - len(found.leaders)))
        return tuple(zip(found.shards, leaders, strict=False))

    async def members(self) -> Sequence[cluster_pb2.Member]:
        """All nodes; where nobody can tell within a second, as the answering one sees them."""
        return (await self._transport.call(methods.MEMBERS, cluster_pb2.MembersRequest())).members

    async def add_member(
        self, name: str, peer_address: str, *, learner: bool = False, replaces: str = ""
    ) -> cluster_pb2.Member:
        """Issue an id to a node that is then started with ``--join``. `learner`: it votes when it is promoted only.
        `replaces`: the node whose place it takes. Raises `ChangeRefused` with the reason."""
        request = built(
            cluster_pb2.MemberAddRequest, name=name, peer_address=peer_address, learner=learner, replaces=replaces
        )
        return (await self._transport.call(methods.MEMBER_ADD, request)).member

    async def promote_member(self, name: str, *, timeout: float = CHANGE_PATIENCE) -> cluster_pb2.Member:
        """Let a node that was added as a learner vote, and wait until it does."""
        request = built(cluster_pb2.MemberPromoteRequest, name=name)
        return (await self._transport.call(methods.MEMBER_PROMOTE, request, timeout=timeout)).member

    async def remove_member(self, name: str, *, timeout: float = CHANGE_PATIENCE) -> None:
        """Remove a node, and wait until it is no member any more. Raises `ChangeRefused` if that is not safe now."""
        request = built(cluster_pb2.MemberRemoveRequest, name=name)
        await self._transport.call(methods.MEMBER_REMOVE, request, timeout=timeout)

    async def discover(self) -> tuple[str, ...]:
        """Have the members' client addresses behind those that were named at first, which may be gone one day, and no
        others; `endpoints` are returned. Call it now and then: members change."""
        self._transport.endpoints.learn(member.client_address for member in await self.members())
        self._transport.forget()
        return self.endpoints

    async def status(self, endpoint: str = "") -> cluster_pb2.StatusResponse:
        """A node's own account of itself and its groups."""
        return await self._transport.call(methods.STATUS, cluster_pb2.StatusRequest(), pinned=endpoint)

    async def order_hash(self, group: int, *, timeout: float = 0.0) -> int:
        """Make a log entry at which every replica of a shard takes the hash of its state (S28); its index."""
        request = built(cluster_pb2.StateHashRequest, group=group)
        return (await self._transport.call(methods.STATE_HASH, request, timeout=timeout)).index

    async def state_hash(self, group: int, index: int = 0, endpoint: str = "", *, timeout: float = 0.0) -> StateHash:
        """A node's hash of a shard's state at the index of an order; 0 orders one first. It may take as long as a scan
        of the shard: whoever has run out of `timeout` may ask for the same index again. Raises `HashNotFound` if the
        node lost it; order another then."""
        request = built(cluster_pb2.StateHashRequest, group=group, index=index or await self.order_hash(group))
        found = await self._transport.call(methods.STATE_HASH, request, pinned=endpoint, timeout=timeout)
        return StateHash(found.header.node_id, found.index, found.hash)

    def snapshot(self, request: cluster_pb2.SnapshotRequest) -> Items[cluster_pb2.SnapshotResponse]:
        """A backup as the bytes of its file, from the first node that begins one; a stream that breaks then is not
        resumed: begin anew."""
        return Items(self._snapshot(request))

    async def _snapshot(
        self, request: cluster_pb2.SnapshotRequest
    ) -> AsyncGenerator[list[cluster_pb2.SnapshotResponse], None]:
        transport = self._transport
        attempts = transport.attempts()
        begun = False
        while True:
            step = attempts.next(transport.clock())
            try:
                async with transport.open(methods.SNAPSHOT, request, step, transport.timeout) as read:
                    while (response := await read()) is not None:
                        begun = True
                        attempts.worked(step.address, transport.clock())
                        yield [response]
                return
            except StreamBroken as broken:
                pause = attempts.failed(step.address, broken.failure, transport.clock())  # who begins anew asks another
                if begun:
                    raise broken.failure.error from None
                await transport.sleep(pause)

    async def transfer_leadership(self, group: int, node_id: int) -> None:
        """Ask a shard's leader to hand over to `node_id`."""
        request = built(cluster_pb2.TransferLeadershipRequest, group=group, node_id=node_id)
        await self._transport.call(methods.TRANSFER, request)

    async def _write(self, method: Method[Answer], request: WriteRequest, key: bytes, group: int = 0) -> Answer:
        return await self._transport.call(method, request)

    async def _read(self, method: Method[Answer], request: Message) -> Answer:
        return await self._transport.call(method, request)

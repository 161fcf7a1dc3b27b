"""What etcd's locks and elections have in common: many enter, the one that came first owns (etcd 63).

Who enters has the key ``<name>/<lease in hex>``, which goes with its lease. Of all keys under the name the one with the
lowest create revision owns; everybody else waits for those before it to go (`line`). Create revisions never go back and
no two keys share one here. So an owner's is a fencing token: whatever remembers the greatest that it has seen can
refuse the late words of an earlier owner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final, NamedTuple

from nebuladb.api.drive import Due
from nebuladb.api.etcd.errors import EtcdError, translate
from nebuladb.api.etcd.face import Face
from nebuladb.api.etcd.line import Place, standing
from nebuladb.env import probe
from nebuladb.errors import NebulaError, Reason
from nebuladb.kv import check
from nebuladb.kv.answer import Answer, KeyValue, LeaseResult, RangeResult, TxnResult
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.store import Store
from nebuladb.pb.nebula.v1 import kv_pb2, lease_pb2
from nebuladb.shard import Descriptor

SESSION_TTL: Final = 60
"""Seconds of the lease of an entry that names none (as etcd)."""
LEAVE_SECONDS: Final = 25.0
"""To take back the entry of a caller that has gone. After those its lease takes it."""
LEAVE_TRY_SECONDS: Final = 5.0
LEAVE_PAUSE_SECONDS: Final = 0.1
"""Between two tries: while nobody leads, each is refused soon."""
COPIES: Final = 4
"""Of the name of a caller that waits: its request, as bytes and as a message, the name, and the key."""


class Entry(NamedTuple):
    """An entry that was made, or found."""

    create: int
    """Its key's create revision."""
    revision: int
    """Of the shard, then."""
    found: KeyValue | None
    """The key, if it was there already."""


def refused(text: str) -> EtcdError:
    """An error of the etcd client that serves these calls in etcd: it has no code of its own."""
    return EtcdError("UNKNOWN", text)


_CODELESS: Final = frozenset(
    {Reason.LEASE_NOT_FOUND, Reason.NO_SPACE, Reason.CLUSTER_CORRUPT, Reason.REQUEST_TOO_LARGE}
)


def worded(error: NebulaError) -> NebulaError:
    """`error` as these services say it: what refuses a request in etcd's server has lost its code on the way."""
    return EtcdError("UNKNOWN", translate(error).message, error) if error.reason in _CODELESS else error


def create_is(key: bytes, revision: int) -> kv_pb2.Compare:
    """Whether `key` was created at `revision`; 0: whether it does not exist."""
    return kv_pb2.Compare(result=kv_pb2.Compare.EQUAL, target=kv_pb2.Compare.CREATE, key=key, number=revision)


class Contests:
    """Locks or elections of one node."""

    def __init__(self, face: Face) -> None:
        self.face = face
        self._leaving: set[asyncio.Task[None]] = set()

    async def grant(self, shard: Descriptor, lease: int, context: Any) -> int:
        """`lease`, or a new one if that is 0."""
        if lease:
            return lease
        body = lease_pb2.LeaseGrantRequest(ttl=SESSION_TTL).SerializeToString()
        granting = asyncio.ensure_future(self.propose(shard, Command(Kind.LEASE_GRANT, body), context))
        try:
            answer = await asyncio.shield(granting)
        except asyncio.CancelledError:
            # It may be on its way into the log: nobody else will ever know that lease.
            self.later(self._revoke(shard, granting))
            raise
        assert isinstance(answer.result, LeaseResult)
        return answer.result.lease

    async def _revoke(self, shard: Descriptor, granting: asyncio.Future[Answer]) -> None:
        with suppress(NebulaError):
            result = (await granting).result
            assert isinstance(result, LeaseResult)
            await self.leave(shard, revocation(result.lease))

    async def run(self, shard: Descriptor, request: kv_pb2.TxnRequest, context: Any) -> tuple[Answer, TxnResult]:
        """A transaction and its result."""
        body = request.SerializeToString()
        try:
            check.txn(request)
            check.body(len(body))
        except NebulaError as error:
            raise worded(error) from error
        answer = await self.propose(shard, Command(Kind.TXN, body), context)
        assert isinstance(answer.result, TxnResult)
        return answer, answer.result

    async def propose(self, shard: Descriptor, command: Command, context: Any) -> Answer:
        """As `Backend.propose`, worded."""
        backend = self.face.backend
        try:
            return await backend.propose(shard, command, self.face.timeout(context))
        except NebulaError as error:
            raise worded(error) from error

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work` though its caller has gone. (One a call that is in progress, hence bounded as those are.)"""
        task = asyncio.create_task(work, name="leave a contest")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def leave(self, shard: Descriptor, command: Command) -> None:
        """Propose `command`, which takes back an entry, until that is done; it may be done twice."""
        due = Due(LEAVE_SECONDS)
        while (left := due.left()) > 0:
            try:
                await self.face.backend.propose(shard, command, min(left, LEAVE_TRY_SECONDS))
            except NebulaError as error:
                if not error.retryable and error.reason != Reason.UNKNOWN_OUTCOME:
                    return
                probe("etcd: leaving a contest is tried again")
                await asyncio.sleep(LEAVE_PAUSE_SECONDS)
            else:
                return


class Contest:
    """One caller's entry under a name."""

    def __init__(self, contests: Contests, shard: Descriptor, name: bytes, lease: int, *, granted: bool) -> None:
        """`granted`: the lease was made for this call."""
        self.key = b"%s/%x" % (name, lease)
        self._contests = contests
        self._backend = contests.face.backend
        self._shard = shard
        self._name = name
        self._lease = lease
        self._granted = granted
        self._create = 0

    async def enter(self, value: bytes, context: Any) -> Entry:
        """Make the entry with `value`, or find the one that its lease has already."""
        request = kv_pb2.TxnRequest(
            compare=[create_is(self.key, 0)],
            success=[kv_pb2.Operation(put=kv_pb2.TxnPut(key=self.key, value=value, lease=self._lease))],
            failure=[kv_pb2.Operation(range=kv_pb2.RangeRequest(key=self.key))],
        )
        entering = asyncio.ensure_future(self._contests.run(self._shard, request, context))
        try:
            answer, result = await asyncio.shield(entering)
        except asyncio.CancelledError:
            # It may be on its way into the log: whoever asked is gone and will never leave.
            self._contests.later(self._undo(entering))
            raise
        except NebulaError:
            # It may be in the log, and nobody knows the lease by which it could be left.
            if self._granted:
                self._contests.later(self._leave())
            raise
        found = None
        self._create = answer.revision
        if not result.succeeded:
            assert isinstance(result.results[0], RangeResult)
            found = result.results[0].kvs[0]
            self._create = found.create_revision
        return Entry(self._create, answer.revision, found)

    async def _undo(self, entering: asyncio.Future[tuple[Answer, TxnResult]]) -> None:
        try:
            answer, result = await entering
        except NebulaError:
            if self._granted:  # as in `enter`: it may be in the log
                await self._leave()
            return
        if result.succeeded:
            self._create = answer.revision
            await self._leave()

    async def owns(self, expired: NebulaError, context: Any) -> int:
        """Wait until no earlier entry is left; a revision at which this one was the first.

        Each owner's is above those of all owners before it: it is of a state in which their entries are gone. That is
        not so of the revision that made the entry, even if there was nobody to wait for any more.

        Raises `expired` if this one goes meanwhile, with its lease or by hand. It is taken back if the wait fails, or
        the caller goes.
        """
        try:
            with self._backend.asked.holding(COPIES * len(self._name)):
                found = await self._turn(expired)
            if found:
                return found
            # What this node knew may be old: its lease may have ended since.
            store = await self._backend.current(self._shard, self._contests.face.timeout(context))
            self._require(store, expired)
        except BaseException as error:
            if error is not expired:
                self._contests.later(self._leave())
            raise
        return store.revision

    async def _turn(self, expired: NebulaError) -> int:
        """Wait until no earlier entry is left; the revision at which there was none when it looked first, or 0. This
        node has applied what made ours, hence everything that was before it."""
        waited, place, lines = False, Place.UNKNOWN, self._contests.face.lines
        revision = 0
        while place is Place.UNKNOWN:
            line = lines.join(self._shard, self._name)
            if line is None:
                async with lines.reading(self._shard, self._name):
                    line = lines.join(self._shard, self._name)  # of who has read meanwhile
                    if line is None:
                        found = await standing(self._backend, self._shard, self._name)
                        if not any(create < self._create for create, _ in found.entries):
                            self._require(self._backend.pump.store(self._shard.group), expired)
                            revision = found.revision
                            break
                        line = lines.begin(self._shard, self._name, found)
            try:
                while (place := line.place(self.key, self._create)) is Place.BEHIND:
                    waited = True
                    await line.news(self.key)
                revision = line.revision
            finally:
                lines.leave(self._shard, self._name, line)
        if place is Place.GONE:
            raise expired
        return 0 if waited else revision

    def _require(self, store: Store, expired: NebulaError) -> None:
        mine = store.range(self.key, keys_only=True).kvs
        if not mine or mine[0].create_revision != self._create:
            raise expired

    async def _leave(self) -> None:
        if self._granted:
            await self._contests.leave(self._shard, revocation(self._lease))
        else:
            await self._contests.leave(self._shard, resignation(self.key, self._create))


def revocation(lease: int) -> Command:
    """End a lease that was made for an entry."""
    return Command(Kind.LEASE_REVOKE, lease_pb2.LeaseRevokeRequest(id=lease).SerializeToString())


def resignation(key: bytes, create: int) -> Command:
    """Delete `key` if it is the one that was created at `create`."""
    request = kv_pb2.TxnRequest(
        compare=[create_is(key, create)], success=[kv_pb2.Operation(delete=kv_pb2.TxnDelete(key=key))]
    )
    return Command(Kind.TXN, request.SerializeToString())

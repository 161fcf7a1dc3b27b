"""Keys under a lease, and a lock: none goes before its time, and fencing tokens never go back (S27)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nebuladb.errors import NebulaError, Reason
from nebuladb.kv.answer import Answer, LeaseResult, TxnResult
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.store import Store
from nebuladb.pb.nebula.v1 import kv_pb2, lease_pb2
from nebuladb.sim.actor import Actor, unknown
from nebuladb.sim.board import Board
from nebuladb.sim.core import Core
from nebuladb.sim.look import Then
from nebuladb.sim.machine import Machine
from nebuladb.sim.violation import require

TTL: Final = 2
"""Seconds, the shortest that there is."""
ROUNDING_MS: Final = 10
"""Of clock readings, some a renewal."""
LAST_MOMENT_MS: Final = (-100, 200)
"""Around the end of a lease as its holder knows it; the cluster's is later by what the answer took."""
LOCK: Final = b"lock"
LEASED: Final = b"lease/", b"lease0"
"""The range of the keys that are attached besides."""


class Lock:
    """One a group. A holder is sure of it from the answer to its acquisition to the earliest end of its lease."""

    def __init__(self, group: int) -> None:
        self._group = group
        self._holders: dict[str, tuple[int, Leaseholder]] = {}
        self.token = 0
        """The greatest that anybody was given."""

    def acquired(self, who: Leaseholder, token: int, floor: int, now: int) -> None:
        """`who` is told that it holds the lock, having asked when `floor` was the greatest token."""
        require(token > floor, f"group {self._group}: {who.name} got token {token} after token {floor}")
        self.token = max(self.token, token)
        if now > who.until:
            return  # told so late that its lease may have ended meanwhile, it relies on nothing
        for name, (other, holder) in sorted(self._holders.items()):
            require(
                holder is who or now > holder.until,
                f"group {self._group}: {who.name} got the lock with token {token} at {now} ms; {name} holds it with "
                f"token {other} until {holder.until} ms",
            )
        self._holders = {who.name: (token, who)}

    def released(self, who: Leaseholder) -> None:
        """`who` doesn't rely on it any more."""
        self._holders.pop(who.name, None)

    def check(self) -> None:
        """Each was checked when it came."""

    def holds(self, store: Store) -> None:
        """All leases have ended, and with each all that was attached to it (S27)."""
        left = [kv.key for kv in (*store.range(LOCK, b"").kvs, *store.range(*LEASED).kvs)]
        require(not left, f"group {self._group}: {left} are there, and their leases have ended")


class Leaseholder(Actor):
    """Grants itself a lease, attaches a key and, if it is free, the lock; renews for a while; lets go or gives back."""

    refusals = frozenset({Reason.LEASE_NOT_FOUND})

    def __init__(self, core: Core, machines: Sequence[Machine], board: Board, group: int, name: str) -> None:
        super().__init__(core, machines, board, group, name)
        self._sent = -TTL * 1_000
        self._lock = board.fact(group, Lock)
        self._lease = 0
        self._key = b""
        """Attached, if not empty."""
        self._count = 0
        self._abandoned = False

    def _begin(self) -> None:
        draw = self._rng.random()
        if not self._lease:
            self._grant()
        elif not self._key:
            self._attach()
        elif draw < 0.5 or (self._abandoned and draw < 0.97):
            self._see()
        elif draw < 0.6 and not self._abandoned:
            # At the last moment, or just behind it: the renewal and the leader's expiry meet in the log.
            wait = self.until - self._now + self._rng.randrange(*LAST_MOMENT_MS)
            self._core.scheduler.after(max(0, wait), self._renew)
        elif draw < 0.9 and not self._abandoned:
            self._renew()
        elif draw < 0.95:
            self._abandoned = True
            self._see()
        else:
            self._revoke()

    def _forget(self) -> None:
        self._lock.released(self)
        self._lease, self._key, self._abandoned = 0, b"", False

    @property
    def until(self) -> int:
        """Virtual ms up to which the lease certainly lives, if there is one: its time to live, by the fastest clock
        there was, from when the last renewal that succeeded was *sent*."""
        return self._sent + int(TTL * 1_000 / self._core.fastest) - ROUNDING_MS

    def _lived(self, sent: int) -> None:
        self._sent = sent

    def _gone(self, what: str) -> None:
        """The lease has ended, as somebody says now."""
        now = self._now
        require(now >= self.until, f"group {self.group}, {self.name}: {what} at {now} ms, it lives until {self.until}")
        self._core.report.leases_expired += 1
        self._forget()

    def _grant(self) -> None:
        sent = self._now

        def granted(outcome: Answer | NebulaError) -> None:
            answer = self._done(outcome)
            if answer is not None:
                assert isinstance(answer.result, LeaseResult)
                require(answer.result.ttl == TTL, f"group {self.group}, {self.name}: it is granted {answer.result}")
                self._lease = answer.result.lease
                self._lived(sent)
                self._ok()

        self._ask(Command(Kind.LEASE_GRANT, lease_pb2.LeaseGrantRequest(ttl=TTL).SerializeToString()), granted)

    def _attach(self) -> None:
        """Own key and the lock, or the own key alone where the lock is taken."""
        self._count += 1
        key, value = b"lease/%s/%d" % (self.name.encode(), self._count), self.name.encode()
        request = kv_pb2.TxnRequest()
        request.compare.add(target=kv_pb2.Compare.VERSION, key=LOCK, number=0)
        request.success.add(put=kv_pb2.TxnPut(key=LOCK, value=value, lease=self._lease))
        for branch in (request.success, request.failure):
            branch.add(put=kv_pb2.TxnPut(key=key, value=value, lease=self._lease))
        floor = self._lock.token

        def attached(outcome: Answer | NebulaError) -> None:
            if unknown(outcome):
                self._forget()  # what it attached, if anything, goes with the lease
            elif isinstance(outcome, Answer) and outcome.reason == Reason.LEASE_NOT_FOUND:
                self._gone("it is refused as not found")
            answer = self._done(outcome)
            if answer is not None:
                assert isinstance(answer.result, TxnResult)
                self._key = key
                if answer.result.succeeded:
                    self._core.report.locks += 1
                    self._lock.acquired(self, answer.revision, floor, self._now)
                self._ok()

        self._ask(Command(Kind.TXN, request.SerializeToString()), attached)

    def _renew(self) -> None:
        sent = self._now

        def renewed(outcome: Answer | NebulaError) -> None:
            answer = self._done(outcome)
            if answer is None:
                return
            assert isinstance(answer.result, LeaseResult)
            ttl = answer.result.ttl
            if ttl:
                require(
                    ttl == TTL, f"group {self.group}, {self.name}: the renewal's TTL is {ttl} s, granted were {TTL}"
                )
                self._lived(sent)
            else:
                self._gone("there is none to renew")
            self._ok()

        body = lease_pb2.LeaseKeepAliveRequest(id=self._lease).SerializeToString()
        self._ask(Command(Kind.LEASE_KEEP_ALIVE, body), renewed)

    def _see(self) -> None:
        key = self._key

        def looked(store: Store, _: Machine) -> Then:
            if self._observe(store, key) is None:
                self._gone("its key is gone")
            return self._ok

        self._look(looked)

    def _revoke(self) -> None:
        self._lock.released(self)
        body = lease_pb2.LeaseRevokeRequest(id=self._lease).SerializeToString()

        def revoked(outcome: Answer | NebulaError) -> None:
            self._forget()
            if self._done(outcome) is not None:
                self._ok()

        self._ask(Command(Kind.LEASE_REVOKE, body), revoked)

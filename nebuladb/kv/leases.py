"""Leases as rows: granted, renewed, removed (S27). Their keys are in K rows, which `Draft` keeps."""

from __future__ import annotations

from typing import Final

from nebuladb.errors import InvalidArgument, LeaseExists, LeaseNotFound, TooManyLeases
from nebuladb.kv import check
from nebuladb.kv.answer import LeaseResult
from nebuladb.kv.change import LeaseChange
from nebuladb.kv.draft import Draft
from nebuladb.kv.limits import MAX_LEASES
from nebuladb.kv.rows import LeaseRow, decode_lease, encode_lease, is_lease_id
from nebuladb.kv.state import State
from nebuladb.pb.nebula.v1 import lease_pb2

MILLISECONDS: Final = 1000
LAST_CLOCK: Final = (1 << 64) - 1
"""An entry may hold any clock (S22); a lease's end must fit its row."""


class Leases:
    """The leases of a shard, seen through one apply call's draft."""

    def __init__(self, draft: Draft, state: State) -> None:
        self._draft = draft
        self._state = state

    def find(self, lease: int) -> LeaseRow | None:
        """The lease's row, if there is such a lease."""
        if not is_lease_id(lease):
            return None
        data = self._draft.get(self._draft.keys.lease_key(lease))
        return None if data is None else decode_lease(data)

    def require(self, lease: int) -> LeaseRow:
        """Raises `LeaseNotFound`."""
        row = self.find(lease)
        if row is None:
            raise LeaseNotFound(f"lease {lease} does not exist")
        return row

    def grant(self, request: lease_pb2.LeaseGrantRequest, chosen: int, index: int) -> LeaseResult:
        """A new lease under the client's id or, where it left that open, the one `chosen` by the leader.

        Raises `InvalidArgument`, `LeaseTtlTooLarge`, `LeaseExists` or `TooManyLeases`.
        """
        check.lease_grant(request)
        lease = request.id or chosen
        if not is_lease_id(lease):
            raise InvalidArgument(f"a lease can't have the id {lease}")
        if self.find(lease) is not None:
            raise LeaseExists(f"lease {lease} exists already")
        if self._state.leases >= MAX_LEASES:
            raise TooManyLeases(f"the shard holds {MAX_LEASES} leases; revoke some")
        ttl = check.granted_ttl(request.ttl)
        self._state.leases += 1
        self._renew(lease, ttl * MILLISECONDS, index)
        return LeaseResult(lease, ttl)

    def keep_alive(self, lease: int, index: int) -> LeaseResult:
        """Renew a lease as of entry `index`; ttl 0 if there is none (etcd 47).

        A lease past its time is renewed as long as no expiry of it was applied: until then its keys are there, so it is
        alive.
        """
        row = self.find(lease)
        if row is None:
            return LeaseResult(lease, 0)
        self._renew(lease, row.ttl, index)
        return LeaseResult(lease, row.ttl // MILLISECONDS)

    def _renew(self, lease: int, ttl: int, index: int) -> None:
        row = LeaseRow(ttl, min(self._state.clock + ttl, LAST_CLOCK), index)
        self._draft.write(self._draft.keys.lease_key(lease), encode_lease(row))
        self._draft.leases.append(LeaseChange(lease, row.expires, index))

    def remove(self, lease: int) -> None:
        """Forget a lease whose keys are gone."""
        self._draft.remove(self._draft.keys.lease_key(lease))
        self._draft.leases.append(LeaseChange(lease, 0, 0))
        self._state.leases -= 1

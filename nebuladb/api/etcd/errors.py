"""etcd's statuses: the code and the text that its clients match on (etcd 28 to 30; api/v3rpc/rpctypes of etcd 3.5)."""

from __future__ import annotations

from typing import Final

from nebuladb.errors import NebulaError, Reason


class EtcdError(NebulaError):
    """A status as etcd words it."""

    def __init__(self, code: str, text: str, origin: NebulaError | None = None) -> None:
        super().__init__(text)
        self.code = code  # type: ignore[misc]  # of one instance, where the tree has it of a class
        if origin is not None:
            self.reason, self.retryable = origin.reason, origin.retryable  # type: ignore[misc]
            self.outcome, self.group, self.retry_after = origin.outcome, origin.group, origin.retry_after


_TEXTS: Final[dict[Reason, tuple[str, str]]] = {
    Reason.REQUEST_TOO_LARGE: ("INVALID_ARGUMENT", "etcdserver: request is too large"),
    Reason.TOO_MANY_OPERATIONS: ("INVALID_ARGUMENT", "etcdserver: too many operations in txn request"),
    Reason.DUPLICATE_KEY: ("INVALID_ARGUMENT", "etcdserver: duplicate key given in txn request"),
    Reason.KEY_NOT_FOUND: ("INVALID_ARGUMENT", "etcdserver: key not found"),
    Reason.COMPACTED: ("OUT_OF_RANGE", "etcdserver: mvcc: required revision has been compacted"),
    Reason.FUTURE_REVISION: ("OUT_OF_RANGE", "etcdserver: mvcc: required revision is a future revision"),
    Reason.LEASE_NOT_FOUND: ("NOT_FOUND", "etcdserver: requested lease not found"),
    Reason.LEASE_EXISTS: ("FAILED_PRECONDITION", "etcdserver: lease already exists"),
    Reason.LEASE_TTL_TOO_LARGE: ("OUT_OF_RANGE", "etcdserver: too large lease TTL"),
    Reason.NO_SPACE: ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded"),
    Reason.CLUSTER_CORRUPT: ("DATA_LOSS", "etcdserver: corrupt cluster"),
    Reason.TOO_MANY_REQUESTS: ("RESOURCE_EXHAUSTED", "etcdserver: too many requests"),
    Reason.NO_LEADER: ("UNAVAILABLE", "etcdserver: no leader"),
    Reason.NOT_LEADER: ("UNAVAILABLE", "etcdserver: leader changed"),
    Reason.DEADLINE_EXCEEDED: ("UNAVAILABLE", "etcdserver: request timed out"),
    Reason.UNKNOWN_OUTCOME: ("UNAVAILABLE", "etcdserver: request timed out"),
}


def translate(error: NebulaError) -> NebulaError:
    """`error` as etcd would word it; itself where etcd has no word for it."""
    if isinstance(error, EtcdError):
        return error
    known = _TEXTS.get(error.reason)
    return error if known is None else EtcdError(*known, error)

"""One tree of errors for the whole database (house rule 5).

An error says whose fault it was (its gRPC code), whether a retry may help, and, for a write, whether it certainly did
not happen (`Outcome.FAILED`) or may have (`Outcome.UNKNOWN`). It becomes a gRPC status in one place, ``api/status.py``,
and is built from one again in ``client/errors.py``. A call that fails changed nothing, unless its outcome is UNKNOWN.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar, Final

DETAIL_TRAILER: Final = "nebula-error-bin"
"""The trailing metadata in which a status carries its ``ErrorDetail``."""


class Outcome(IntEnum):
    """What a caller may conclude about a write that was answered with an error."""

    FAILED = 1
    UNKNOWN = 2


class Reason(IntEnum):
    """Machine-readable cause. Numbers are on the wire (``ErrorDetail``) and in stored answers: never reuse one.

    No error of this build has TOO_MANY_SESSIONS or BUSY; their numbers stay taken.
    """

    INTERNAL = 1
    INVALID_ARGUMENT = 2
    REQUEST_TOO_LARGE = 3
    KEYSPACE_NOT_FOUND = 4
    NOT_LEADER = 5
    NO_LEADER = 6
    WRONG_EPOCH = 7
    COMPACTED = 8
    FUTURE_REVISION = 9
    LEASE_NOT_FOUND = 10
    LEASE_EXISTS = 11
    LEASE_TTL_TOO_LARGE = 12
    WRONG_SHARD = 13
    SESSION_EXPIRED = 14
    SESSION_WINDOW = 15
    TOO_MANY_REQUESTS = 16
    TOO_MANY_OPERATIONS = 17
    DUPLICATE_KEY = 18
    RESULT_TOO_LARGE = 19
    UNAVAILABLE = 20
    UNKNOWN_OUTCOME = 21
    DEADLINE_EXCEEDED = 22
    PERMISSION_DENIED = 23
    UNIMPLEMENTED = 24
    WRITE_STALLED = 25
    CORRUPTION = 26
    DISK = 27
    IDENTITY = 28
    CONFIGURATION = 29
    TOO_MANY_SESSIONS = 30
    TOO_MANY_LEASES = 31
    KEY_NOT_FOUND = 32
    BUSY = 33
    KEYSPACE_EXISTS = 34
    CHANGE_REFUSED = 35
    NODE_REMOVED = 36
    NO_SPACE = 40
    CLUSTER_CORRUPT = 41
    HASH_NOT_FOUND = 42


class NebulaError(Exception):
    """The root. `code` is the name of the gRPC status code that tells whose fault it was."""

    reason: ClassVar[Reason] = Reason.INTERNAL
    code: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False
    outcome: Outcome = Outcome.FAILED
    group: int = 0
    """The shard it is about, where there is one."""
    retry_after: int = 0
    """Milliseconds before which trying again makes no sense; 0: nobody knows."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (self.__doc__ or "").splitlines()[0])

    @property
    def message(self) -> str:
        """One line for a person, which says what to do."""
        return str(self.args[0])


class InvalidArgument(NebulaError):
    """The request can never succeed as it is."""

    reason = Reason.INVALID_ARGUMENT
    code = "INVALID_ARGUMENT"


class RequestTooLarge(InvalidArgument):
    """A request is at most 1.5 MiB; split the value or the transaction."""

    reason = Reason.REQUEST_TOO_LARGE


class TooManyOperations(InvalidArgument):
    """A transaction has at most 128 operations."""

    reason = Reason.TOO_MANY_OPERATIONS


class DuplicateKey(InvalidArgument):
    """A transaction may write a key once."""

    reason = Reason.DUPLICATE_KEY


class KeyspaceNotFound(NebulaError):
    """No such keyspace; `nebula-cli keyspace list` shows those there are."""

    reason = Reason.KEYSPACE_NOT_FOUND
    code = "NOT_FOUND"


class KeyspaceExists(NebulaError):
    """There is a keyspace of this name already, made otherwise."""

    reason = Reason.KEYSPACE_EXISTS
    code = "ALREADY_EXISTS"


class KeyNotFound(NebulaError):
    """The key does not exist."""

    reason = Reason.KEY_NOT_FOUND
    code = "NOT_FOUND"


class HashNotFound(NebulaError):
    """The node has no hash of its state at this log index: it has restarted since, or took too many others."""

    reason = Reason.HASH_NOT_FOUND
    code = "NOT_FOUND"


class NotLeader(NebulaError):
    """This replica does not lead the shard."""

    reason = Reason.NOT_LEADER
    code = "UNAVAILABLE"
    retryable = True

    def __init__(self, message: str = "", leader: int = 0) -> None:
        super().__init__(message)
        self.leader = leader
        """The leader as far as it is known, else 0: a replica id where Raft raises it, a node id in the client."""


class NoLeader(NebulaError):
    """The shard has no leader now; try again shortly."""

    reason = Reason.NO_LEADER
    code = "UNAVAILABLE"
    retryable = True


class Unavailable(NebulaError):
    """The node can't serve this now, and nothing was done; try again."""

    reason = Reason.UNAVAILABLE
    code = "UNAVAILABLE"
    retryable = True


class UnknownOutcome(NebulaError):
    """The write may or may not take effect; read before you write again, or use a session."""

    reason = Reason.UNKNOWN_OUTCOME
    code = "ABORTED"
    outcome = Outcome.UNKNOWN


class ClientClosed(NebulaError):
    """The client is closed; make another one."""

    code = "FAILED_PRECONDITION"


class DeadlineExceeded(NebulaError):
    """The deadline passed before the request could begin."""

    reason = Reason.DEADLINE_EXCEEDED
    code = "DEADLINE_EXCEEDED"
    retryable = True


class TooManyRequests(NebulaError):
    """Too much is waiting already; back off and try again."""

    reason = Reason.TOO_MANY_REQUESTS
    code = "RESOURCE_EXHAUSTED"
    retryable = True
    retry_after = 50


class NoSpace(NebulaError):
    """The disk is nearly full: deletions and compactions are taken, other writes are not. Nothing was done."""

    reason = Reason.NO_SPACE
    code = "RESOURCE_EXHAUSTED"
    retryable = True
    retry_after = 500


class ClusterCorrupt(NebulaError):
    """An operator raised the alarm CORRUPT: reads are served, writes are not, until it is taken back."""

    reason = Reason.CLUSTER_CORRUPT
    code = "DATA_LOSS"


class ChangeRefused(NebulaError):
    """A change of members that isn't possible now, or isn't safe. Nothing was proposed."""

    reason = Reason.CHANGE_REFUSED
    code = "FAILED_PRECONDITION"


class WrongEpoch(NebulaError):
    """The request names an old descriptor of the shard; fetch the new one."""

    reason = Reason.WRONG_EPOCH
    code = "FAILED_PRECONDITION"
    retryable = True

    def __init__(self, message: str = "", epoch: int = 0) -> None:
        super().__init__(message)
        self.epoch = epoch
        """The shard's current epoch."""


class WrongShard(NebulaError):
    """The key or lease belongs to another shard."""

    reason = Reason.WRONG_SHARD
    code = "FAILED_PRECONDITION"


class Compacted(NebulaError):
    """The revision has been compacted away."""

    reason = Reason.COMPACTED
    code = "OUT_OF_RANGE"

    def __init__(self, message: str = "", floor: int = 0) -> None:
        super().__init__(message)
        self.floor = floor
        """The oldest revision that can still be read."""


class FutureRevision(NebulaError):
    """The revision has not happened yet."""

    reason = Reason.FUTURE_REVISION
    code = "OUT_OF_RANGE"


class LeaseNotFound(NebulaError):
    """The lease does not exist: it was never granted, was revoked, or has expired."""

    reason = Reason.LEASE_NOT_FOUND
    code = "NOT_FOUND"


class LeaseExists(NebulaError):
    """A lease with this id exists already."""

    reason = Reason.LEASE_EXISTS
    code = "FAILED_PRECONDITION"


class LeaseTtlTooLarge(NebulaError):
    """A TTL is at most 9,000,000,000 seconds."""

    reason = Reason.LEASE_TTL_TOO_LARGE
    code = "OUT_OF_RANGE"


class TooManyLeases(NebulaError):
    """The shard holds as many leases as it may."""

    reason = Reason.TOO_MANY_LEASES
    code = "RESOURCE_EXHAUSTED"


class SessionExpired(NebulaError):
    """The session is not known any more, so whether an earlier try took effect can't be told; open a new one."""

    reason = Reason.SESSION_EXPIRED
    code = "FAILED_PRECONDITION"


class SessionWindow(NebulaError):
    """The sequence number lies below what the session still answers, or too far above it."""

    reason = Reason.SESSION_WINDOW
    code = "INVALID_ARGUMENT"


class ResultTooLarge(NebulaError):
    """The result would be larger than a response may be; ask for less with a limit, or use Scan."""

    reason = Reason.RESULT_TOO_LARGE
    code = "RESOURCE_EXHAUSTED"


class StoreError(NebulaError):
    """The storage engine failed."""

    reason = Reason.DISK


class DataDamaged(StoreError):
    """The data store as a whole can't be used, because something in it is damaged."""

    reason = Reason.CORRUPTION
    code = "DATA_LOSS"


class WriteStalled(StoreError):
    """The engine refused the write for now; nothing of it was done (S32)."""

    reason = Reason.WRITE_STALLED
    code = "UNAVAILABLE"
    retryable = True


class StoreClosed(StoreError):
    """The database, or the snapshot of it, was closed meanwhile: nothing is wrong with the disk."""


class DiskFull(StoreError):
    """No space is left on the device."""


class Corruption(StoreError):
    """Stored bytes are not what was written."""

    reason = Reason.CORRUPTION
    code = "DATA_LOSS"


class IdentityError(NebulaError):
    """This data directory, name or peer is not who it claims to be (S14, S18)."""

    reason = Reason.IDENTITY
    code = "FAILED_PRECONDITION"


class NodeRemoved(NebulaError):
    """This node was removed from its cluster, and must not come back under its id."""

    reason = Reason.NODE_REMOVED
    code = "FAILED_PRECONDITION"


class ConfigurationError(NebulaError):
    """A setting is missing or wrong."""

    reason = Reason.CONFIGURATION
    code = "INVALID_ARGUMENT"


class InvariantViolation(NebulaError):
    """A safety invariant is broken: a bug or damaged memory. The node stops; it never limps on."""


def invariant(condition: bool, message: str) -> None:
    """Raise `InvariantViolation` unless `condition`: an assertion that survives ``python -O`` (house rule 4)."""
    if not condition:
        raise InvariantViolation(message)

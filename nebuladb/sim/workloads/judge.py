"""Whether an answer is the one that a request must get, by what the cluster has published."""

from __future__ import annotations

from typing import Final

from nebuladb.errors import InvariantViolation, NebulaError, Reason, StoreError
from nebuladb.kv import check
from nebuladb.kv.answer import Answer, DeleteResult, OperationResult, PutResult, Result, TxnResult
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.store import Store
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.sim.invariants.changes import Changes
from nebuladb.sim.invariants.past import Contents
from nebuladb.sim.violation import Violation, require
from nebuladb.sim.workloads.expected import Expectation, Expected, Refused, Unknown
from nebuladb.sim.workloads.shapes import HIGH, LOW

JUDGED: Final = (Kind.PUT, Kind.DELETE, Kind.TXN)
SESSIONS: Final = (Reason.SESSION_EXPIRED, Reason.SESSION_WINDOW)
"""Refused before anything of the request is looked at."""


class Judge:
    """Of the requests of one group that ask for keys of [`LOW`, `HIGH`) only."""

    def __init__(self, changes: Changes, group: int, where: str) -> None:
        self.judged = 0
        """Answers compared with what they had to be."""
        self._changes = changes
        self._group = group
        self._where = f"group {group}, {where}"

    def wrote(self, command: Command, answer: Answer) -> None:
        """The answer of a write, or why it was refused."""
        if answer.reason in SESSIONS:
            return
        wrote = stepped(answer.result)
        expectation = self._expect(_request(command), answer.revision - wrote)
        if expectation is None:
            return
        expected = self._outcome(expectation, answer, 0)
        if expected is None:
            return
        result: Result = expected.result if command.kind == Kind.TXN else expected.result.results[0]
        self._same(command, answer.result, result)
        after = self._changes.contents(self._group, answer.revision, LOW, HIGH)
        require(
            bool(expected.changes) == wrote and after in (None, expected.contents),
            f"{self._where}: {command} leaves {after} at revision {answer.revision}, it had to be {expected.contents}",
        )

    def read(self, store: Store, request: kv_pb2.TxnRequest) -> None:
        """What a store says now to a transaction that writes nothing."""
        answer = Answer(store.revision)
        try:
            answer = answer._replace(result=store.read(check.txn(request)))
        except (StoreError, InvariantViolation):
            raise
        except NebulaError as error:
            answer = answer._replace(reason=error.reason)
        expectation = self._expect(request, store.revision)
        if expectation is None:
            return
        expected = self._outcome(expectation, answer, store.floor)
        if expected is not None:
            self._same(request, answer.result, expected.result)

    def _expect(self, request: kv_pb2.TxnRequest, revision: int) -> Expectation | None:
        before = self._then(revision)
        return None if before is None else Expectation(request, before, revision, self._then)

    def _then(self, revision: int) -> Contents | None:
        return self._changes.contents(self._group, revision, LOW, HIGH)

    def _outcome(self, expectation: Expectation, answer: Answer, floor: int) -> Expected | None:
        """What a request that was done had to answer; None if it was refused, rightly, or nobody knows any more."""
        reason = 0
        try:
            expected = expectation.outcome(floor)
        except Refused as refused:
            reason = refused.reason
        except Unknown:
            return None
        self.judged += 1
        if answer.reason == Reason.LEASE_NOT_FOUND:
            rightly = any(put.lease for put in expectation.puts)
        elif answer.reason == Reason.COMPACTED and not floor:
            rightly = any(0 < asked.revision < answer.detail for asked in expectation.ranges)
        else:
            rightly = answer.reason == reason
        if not rightly:
            raise Violation(f"{self._where}: {answer} has reason {answer.reason}, it had to be {reason}")
        return None if answer.reason else expected

    def _same(self, request: object, found: Result, wanted: Result) -> None:
        require(found == wanted, f"{self._where}: {request} is answered {found}, it had to be {wanted}")


def _request(command: Command) -> kv_pb2.TxnRequest:
    """A write as the transaction that does the same."""
    request = kv_pb2.TxnRequest()
    if command.kind == Kind.PUT:
        put = kv_pb2.PutRequest.FromString(command.body)
        request.success.add(
            put=kv_pb2.TxnPut(
                key=put.key, value=put.value, lease=put.lease, prev_kv=put.prev_kv, ignore_value=put.ignore_value,
                ignore_lease=put.ignore_lease,
            )
        )  # fmt: skip
    elif command.kind == Kind.DELETE:
        delete = kv_pb2.DeleteRequest.FromString(command.body)
        request.success.add(delete=kv_pb2.TxnDelete(key=delete.key, range_end=delete.range_end, prev_kv=delete.prev_kv))
    else:
        request.ParseFromString(command.body)
    return request


def stepped(result: Result | OperationResult) -> bool:
    """Whether an answer says that something was changed, so that the revision is a new one."""
    if isinstance(result, TxnResult):
        return any(map(stepped, result.results))
    return isinstance(result, PutResult) or (isinstance(result, DeleteResult) and result.deleted > 0)

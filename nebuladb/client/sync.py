"""The synchronous client: the asynchronous one on a thread of its own."""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import sys
import threading
import weakref
from collections.abc import (
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any, Concatenate, Final, Generic, NoReturn, ParamSpec, Self, TypeVar

from nebuladb.client.aio import AsyncClient
from nebuladb.client.errors import FORKED, PICKLED
from nebuladb.client.items import Items, SyncItems, Work
from nebuladb.client.lease import LeaseKeeper
from nebuladb.client.lock import Lock
from nebuladb.client.requests import check_mapping
from nebuladb.client.scan import Rows, SyncRows
from nebuladb.client.txn import SyncTxn
from nebuladb.client.types import BatchResult, KeyValue, TxnResult
from nebuladb.client.writes import Writes
from nebuladb.errors import ClientClosed, InvalidArgument, NebulaError, UnknownOutcome

Given = ParamSpec("Given")
Result = TypeVar("Result")
Wrapped = TypeVar("Wrapped", bound=Callable[..., Any])
Held = TypeVar("Held", LeaseKeeper, Lock)

CLOSING: Final = 1.0
"""Seconds for which `close` lets what it ended come to its own end."""


class _Handed(Generic[Result]):
    """One thread's work on the loop's. No concurrent future: an interrupt amid its condition's own steps leaves that
    locked, and the loop waits for it ever after; a lock is waited for in one step."""

    def __init__(self, work: Coroutine[Any, Any, Result], loop: asyncio.AbstractEventLoop) -> None:
        self._work = work
        self._loop = loop
        self._task: asyncio.Task[Result] | None = None
        self._come = threading.Lock()
        self._come.acquire()
        self._results: list[Result] = []
        self._error: BaseException | None = None
        self._over = False

    def begin(self) -> None:
        """On the loop's thread."""
        self._task = self._loop.create_task(self._work)
        self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[Result]) -> None:
        self._task = None
        try:
            self._results.append(task.result())
        except BaseException as error:
            self._error = error
        self._over = True
        self._come.release()

    def wait(self) -> Result:
        """Its result or exception."""
        self._come.acquire()
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
            return self._results.pop()
        finally:
            del error

    def refuse(self) -> None:
        """It was not handed over."""
        self._over = True
        self._work.close()

    def cancel(self) -> None:
        """Unless it has ended. Waits for nothing."""
        if not self._over:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        else:
            self._work.close()  # it has ended, or the interrupt came before it was handed over


class _Thread:
    """An event loop on a daemon thread. A forked child has no such thread, and may not use it.

    The thread knows nothing of this object, and ends with it: whoever lets go of a client, and of all that is read from
    it, without a `close` leaves nothing behind.
    """

    def __init__(self, last: Work) -> None:
        """`last`: what its end begins with."""
        self._loop = asyncio.new_event_loop()
        self._process = os.getpid()
        self._gate = threading.RLock()
        """Work is handed over under it, so that none comes after the end, which nobody would do. Amid it a finalizer or
        a signal handler may hand over more."""
        self._closed = False
        self._end = asyncio.Event()
        self._leaving: set[asyncio.Task[None]] = set()
        self._serving = threading.Lock()
        """Held until the loop is closed. Before Python 3.13 a `join` that is interrupted takes the thread for ended."""
        self._serving.acquire()
        self._thread = threading.Thread(
            target=self._serve, args=(self._loop, self._end, last, self._serving), name="nebula-client", daemon=True
        )
        weakref.finalize(self, self._dropped, self._loop, self._end, self._process).atexit = False
        self._thread.start()

    def __reduce__(self) -> NoReturn:
        raise TypeError(PICKLED)

    @classmethod
    def _serve(cls, loop: asyncio.AbstractEventLoop, end: asyncio.Event, last: Work, serving: threading.Lock) -> None:
        try:
            loop.run_until_complete(end.wait())
            loop.run_until_complete(cls._finish(loop, last))
        finally:
            loop.close()
            serving.release()

    @staticmethod
    def _dropped(loop: asyncio.AbstractEventLoop, end: asyncio.Event, process: int) -> None:
        if os.getpid() == process:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(end.set)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Its result or exception; an interrupted wait cancels it. Raises `ClientClosed`, and on the loop's own thread
        `InvalidArgument`."""
        handed = _Handed(work, self._loop)
        try:
            self._hand_over(handed)
            return handed.wait()
        except asyncio.CancelledError:
            raise UnknownOutcome("the client was closed meanwhile: a write may or may not take effect") from None
        except BaseException:
            handed.cancel()
            raise

    def _hand_over(self, handed: _Handed[Any]) -> None:
        """It is the loop's from then on, whatever interrupts us: only what is refused is ours to close."""
        refusal = self._elsewhere()
        if refusal is None:
            with self._gate:
                if not self._closed:
                    with suppress(RuntimeError):  # a signal's handler has closed us just now
                        self._loop.call_soon_threadsafe(handed.begin)
                        return
                refusal = ClientClosed()
        handed.refuse()
        raise refusal

    def _elsewhere(self) -> NebulaError | None:
        """Why nothing may be waited for where we are."""
        if os.getpid() != self._process:
            return ClientClosed(FORKED)
        if sys.is_finalizing():  # daemon threads run no more, and what is handed over would be waited for for ever
            return ClientClosed("the interpreter is at its end, and so is the client's thread; close the client before")
        if threading.current_thread() is self._thread:
            return InvalidArgument(
                "a call on the client's own thread would wait for itself; if it comes from a generator that was handed "
                "to another call, hand over a list"
            )
        return None

    def leave(self, end: Work) -> None:
        """Have it done, and wait for nothing: it may be asked for in the collector, which may run on the loop's own
        thread, and at the interpreter's end, when that thread doesn't run any more."""
        if os.getpid() == self._process:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._begin, end)

    def _begin(self, end: Work) -> None:
        if not self._closed:  # else `_finish` ends all
            task = self._loop.create_task(end())
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    def close(self) -> None:
        """Do what is last, let all else end, and wait for it. Idempotent; one that is interrupted may be repeated, and
        the thread ends even so. At the interpreter's end there is nothing to wait for: the thread stands still."""
        if os.getpid() != self._process or sys.is_finalizing():
            return
        with self._gate:
            self._closed = True
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._end.set)
        if threading.current_thread() is not self._thread:
            with self._serving:
                pass
            self._thread.join()

    @staticmethod
    async def _finish(loop: asyncio.AbstractEventLoop, last: Work) -> None:
        await last()
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            _, late = await asyncio.wait(others, timeout=CLOSING)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await loop.shutdown_asyncgens()


def _waits(
    method: Callable[Concatenate[Any, Given], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate[SyncWrites, Given], Result]:
    """A method of the asynchronous side as one that waits for its answer."""

    @wraps(method)
    def call(self: SyncWrites, /, *given: Given.args, **named: Given.kwargs) -> Result:
        return self._thread.run(method(self._behind, *given, **named))

    return call


def _streams(
    method: Callable[Concatenate[AsyncClient, Given], Items[Result]],
) -> Callable[Concatenate[Client, Given], SyncItems[Result]]:
    """What the asynchronous client gives one by one as that whose every `next` waits."""

    @wraps(method)
    def call(self: Client, /, *given: Given.args, **named: Given.kwargs) -> SyncItems[Result]:
        return SyncItems(method(self._client, *given, **named), self._thread.run, self._thread.leave)

    return _shown(call, method)


def _scans(
    method: Callable[Concatenate[AsyncClient, Given], Rows],
) -> Callable[Concatenate[Client, Given], SyncRows]:
    @wraps(method)
    def call(self: Client, /, *given: Given.args, **named: Given.kwargs) -> SyncRows:
        return SyncRows(method(self._client, *given, **named), self._thread.run, self._thread.leave)

    return _shown(call, method)


def _shown(call: Wrapped, method: Callable[..., Any]) -> Wrapped:
    """`call`, of which `help` says what it gives: not Items or Rows, but the synchronous one of that name."""
    shown = inspect.signature(method)
    call.__signature__ = shown.replace(return_annotation=f"Sync{shown.return_annotation}")  # type: ignore[attr-defined]
    return call


class SyncWrites:
    """As `Writes`, but each call waits for its answer."""

    def __init__(self, thread: _Thread, behind: Writes) -> None:
        """`behind` does the work."""
        self._thread = thread
        self._behind = behind

    put = _waits(Writes.put)
    delete = _waits(Writes.delete)
    compare_and_set = _waits(Writes.compare_and_set)
    grant_lease = _waits(Writes.grant_lease)
    revoke_lease = _waits(Writes.revoke_lease)

    def txn(self) -> SyncTxn:
        """A transaction to be built: ``client.txn().when("version", k, "=", 0).put(k, v).commit()``."""
        return SyncTxn(lambda request: self._thread.run(self._behind._commit(request)))

    def commit(self, txn: SyncTxn) -> TxnResult:
        """``txn.commit()``."""
        return txn.commit()


class Client(SyncWrites):
    """A cluster, seen from one keyspace; `AsyncClient` says what each call does. Threads may share it.

    A forked child makes one of its own: there every call raises `ClientClosed`. Not with `NEBULA_RPC_ENGINE=grpcio`,
    which does not survive a fork: a child that was forked from a process with a client hangs in its own, so start it
    anew, as multiprocessing's "spawn" does.
    """

    def __init__(self, endpoints: Sequence[str], *, keyspace: str = "default", timeout: float = 5.0) -> None:
        """As `AsyncClient`."""
        self._client = AsyncClient(endpoints, keyspace=keyspace, timeout=timeout)
        super().__init__(_Thread(self._client.close), self._client)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every connection, what waits in other threads, and the thread. Idempotent; where it was interrupted, a
        second one waits for the end of the first."""
        self._thread.close()

    @property
    def keyspace(self) -> str:
        """The keyspace that it works in."""
        return self._client.keyspace

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The addresses, as they were given but for repetitions."""
        return self._client.endpoints

    get = _waits(AsyncClient.get)
    scan = _scans(AsyncClient.scan)
    watch = _streams(AsyncClient.watch)
    compact = _waits(AsyncClient.compact)
    time_to_live = _waits(AsyncClient.time_to_live)
    leases = _waits(AsyncClient.leases)

    keyspaces = _waits(AsyncClient.keyspaces)
    describe_keyspace = _waits(AsyncClient.describe_keyspace)
    create_keyspace = _waits(AsyncClient.create_keyspace)
    drop_keyspace = _waits(AsyncClient.drop_keyspace)
    shards = _waits(AsyncClient.shards)
    members = _waits(AsyncClient.members)
    add_member = _waits(AsyncClient.add_member)
    promote_member = _waits(AsyncClient.promote_member)
    remove_member = _waits(AsyncClient.remove_member)
    discover = _waits(AsyncClient.discover)
    status = _waits(AsyncClient.status)
    order_hash = _waits(AsyncClient.order_hash)
    state_hash = _waits(AsyncClient.state_hash)
    snapshot = _streams(AsyncClient.snapshot)
    transfer_leadership = _waits(AsyncClient.transfer_leadership)

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, KeyValue | None]:
        """Every one of `keys`, asked of all shards at once; not of one moment. They may come from this client itself:
        ``client.get_many(row.value for row in client.scan(b"index/"))``."""
        return self._thread.run(self._client.get_many(list(keys)))

    def batch(self, puts: Mapping[bytes, bytes], deletes: Iterable[bytes] = ()) -> BatchResult:
        """Write many keys, in all shards at once: a transaction for each 128 keys of a shard, not one over all.

        An error whose outcome is FAILED says that nothing of it was done; any other that a part may have been. After
        one of them has failed no other is begun.
        """
        check_mapping("puts", puts)
        return self._thread.run(self._client.batch(dict(puts), list(deletes)))

    @contextmanager
    def session(self) -> Iterator[SyncWrites]:
        """Exactly-once writes: ``with client.session() as session:``."""
        session = self._client.session()
        try:
            yield SyncWrites(self._thread, session)
        finally:
            with suppress(ClientClosed):
                self._thread.run(session.close())

    @contextmanager
    def keep_alive(self, lease: int) -> Iterator[LeaseKeeper]:
        """Renews `lease` in the background until the block ends: ``with client.keep_alive(lease) as keeper:``.

        Of the keeper `held` and `check` are for any thread; what must be waited for is not."""
        with self._entered(self._client.keep_alive(lease)) as keeper:
            yield keeper

    @contextmanager
    def lock(self, name: bytes, *, ttl: int = 10, value: bytes = b"", timeout: float = math.inf) -> Iterator[Lock]:
        """The lock that is the key `name`, as `AsyncClient.lock`: ``with client.lock(b"report") as lock:``.

        Of the lock `token`, `held` and `check` are for any thread; what must be waited for is not."""
        with self._entered(self._client.lock(name, ttl=ttl, value=value, timeout=timeout)) as lock:
            yield lock

    @contextmanager
    def _entered(self, held: Held) -> Iterator[Held]:
        try:
            self._thread.run(held.__aenter__())  # interrupted, it may have begun
            yield held
        finally:
            try:
                with suppress(ClientClosed):
                    self._thread.run(held.__aexit__())
            except BaseException:  # interrupted, it may not have begun
                self._thread.leave(held.__aexit__)
                raise

"""The synchronous client: the asynchronous one on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Self, TypeVar

from nebuladb.client.aio import AsyncClient
from nebuladb.client.txn import Txn
from nebuladb.client.types import CasResult, DeleteResult, Event, KeyValue, LeaseInfo, PutResult, TxnResult
from nebuladb.client.writes import Writes

Result = TypeVar("Result")

BATCH: Final = 256
"""Rows of a scan that cross the threads at a time."""


class _Thread:
    """An event loop on a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="nebula-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Its result or exception; an interrupted wait cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def each(self, items: AsyncIterator[Result], batch: int) -> Iterator[Result]:
        """The items, `batch` a hop between the threads."""

        async def take() -> list[Result]:
            taken: list[Result] = []
            async for item in items:
                taken.append(item)
                if len(taken) == batch:
                    break
            return taken

        async def end() -> None:
            await items.aclose()  # type: ignore[attr-defined]  # every one here is a generator

        try:
            while taken := self.run(take()):
                yield from taken
        finally:
            self.run(end())

    def close(self) -> None:
        """Stop the loop and wait for its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class SyncWrites:
    """As `Writes`, but each call waits for its answer."""

    def __init__(self, thread: _Thread, writes: Writes) -> None:
        self._thread = thread
        self._writes = writes

    def put(self, key: bytes, value: bytes, *, lease: int = 0, prev_kv: bool = False) -> PutResult:
        """Set `key`."""
        return self._thread.run(self._writes.put(key, value, lease=lease, prev_kv=prev_kv))

    def delete(self, key: bytes, range_end: bytes = b"", *, prev_kv: bool = False) -> DeleteResult:
        """Delete `key`, or [key, range_end)."""
        return self._thread.run(self._writes.delete(key, range_end, prev_kv=prev_kv))

    def compare_and_set(
        self, key: bytes, value: bytes, *, expected: bytes | None = None, mod_revision: int | None = None
    ) -> CasResult:
        """Set `key` if it is as expected; None: if it doesn't exist."""
        return self._thread.run(self._writes.compare_and_set(key, value, expected=expected, mod_revision=mod_revision))

    def txn(self) -> Txn:
        """A transaction to be built, for `commit`."""
        return self._writes.txn()

    def commit(self, txn: Txn) -> TxnResult:
        """Run a transaction that `txn` of this object began."""
        return self._thread.run(txn.commit())

    def grant_lease(self, ttl: int, *, key: bytes = b"") -> LeaseInfo:
        """A lease of `ttl` seconds in `key`'s shard."""
        return self._thread.run(self._writes.grant_lease(ttl, key=key))

    def revoke_lease(self, lease: int) -> None:
        """End a lease, and delete its keys."""
        self._thread.run(self._writes.revoke_lease(lease))


class Client(SyncWrites):
    """A cluster, seen from one keyspace; `AsyncClient` says what each call does. Threads may share it.

    Who needs keepers of leases or the cluster's calls uses `AsyncClient`.
    """

    def __init__(self, endpoints: Sequence[str], *, keyspace: str = "default", timeout: float = 5.0) -> None:
        """As `AsyncClient`."""
        self._client = AsyncClient(endpoints, keyspace=keyspace, timeout=timeout)
        super().__init__(_Thread(), self._client)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every connection, and the thread."""
        self._thread.run(self._client.close())
        self._thread.close()

    def get(self, key: bytes, *, revision: int = 0, serializable: bool = False) -> KeyValue | None:
        """`key` now, or at `revision`; None if it isn't there."""
        return self._thread.run(self._client.get(key, revision=revision, serializable=serializable))

    def scan(
        self, start: bytes = b"", end: bytes = b"", *, limit: int = 0, revision: int = 0, keys_only: bool = False
    ) -> Iterator[KeyValue]:
        """The keys of [start, end) in order, of one revision."""
        rows = self._client.scan(start, end, limit=limit, revision=revision, keys_only=keys_only)
        return self._thread.each(rows, BATCH)

    def watch(self, key: bytes, range_end: bytes = b"", *, start_revision: int = 0) -> Iterator[Event]:
        """Every change, once, in order; each `next` waits for one."""
        return self._thread.each(self._client.watch(key, range_end, start_revision=start_revision), 1)

    @contextmanager
    def session(self) -> Iterator[SyncWrites]:
        """Exactly-once writes."""
        session = self._client.session()
        try:
            yield SyncWrites(self._thread, session)
        finally:
            self._thread.run(session.close())

"""Exactly-once writes (S20)."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final, Generic, Self, TypeVar

from google.protobuf.message import Message

from nebuladb.client import methods
from nebuladb.client.methods import Method
from nebuladb.client.requests import built
from nebuladb.client.retry import Kind
from nebuladb.client.shardmap import ShardMap
from nebuladb.client.transport import RoutedRequest, Transport
from nebuladb.client.writes import WriteRequest, Writes
from nebuladb.errors import ClientClosed, KeyspaceNotFound, NebulaError, SessionExpired, SessionWindow, WrongShard
from nebuladb.pb.nebula.v1 import common_pb2, keyspace_pb2, session_pb2

Answer = TypeVar("Answer", bound=Message)
Found = TypeVar("Found")

WINDOW: Final = 64
"""Sequence numbers under way, from the lowest unanswered one on; a shard accepts 256."""


CLOSING: Final = 1.0
"""Seconds that closing may take, in all shards together: whoever leaves shall not wait for a dead cluster."""


class Window:
    """The sequence numbers of one shard's session.

    Invariant: every number in use lies in [lowest, lowest + WINDOW). It isn't enough to bound how many are in use: one
    slow request would be left behind by the others, and the shard would refuse them.
    """

    def __init__(self, group: int, session: int) -> None:
        self.group = group
        self.session = session
        self._next = 1
        self._used: set[int] = set()
        self._waiting: deque[asyncio.Future[int]] = deque()
        """For a number, in order. If the next number fits nobody waits but who was cancelled."""
        self._rises: list[asyncio.Future[None]] = []
        """Of those who wait for `lowest` to rise."""

    @property
    def lowest(self) -> int:
        """The lowest number whose answer is still waited for; else the next."""
        return min(self._used, default=self._next)

    @asynccontextmanager
    async def number(self) -> AsyncIterator[common_pb2.SessionRef]:
        """The next number, once it fits; in use until the block ends."""
        sequence = self._take() if self._next < self.lowest + WINDOW else await self._wait()
        try:
            yield common_pb2.SessionRef(id=self.session, sequence=sequence, lowest_unanswered=self.lowest)
        finally:
            self._free(sequence)

    async def risen(self, above: int) -> None:
        """Wait until `lowest` is above that."""
        while self.lowest <= above:
            rise: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._rises.append(rise)
            await rise

    def _take(self) -> int:
        sequence = self._next
        self._next += 1
        self._used.add(sequence)
        return sequence

    async def _wait(self) -> int:
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():  # it had been given its number by then
                self._free(waiter.result())
            raise

    def _free(self, sequence: int) -> None:
        """As many as there is room for now get their numbers. To wake all that wait for each one that is freed would
        take the square of their number."""
        self._used.discard(sequence)
        lowest = self.lowest
        if self._rises and lowest > sequence:  # it was the lowest one
            for rise in self._rises:
                if not rise.done():
                    rise.set_result(None)
            self._rises.clear()
        end = lowest + WINDOW
        while self._waiting and self._next < end:
            waiter = self._waiting.popleft()
            if not waiter.done():  # else it was cancelled
                waiter.set_result(self._take())


class _OnItsWay(Generic[Found]):
    """What all writes need and one of them fetches: the shards, or one shard's part of the session. Who waits for it
    while that fails doesn't wait for as long again."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._begun = 0
        self._failure: tuple[int, NebulaError] | None = None

    async def run(self, known: Callable[[], Found | None], fetch: Callable[[], Awaitable[Found]]) -> Found:
        """What `known` has once it is this one's turn, else of `fetch`, or the error of one that began since."""
        asked = self._begun
        async with self._lock:
            if (found := known()) is not None:
                return found
            if self._failure is not None and self._failure[0] > asked:
                raise self._failure[1]
            self._begun += 1
            try:
                return await fetch()
            except NebulaError as error:
                self._failure = self._begun, error
                raise


class Session(Writes):
    """Writes that happen once, however often they must be sent; an answer is the first execution's.

    A shard's part is opened when it is first needed. At most `WINDOW` writes a shard are under way, further ones wait.
    `SessionExpired` (the shard evicted the session in favour of newer ones) reaches the caller, since nobody can tell
    any more whether that write took effect, unless ``outcome`` is FAILED; later writes get a new session. After `close`
    they raise `ClientClosed`.
    """

    def __init__(self, transport: Transport, keyspace: str) -> None:
        self.keyspace = keyspace
        self._transport = transport
        self._map: ShardMap | None = None
        self._windows: dict[int, Window] = {}
        self._asking: _OnItsWay[ShardMap] = _OnItsWay()
        self._opening: defaultdict[int, _OnItsWay[Window]] = defaultdict(_OnItsWay)
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let the shards forget the session, all at once. A failure is ignored: they would evict it anyway."""
        self._closed = True
        windows, self._windows = self._windows, {}
        await asyncio.gather(*map(self._close, windows.values()))

    async def _close(self, window: Window) -> None:
        request = session_pb2.SessionCloseRequest(keyspace=self.keyspace, group=window.group, id=window.session)
        with suppress(NebulaError):
            await self._transport.call(methods.SESSION_CLOSE, request, timeout=CLOSING)

    async def _write(self, method: Method[Answer], request: WriteRequest, key: bytes, group: int = 0) -> Answer:
        due = self._transport.clock() + self._transport.timeout
        while True:
            window = await self._window(key, group)
            try:
                async with window.number() as reference:
                    self._check_open()  # it may have waited
                    return await self._numbered(method, request, window, reference)
            except SessionWindow:
                # The answers that the shard keeps for the session fill it: nothing was done, so that another number is
                # safe. It tells of the answers that have come meanwhile; an old one, of a slow write, would tell of
                # none, and be refused for ever.
                if self._transport.clock() >= due:
                    raise
                await window.risen(reference.lowest_unanswered)

    async def _numbered(
        self, method: Method[Answer], request: WriteRequest, window: Window, reference: common_pb2.SessionRef
    ) -> Answer:
        request.session.CopyFrom(reference)
        epoch = self._map.epoch(window.group) if self._map else 0
        if isinstance(request, RoutedRequest):
            request.epoch = epoch
        try:
            answer = await self._transport.call(method, request, kind=Kind.ONCE)
            if isinstance(request, RoutedRequest) and request.epoch != epoch:
                self._map = None  # the cluster has a newer one
            return answer
        except SessionExpired:
            if self._windows.get(window.group) is window:
                del self._windows[window.group]
            self._map = None  # perhaps the keyspace was dropped and made anew, with other shards
            raise
        except (KeyspaceNotFound, WrongShard):
            self._map = None
            raise

    async def _read(self, method: Method[Answer], request: Message) -> Answer:
        return await self._transport.call(method, request)

    def _check_open(self) -> None:
        if self._closed:
            raise ClientClosed("this session is closed; `session()` begins another")
        self._transport.check_home()

    async def _window(self, key: bytes, group: int) -> Window:
        self._check_open()
        group = await self._group(key, group)
        window = self._windows.get(group)
        if window is None:
            window = await self._opening[group].run(lambda: self._windows.get(group), lambda: self._open(key, group))
        return window

    async def _open(self, key: bytes, group: int) -> Window:
        request = session_pb2.SessionOpenRequest(keyspace=self.keyspace, key=key, group=group)
        try:
            opened = await self._transport.call(methods.SESSION_OPEN, request)
        except (KeyspaceNotFound, WrongShard):
            self._map = None  # the keyspace was dropped, and perhaps made anew, with other shards
            raise
        window = Window(group, opened.id)
        if self._closed:  # meanwhile: nobody else knows of it
            await self._close(window)
            self._check_open()
        self._windows[group] = window
        return window

    async def _group(self, key: bytes, named: int) -> int:
        shards = self._map
        if shards is None:
            shards = await self._asking.run(lambda: self._map, self._ask)
        return shards.named(named, key)

    async def _ask(self) -> ShardMap:
        request = built(keyspace_pb2.KeyspaceDescribeRequest, name=self.keyspace)
        shards = self._map = ShardMap((await self._transport.call(methods.KEYSPACE_DESCRIBE, request)).keyspace)
        return shards

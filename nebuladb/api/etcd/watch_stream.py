"""One stream of etcd's Watch: its watches, what they were told, and what is said about them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from random import Random
from typing import Final

from nebuladb.api.etcd import events
from nebuladb.api.etcd.face import Face
from nebuladb.api.etcd.requests import received
from nebuladb.env import probe
from nebuladb.errors import KeyspaceNotFound, NebulaError, TooManyRequests, Unavailable
from nebuladb.kv.check import TO_THE_LAST
from nebuladb.kv.watch import MAX_WATCHERS, WatchHub
from nebuladb.kv.watcher import Watcher
from nebuladb.pb.etcd import watch_pb2 as pb
from nebuladb.shard import Descriptor

MAX_CONTROL: Final = 128
"""Answers about watches (created, canceled, progress) that wait to be sent; then no further request is read."""
MAX_WATCHES: Final = MAX_WATCHERS
"""Of one stream, those included that have ended and that the client hasn't canceled: each keeps its id."""
LOOK_SECONDS: Final = 0.1
"""How often it is seen whether a progress request can be answered that waits for watches to catch up."""
NO_ID: Final = -1
COMPACTED: Final = "etcdserver: mvcc: required revision has been compacted"
EMPTY_RANGE: Final = "mvcc: watcher range is empty"
DUPLICATE_ID: Final = "mvcc: duplicate watch ID provided on the WatchStream"
TOO_LARGE: Final = "etcdserver: a revision is too large for one message; watch with fragment"


class Watch:
    """One watch of a stream."""

    __slots__ = ("dead", "elide", "fragment", "held", "id", "notify", "start", "telling", "watcher")

    def __init__(self, watch_id: int, request: pb.WatchCreateRequest) -> None:
        self.id = watch_id
        self.start = request.start_revision
        self.fragment = request.fragment
        self.telling = events.Telling(watch_id, fragment=request.fragment)
        self.notify = request.progress_notify
        self.held = 0
        """Bytes of its keys, as they are counted."""
        self.elide = False
        """It was told something since the last notification was due."""
        self.watcher: Watcher
        self.dead = False
        """The client was told that it is canceled; its id is not free before the client cancels it, too."""

    @property
    def due(self) -> int:
        """Bytes, about, that it is told next."""
        gathering = self.watcher.amid and not self.fragment
        return self.watcher.waiting + (0 if gathering else self.telling.size)


class WatchStream:
    """`listen` takes what the client asks, `responses` gives what it is told; both run at once."""

    def __init__(self, face: Face, shard: Descriptor, end: Callable[[], None] | None = None) -> None:
        """`end`: see `Delivery`."""
        self._face = face
        self._shard = shard
        self._hub: WatchHub = face.backend.hub(shard)
        self._watches: dict[int, Watch] = {}
        self._next = 0
        self._control: deque[bytes] = deque()
        self._ready: deque[Watch] = deque()
        """Those whose outboxes hold something, or that were canceled."""
        self._amid: Watch | None = None
        """It was told fragments of a revision, and not the last one. Until then nothing else is said: etcd's client in
        Go loses what comes in between, or the fragments."""
        self._asked = 0
        """Progress requests that are not answered yet."""
        self._failure: BaseException | None = None
        self._news = asyncio.Event()
        self._delivery = face.backend.deliveries.stream(self._news, end)
        self._room = asyncio.Event()
        # Jitter, so that streams that began together don't speak together (as etcd).
        self._interval = face.progress_seconds * (1 + Random().random() / 10)
        self._due = False
        self._timer: asyncio.TimerHandle | None = None
        self._look: asyncio.TimerHandle | None = None

    # --- what the client asks

    async def listen(self, requests: AsyncIterator[bytes]) -> None:
        """Take requests until they end."""
        try:
            async for raw in requests:
                while len(self._control) >= MAX_CONTROL:
                    self._room.clear()
                    await self._room.wait()
                self._take(received(pb.WatchRequest, raw, stream=True))
        except Exception as error:
            self.fail(error)

    def _take(self, request: pb.WatchRequest) -> None:
        match request.WhichOneof("request_union"):
            case "create_request":
                self._create(request.create_request)
            case "cancel_request":
                watch = self._watches.pop(request.cancel_request.watch_id, None)
                if watch is not None:
                    self._end(watch)
                    self._say(pb.WatchResponse(watch_id=watch.id, canceled=True))
            case "progress_request":
                self._asked = min(self._asked + 1, MAX_CONTROL)
                self._news.set()
            case _:
                probe("etcd: watch request of no kind")

    def _create(self, request: pb.WatchCreateRequest) -> None:
        reason = self._refusal(request)
        if not reason:
            watch = Watch(self._id(request.watch_id), request)
            try:
                self._start(watch, request)
            except TooManyRequests as error:
                reason = error.message
            else:
                self._watches[watch.id] = watch
                self._say(pb.WatchResponse(watch_id=watch.id, created=True))
                return
        self._say(pb.WatchResponse(watch_id=NO_ID, created=True, canceled=True, cancel_reason=reason))

    def _refusal(self, request: pb.WatchCreateRequest) -> str:
        """Why it can't be created (etcd 33, 34), or nothing."""
        if request.start_revision < 0:
            return COMPACTED
        key, end = request.key or b"\0", request.range_end
        if end and end != TO_THE_LAST and end <= key:
            return EMPTY_RANGE
        if request.watch_id and request.watch_id in self._watches:
            return DUPLICATE_ID
        return f"the stream has {MAX_WATCHES} watches" if len(self._watches) >= MAX_WATCHES else ""

    def _id(self, wanted: int) -> int:
        if wanted:
            return wanted
        while self._next in self._watches:
            self._next += 1
        self._next += 1
        return self._next - 1

    def _start(self, watch: Watch, request: pb.WatchCreateRequest) -> None:
        def ready() -> None:
            self._ready.append(watch)
            self._news.set()

        key, end, asked = request.key or b"\0", request.range_end, self._face.backend.asked
        watch.held = asked.take(len(key) + len(end))
        try:
            watch.watcher = self._hub.watch(
                key,
                end,
                request.start_revision,
                prev_kv=request.prev_kv,
                no_put=pb.WatchCreateRequest.NOPUT in request.filters,
                no_delete=pb.WatchCreateRequest.NODELETE in request.filters,
                on_ready=ready,
            )
        except BaseException:
            asked.give(watch.held)
            raise
        if watch.watcher.canceled:
            ready()
        elif watch.watcher.lagging:
            self._face.backend.pump.work()
        if watch.notify and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._interval, self._tick)

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._tick)
        self._due = True
        self._news.set()

    def fail(self, error: BaseException) -> None:
        """End the stream with `error`."""
        self._failure = self._failure or error
        self._news.set()

    # --- what it is told

    async def responses(self) -> AsyncIterator[bytes]:
        """Responses as bytes: of each watch `created` first, then its events in order. Ends by raising only."""
        portions, turn = self._face.backend.portions, False
        while True:
            # A watch is announced before it is told anything (etcd 31).
            while self._control and self._amid is None:
                yield self._control.popleft()
            if not self._control:
                self._room.set()
            if self._failure is not None:
                raise self._failure
            if self._any_ready():
                # All that were there: between two looks there is room for many answers, and one for each would let what
                # has something to say gather here as long as watches are made, the events of others behind it.
                for _ in range(len(self._ready)):
                    if not self._any_ready():
                        break
                    if not self._delivery.admits(self._ready[0].due):
                        await self._news.wait()  # or for something to say, or the end
                        self._news.clear()
                        break
                    if not turn and await portions.turn(self._ready[0].due):
                        turn = True  # but who is first, and whether all are announced, is to be looked at again
                        break
                    turn = False
                    watch = self._ready.popleft()
                    for response in self._told(watch):
                        yield response
                        del response  # the next one may be long in coming
                    self._amid = watch if watch.fragment and watch.telling.size and not watch.dead else None
                    self._delivery.give()
                    if watch.dead and self._watches.get(watch.id) is not watch:
                        break  # that it is canceled comes next: what follows its fragments would be lost with them
            elif self._amid is None and (progress := self._progress()) is not None:
                for response in progress:
                    yield response
            else:
                await self._news.wait()
                self._news.clear()

    def _any_ready(self) -> bool:
        """Whether anybody is to be told something now; who it is comes first."""
        amid = self._amid
        if amid is None or not self._ready or self._ready[0] is amid:
            return bool(self._ready)
        if amid not in self._ready:
            return False
        self._ready.remove(amid)
        self._ready.appendleft(amid)
        return True

    def _told(self, watch: Watch) -> Iterator[bytes]:
        """What waits for a watch, and whether it has ended."""
        watcher = watch.watcher
        if watch.dead:
            return
        canceled, batches = watcher.canceled, watcher.take()
        through = self._hub.revision
        if watcher.lagging:
            through = watcher.cursor - 1
            self._face.backend.pump.work()  # what was taken has made room
        watch.elide = watch.elide or bool(batches)
        for revision, rest in watch.telling.responses(batches, through):
            if self._watches.get(watch.id) is not watch:
                return  # canceled while the one before was sent
            if len(rest) > events.MAX_MESSAGE_BYTES:
                yield self._too_large(watch)
                return
            yield self._face.prefix(self._shard.group, revision) + rest
        if watch.telling.size > events.MAX_MESSAGE_BYTES:
            yield self._too_large(watch)
            return
        if not canceled:
            return
        if not watcher.compact_revision:
            raise self._gone()
        watch.dead = True
        watch.telling.forget()
        compact = pb.WatchResponse(watch_id=watch.id, canceled=True, compact_revision=watcher.compact_revision)
        yield self._encoded(compact, revision=0)  # as etcd: the revision that it was told of is none

    def _too_large(self, watch: Watch) -> bytes:
        """End a watch that can't be told a revision."""
        probe("etcd: revision too large for a message")
        self._end(watch)
        return self._encoded(pb.WatchResponse(watch_id=watch.id, canceled=True, cancel_reason=TOO_LARGE))

    def _gone(self) -> NebulaError:
        """Why the shard's watches have ended."""
        try:
            self._face.backend.routing.shards(self._shard.keyspace)
        except KeyspaceNotFound as error:
            return error
        return Unavailable(f"this node serves shard {self._shard.group} no more; watch again, at another node")

    def _progress(self) -> Iterable[bytes] | None:
        """What is to be said of how far watches have come; None if nothing is.

        To be asked when nothing waits to be sent: so it can't overtake an event (etcd 40, 41).
        """
        if self._due:
            self._due = False
            notified = []
            for watch in self._watches.values():
                if watch.notify and not watch.elide and self._in_step(watch):
                    notified.append(watch)
                watch.elide = False
            return self._notifications(notified, self._face.prefix(self._shard.group, self._hub.revision))
        if not self._asked:
            return None
        living = [watch for watch in self._watches.values() if not watch.dead]
        if not living:
            self._asked = 0
            return None
        if not all(self._in_step(watch) for watch in living):
            # One answer, once the last has caught up: more would only repeat it.
            self._asked = 1
            if self._look is None:
                # A watch that history has nothing for says nothing when it has caught up.
                self._look = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look_again)
            return None
        asked, self._asked = self._asked, 0
        return [self._encoded(pb.WatchResponse(watch_id=NO_ID))] * asked

    def _notifications(self, watches: Iterable[Watch], prefix: bytes) -> Iterator[bytes]:
        """As they are sent, for there may be 50,000: each says what was so when nothing waited to be sent."""
        for watch in watches:
            if self._watches.get(watch.id) is watch:
                yield prefix + pb.WatchResponse(watch_id=watch.id).SerializeToString()

    def _look_again(self) -> None:
        self._look = None
        self._news.set()

    def _in_step(self, watch: Watch) -> bool:
        """Whether it was told everything up to the present revision, which its start isn't beyond (etcd 35)."""
        return not watch.dead and not watch.watcher.lagging and watch.start <= self._hub.revision + 1

    def _say(self, response: pb.WatchResponse) -> None:
        self._control.append(self._encoded(response))
        self._news.set()

    def _encoded(self, response: pb.WatchResponse, revision: int | None = None) -> bytes:
        prefix = self._face.prefix(self._shard.group, self._hub.revision if revision is None else revision)
        return prefix + response.SerializeToString()

    # --- the end

    def _end(self, watch: Watch) -> None:
        watch.dead = True
        watch.telling.forget()
        if self._amid is watch:
            self._amid = None
        self._face.backend.asked.give(watch.held)
        watch.held = 0
        self._hub.remove(watch.watcher)
        watch.watcher.on_ready = None  # it knows the watch and this stream: they would be left to the collector

    def close(self) -> None:
        """Forget all watches, those that are many in later turns of the loop."""
        self._delivery.give()
        if self._timer is not None:
            self._timer.cancel()
        if self._look is not None:
            self._look.cancel()
        watches, self._watches = self._watches, {}
        self._face.backend.leaving.add(map(self._end, watches.values()))

"""Links between nodes (``proto/nebula/peer/v1/peer.proto``), on either engine."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, Final, Protocol

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from nebuladb.addresses import channel_target
from nebuladb.env import Rng, probe
from nebuladb.errors import ConfigurationError, IdentityError
from nebuladb.pb.nebula.peer.v1 import peer_pb2 as pb
from nebuladb.rpc import engine as engines
from nebuladb.rpc.engine import Engine
from nebuladb.rpc.serving.ports import why_not
from nebuladb.rpc.status import StatusError

LOG: Final = logging.getLogger("nebuladb.rpc")
SERVICE: Final = "nebula.peer.v1.Peer"
MAX_FRAME_BYTES: Final = 16 << 20
MAX_QUEUE_BYTES: Final = 64 << 20
"""Frames that wait for a slow peer; past it new ones are dropped, which Raft takes for loss."""
HANDSHAKE_SECONDS: Final = 5.0
CALL_SECONDS: Final = 2.0
BACKOFF_SECONDS: Final = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Between attempts to connect, plus up to as much again at random."""
PATIENCE_SECONDS: Final = 1.0
"""A node with a lower id should dial us. Without a link for so long, and up to as much again at random, we dial: it may
have been away when we came, and not know of us."""
_FRAME_TAG: Final = pb.LinkMessage.FRAME_FIELD_NUMBER << 3 | 2
"""Of a field that has a length."""
REFUSED: Final = grpc.StatusCode.FAILED_PRECONDITION
"""Of a link whose handshake its other end doesn't take."""
CALL_ERRORS: Final = (grpc.RpcError, grpc.aio.BaseError, StatusError)
"""What a call's end raises: on its client's side, in use, and on our own server's."""
DESCRIPTORS_LEFT: Final = 1_024
"""That the databases may need. Clients are refused sooner, so that peers find a place still."""
OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
    ("grpc.max_send_message_length", MAX_FRAME_BYTES),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.keepalive_time_ms", 1_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),  # grpcio's own minute would rule
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.so_reuseport", 0),
    ("nebula.descriptors_left", DESCRIPTORS_LEFT),
    ("grpc.enable_retries", 0),
)


class PeerEvents(Protocol):
    """What the transport asks and tells its owner, all in the loop's thread."""

    def hello(self, request: pb.HelloRequest) -> pb.HelloResponse:
        """Who this node is."""
        ...

    def found(self, request: pb.FoundRequest) -> bytes:
        """The founding document for that node, or nothing."""
        ...

    async def join(self, request: pb.JoinRequest) -> pb.JoinResponse:
        """A new node asks who it is."""
        ...

    def lags(self, request: pb.LagsRequest) -> pb.LagsResponse:
        """How far a node is behind in the groups that are led here."""
        ...

    def handshake(self, node: int) -> pb.Handshake:
        """What this node says of itself to `node` (0: whoever calls)."""
        ...

    def check(self, handshake: pb.Handshake) -> None:
        """Raise `IdentityError` if this is no peer of ours (S14, S16, S18)."""
        ...

    def refused(self, why: str) -> None:
        """A peer, which this node dialled, takes it for no peer of its own."""
        ...

    def peer_up(self, handshake: pb.Handshake) -> None:
        """A link stands."""
        ...

    def peer_down(self, node: int) -> None:
        """It fell."""
        ...

    def frame(self, node: int, frame: bytes) -> None:
        """A frame came over the link to `node`."""
        ...


class Flushes(Protocol):
    """A connection."""

    def flush(self) -> None:
        """Write what was put."""


class Direct(Protocol):
    """What is behind a stream of our own engine, as its `direct` (``rpc.channel``, ``rpc.serving``): it carries
    messages as bytes and without a task of ours."""

    @property
    def connection(self) -> Flushes | None: ...
    def put_bytes(self, message: bytes) -> bool: ...
    async def room(self) -> None: ...
    def deliver_to(self, listener: Callable[[bytes], None]) -> None: ...


def packed(frame: bytes) -> bytes:
    """``LinkMessage(frame=frame)`` as bytes: nothing of a frame is worth an object on its way."""
    size = len(frame)
    if size < 1 << 7:
        return bytes((_FRAME_TAG, size)) + frame
    if size < 1 << 14:
        return bytes((_FRAME_TAG, size & 0x7F | 0x80, size >> 7)) + frame
    return pb.LinkMessage(frame=frame).SerializeToString()


class _Link:
    """One standing stream, and a bounded queue of frames for when it takes none at once."""

    def __init__(self, node: int, stream: Any, deliver: Callable[[int, bytes], None]) -> None:
        self.node = node
        self._deliver = deliver
        self._queue: deque[bytes] = deque()
        self._size = 0
        self._filled = asyncio.Event()
        self.left = asyncio.Event()
        """Set by `leave`: nothing of it is handed over any more."""
        self.ended = asyncio.Event()
        self._stream = stream
        self._direct: Direct | None = getattr(stream, "direct", None)
        self._full = self._direct is None
        """The stream takes nothing now, or not without a task: frames wait for `carry`."""

    def send(self, frame: bytes) -> None:
        """Write a frame to the stream, or put it behind those that wait for that."""
        direct = self._direct
        if self._full or direct is None:
            self._wait(frame)
            return
        try:
            self._full = direct.put_bytes(packed(frame))
        except (*CALL_ERRORS, asyncio.InvalidStateError, asyncio.CancelledError):
            probe("frame lost with its link")  # which `read` ends, if it has
            return
        if (connection := direct.connection) is not None:
            connection.flush()
        if self._full:
            self._filled.set()

    def _wait(self, frame: bytes) -> None:
        if self._size + len(frame) > MAX_QUEUE_BYTES:
            probe("peer queue full, frame dropped")
            return
        self._queue.append(frame)
        self._size += len(frame)
        self._filled.set()

    def leave(self) -> None:
        """End it: a newer link to the same node stands, or it was dropped."""
        self.left.set()

    async def carry(self) -> None:
        """Write what waits, for ever."""
        while True:
            while not self._queue and not (self._full and self._direct is not None):
                self._filled.clear()
                await self._filled.wait()
            if self._direct is None:
                await self._stream.write(pb.LinkMessage(frame=self._next()))
                continue
            await self._direct.room()
            self._full = False
            while self._queue and not self._full:
                self.send(self._next())

    def _next(self) -> bytes:
        frame = self._queue.popleft()
        self._size -= len(frame)
        return frame

    async def read(self) -> None:
        """Hand over what comes, until the stream ends."""
        if self._direct is not None:
            self._direct.deliver_to(self._arrived)
        while (message := await self._stream.read()) is not grpc.aio.EOF:
            if self.left.is_set():
                return
            self._deliver(self.node, message.frame)

    def _arrived(self, message: bytes) -> None:
        if self.left.is_set():
            return
        try:
            frame = pb.LinkMessage.FromString(message).frame
        except DecodeError:
            LOG.warning(
                "node %016x sent %d bytes that are no message of a link; the link ends, and is made anew",
                self.node,
                len(message),
            )
            self.leave()
            return
        self._deliver(self.node, frame)


class PeerTransport:
    """Start it with `serve`; tell it whom to reach with `connect_to`."""

    def __init__(self, node: int, events: PeerEvents, rng: Rng, engine: Engine = engines.DEFAULT) -> None:
        self._engine = engine
        self._node = node
        self._events = events
        self._rng = rng
        self._links: dict[int, _Link] = {}
        self._dialers: dict[int, tuple[str, asyncio.Task[None]]] = {}
        self._server = engine.server(options=OPTIONS, maximum_concurrent_rpcs=1_000)
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Hello": grpc.unary_unary_rpc_method_handler(
                self._hello, pb.HelloRequest.FromString, pb.HelloResponse.SerializeToString
            ),
            "Found": grpc.unary_unary_rpc_method_handler(
                self._found, pb.FoundRequest.FromString, pb.FoundResponse.SerializeToString
            ),
            "Join": grpc.unary_unary_rpc_method_handler(
                self._join, pb.JoinRequest.FromString, pb.JoinResponse.SerializeToString
            ),
            "Lags": grpc.unary_unary_rpc_method_handler(
                self._lags, pb.LagsRequest.FromString, pb.LagsResponse.SerializeToString
            ),
            "Link": grpc.stream_stream_rpc_method_handler(
                self._accept, pb.LinkMessage.FromString, pb.LinkMessage.SerializeToString
            ),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    @property
    def connected(self) -> list[int]:
        """Ids of the nodes to which a link stands."""
        return sorted(self._links)

    async def serve(self, address: str) -> None:
        """Listen at HOST:PORT. Raises `ConfigurationError` if that can't be had."""
        try:
            self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ConfigurationError(f"peer-addr: can't listen at {address}: {why_not(error)}") from error
        await self._server.start()

    async def stop(self) -> None:
        """Close all links and stop listening."""
        tasks = [task for _, task in self._dialers.values()]
        self._dialers.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.stop(0.1)

    def send(self, frames: Iterable[tuple[int, bytes]]) -> None:
        """Write frames, each to its node, as far as links take them at once; the rest leaves when it can. What has no
        link is lost."""
        links = self._links
        for node, frame in frames:
            if (link := links.get(node)) is not None:
                link.send(frame)

    def connect_to(self, addresses: Mapping[int, str]) -> None:
        """Keep a link to each of these nodes (id → peer address), and dial no other; those with a lower id should dial
        us."""
        for gone in [node for node in self._dialers if node not in addresses]:
            self._dialers.pop(gone)[1].cancel()
        for node, address in sorted(addresses.items()):
            if node == self._node or not address:
                continue
            known = self._dialers.get(node)
            if known is not None and known[0] == address:
                continue
            if known is not None:
                known[1].cancel()
            task = asyncio.get_running_loop().create_task(self._dial_for_ever(node, address), name=f"dial {node:016x}")
            self._dialers[node] = (address, task)

    def drop(self, node: int) -> None:
        """End the link to `node`, if there is one. Whoever dials again has its handshake checked again."""
        link = self._links.get(node)
        if link is not None:
            link.leave()

    async def hello(self, address: str, request: pb.HelloRequest) -> pb.HelloResponse:
        """Ask the node at `address` who it is. Raises ``grpc.aio.AioRpcError``."""
        response: pb.HelloResponse = await self._call(address, "Hello", request, pb.HelloResponse)
        return response

    async def found(self, address: str, request: pb.FoundRequest) -> bytes:
        """Fetch the founding document; empty if there is none yet. Raises ``grpc.aio.AioRpcError``."""
        response: pb.FoundResponse = await self._call(address, "Found", request, pb.FoundResponse)
        return response.document

    async def join(self, address: str, request: pb.JoinRequest) -> pb.JoinResponse:
        """Ask a member for the id that was issued to us. Raises ``grpc.aio.AioRpcError``."""
        response: pb.JoinResponse = await self._call(address, "Join", request, pb.JoinResponse)
        return response

    async def lags(self, address: str, request: pb.LagsRequest) -> pb.LagsResponse:
        """Ask a member how far a node is behind. Raises ``grpc.aio.AioRpcError``."""
        response: pb.LagsResponse = await self._call(address, "Lags", request, pb.LagsResponse)
        return response

    async def _call(self, address: str, method: str, request: Any, response: Any) -> Any:
        async with self._engine.insecure_channel(channel_target(address), options=OPTIONS) as channel:
            call = channel.unary_unary(f"/{SERVICE}/{method}", type(request).SerializeToString, response.FromString)
            return await call(request, timeout=CALL_SECONDS)

    # --- serving ---------------------------------------------------------------------------------------------------

    async def _hello(self, request: pb.HelloRequest, context: Any) -> pb.HelloResponse:
        return self._events.hello(request)

    async def _found(self, request: pb.FoundRequest, context: Any) -> pb.FoundResponse:
        return pb.FoundResponse(document=self._events.found(request))

    async def _join(self, request: pb.JoinRequest, context: Any) -> pb.JoinResponse:
        return await self._events.join(request)

    async def _lags(self, request: pb.LagsRequest, context: Any) -> pb.LagsResponse:
        return self._events.lags(request)

    async def _accept(self, messages: AsyncIterator[pb.LinkMessage], context: Any) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                first = await context.read()
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no handshake came")
        if first is grpc.aio.EOF or not first.HasField("handshake"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a link begins with a handshake")
        try:
            self._events.check(first.handshake)
        except IdentityError as error:
            await context.abort(REFUSED, error.message)
        await context.write(pb.LinkMessage(handshake=self._events.handshake(first.handshake.node_id)))
        await self._run(first.handshake, context)

    # --- dialling --------------------------------------------------------------------------------------------------

    async def _dial_for_ever(self, node: int, address: str) -> None:
        attempt = 0
        while True:
            await self._missed(node)
            # Whatever ended a link, the next one must come: without it the peer is lost until a restart.
            try:
                if await self._dial(node, address):
                    attempt = 0
            except Exception as error:
                probe(f"dialling failed: {type(error).__name__}")
                if isinstance(error, grpc.aio.AioRpcError) and error.code() is REFUSED:
                    self._events.refused(error.details() or "")
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                probe("a call was cancelled under a link")  # both engines say so by the same exception
            pause = BACKOFF_SECONDS[min(attempt, len(BACKOFF_SECONDS) - 1)]
            attempt += 1
            await asyncio.sleep(pause * (1 + self._rng.randrange(0, 1000) / 1000))

    async def _missed(self, node: int) -> None:
        """Until `node` is to be dialled: there is no link, and hasn't been for a while if it should dial us."""
        while (link := self._links.get(node)) is not None or node < self._node:
            if link is not None:
                await link.ended.wait()
            if node < self._node:
                await asyncio.sleep(PATIENCE_SECONDS * (1 + self._rng.randrange(0, 1000) / 1000))
                if node not in self._links:
                    return

    async def _dial(self, node: int, address: str) -> bool:
        """One link from beginning to end; True if it stood."""
        async with self._engine.insecure_channel(channel_target(address), options=OPTIONS) as channel:
            method = channel.stream_stream(
                f"/{SERVICE}/Link", pb.LinkMessage.SerializeToString, pb.LinkMessage.FromString
            )
            call = method()
            try:
                # Not by `asyncio.wait_for`: before Python 3.12 it forgets a cancellation that meets an answer, and the
                # link would live on, which whoever stops waits for.
                async with asyncio.timeout(HANDSHAKE_SECONDS):
                    await call.write(pb.LinkMessage(handshake=self._events.handshake(node)))
                    first: Any = await call.read()
                if first is grpc.aio.EOF or not first.HasField("handshake"):
                    return False
                self._events.check(first.handshake)
                await self._run(first.handshake, call)
                return True
            finally:
                call.cancel()

    async def _run(self, handshake: pb.Handshake, stream: Any) -> None:
        """Carry frames both ways until the stream breaks or a newer link to the same node takes this one's place."""
        node = handshake.node_id
        link = _Link(node, stream, self._events.frame)
        older = self._links.get(node)
        if older is not None:
            probe("link replaced")
            older.leave()
            self._events.peer_down(node)
        self._links[node] = link
        self._events.peer_up(handshake)
        work = link.read(), link.carry(), link.left.wait()
        tasks = [asyncio.get_running_loop().create_task(part, name=f"link {node:016x}") for part in work]
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            link.leave()
            if self._links.get(node) is link:
                del self._links[node]
                self._events.peer_down(node)
            link.ended.set()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in ended:
            error = None if task.cancelled() else task.exception()
            if error is not None and not isinstance(error, CALL_ERRORS):
                raise error

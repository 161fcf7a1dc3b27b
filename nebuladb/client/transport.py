"""The thin driver: channels, and the loop that does what `Attempts` says."""

from __future__ import annotations

import asyncio
import os
import random
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import Message

from nebuladb.addresses import channel_target, split_address
from nebuladb.client.clock import boottime
from nebuladb.client.endpoints import Endpoints
from nebuladb.client.errors import (
    FORKED,
    OTHER_LOOP,
    PICKLED,
    Failure,
    closed,
    closed_amid,
    failure_of,
    not_sent,
    silent,
)
from nebuladb.client.methods import Answer, Method
from nebuladb.client.retry import Attempts, Kind, Try
from nebuladb.env import Rng
from nebuladb.errors import ClientClosed, ConfigurationError, InvalidArgument, RequestTooLarge, WrongEpoch
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.rpc.engine import Engine, engine_of

MAX_REQUEST: Final = 3 * 512 * 1024
"""Bytes of a request, as the servers say; a larger one is refused here, before it costs a transfer."""

MAX_MESSAGE: Final = 8 * 1024 * 1024
"""Bytes of an answer that the client is ready to take."""

RoutedRequest = kv_pb2.GetRequest | kv_pb2.PutRequest | kv_pb2.DeleteRequest | kv_pb2.TxnRequest
"""Those that name the epoch by which they were routed, if any."""

OPTIONS: Final = (
    # gRPC must never repeat a write on its own: only `Attempts` knows what is safe.
    ("grpc.enable_retries", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    # A watch on a machine that vanished without a FIN ends within 15 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # grpcio's own would be 60 s, and it takes the longer one
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


class Link:
    """One node's channel, with its calls kept ready."""

    def __init__(self, address: str, engine: Engine | None = None) -> None:
        self.channel = (engine or engine_of()).insecure_channel(channel_target(address), options=OPTIONS)
        self._calls: dict[str, Any] = {}

    def unary(self, method: Method[Answer]) -> Callable[..., Awaitable[Answer]]:
        """The method as a coroutine function."""
        call = self._calls.get(method.path)
        if call is None:
            call = self.channel.unary_unary(
                method.path,
                request_serializer=type(self)._bytes,
                response_deserializer=method.answer.FromString,
            )
            self._calls[method.path] = call
        return call

    def stream(self, method: Method[Answer], request: Message) -> grpc.aio.UnaryStreamCall[Message, Answer]:
        """Begin a call that answers with many messages."""
        call = self._calls.get(method.path)
        if call is None:
            call = self.channel.unary_stream(
                method.path,
                request_serializer=type(self)._bytes,
                response_deserializer=method.answer.FromString,
            )
            self._calls[method.path] = call
        return call(request)

    async def connected(self, seconds: float) -> bool:
        """Whether there is a connection, made within `seconds`; so that what fails before is known to be unsent."""
        state = self.channel.get_state(try_to_connect=True)
        if state is grpc.ChannelConnectivity.READY:
            return True
        try:
            async with asyncio.timeout(seconds):
                while state not in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
                    await self.channel.wait_for_state_change(state)
                    state = self.channel.get_state(try_to_connect=True)
                    if state is grpc.ChannelConnectivity.READY:
                        return True
        except (TimeoutError, grpc.aio.UsageError):  # the latter: the channel was closed meanwhile
            pass
        return False

    @staticmethod
    def _bytes(message: Message) -> bytes:
        return message.SerializeToString()


class Transport:
    """Sends requests to a cluster.

    At most one channel an address that is an endpoint, or was asked by name since `forget`.

    The process and the loop that make the first have all of them. A forked child's frames would go into the midst of
    its parent's, on the same socket; so elsewhere nothing is sent, and closing closes nothing.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        timeout: float,
        *,
        clock: Callable[[], float] = boottime,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: Rng | None = None,
    ) -> None:
        """`timeout`: seconds for a request, all its attempts together."""
        if not timeout > 0:
            raise ConfigurationError(f"timeout is {timeout}; give the seconds a request may take, e.g. 5")
        self.endpoints = Endpoints(addresses)
        self.timeout = timeout
        self.clock = clock
        self.sleep = sleep
        self.rng: Rng = rng or random.Random()
        self._engine = engine_of()
        self._links: dict[str, Link] = {}
        self._former: weakref.WeakSet[Link] = weakref.WeakSet()
        """Those on which nothing but calls of before is under way, which hold them."""
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None
        """The process and the loop of the links, once there is one."""
        self._closed = False

    def __reduce__(self) -> NoReturn:
        raise TypeError(PICKLED)

    async def call(
        self,
        method: Method[Answer],
        request: Message,
        *,
        kind: Kind | None = None,
        pinned: str = "",
        timeout: float = 0.0,
    ) -> Answer:
        """The answer, or the one `NebulaError` that says what happened. `kind` and `timeout` override what is usual.

        Raises `ClientClosed` after `close`; of a write that was under way then, `UnknownOutcome`.
        """
        check_size(request)
        kind = kind or method.kind
        attempts = self.attempts(kind, pinned, timeout)
        while True:
            step = attempts.next(self.clock())
            answer = await self._attempt(method, request, kind, step)
            if not isinstance(answer, Failure):
                attempts.worked(step.address, self.clock())
                return answer
            pause = attempts.failed(step.address, answer, self.clock())
            if isinstance(answer.error, WrongEpoch) and isinstance(request, RoutedRequest):
                request.epoch = answer.error.epoch  # of the descriptor that came with the refusal
            if pause:
                await self.sleep(pause)

    def attempts(self, kind: Kind = Kind.READ, pinned: str = "", timeout: float = 0.0) -> Attempts:
        """A new request's attempts. Raises `InvalidArgument` for a `timeout` that can't be."""
        if not timeout >= 0:
            raise InvalidArgument(f"timeout is {timeout}; give seconds, 0 or more (0: the client's)")
        return Attempts(
            kind, self.endpoints, self.rng, timeout=timeout or self.timeout, now=self.clock(), pinned=pinned
        )

    def open(self, method: Method[Answer], request: Message, step: Try, patience: float | None) -> Stream[Answer]:
        """One attempt at a stream. `patience`: seconds at most between two messages, None: as long as it likes."""
        return Stream(self, method, request, step, patience)

    async def close(self) -> None:
        """End every connection, and the calls that are under way; where they aren't ours, nothing. Idempotent."""
        if self.elsewhere():
            return
        self._closed = True
        links = [*self._links.values(), *self._former]
        self._links = {}
        for link in links:
            await link.channel.close()

    def forget(self) -> None:
        """Let go of the channels to who is no endpoint any more: each would try to connect for as long as we live."""
        for address in self._links.keys() - set(self.endpoints.addresses):
            self._former.add(self._links.pop(address))

    def elsewhere(self) -> str:
        """Why this process or loop may not touch the links; empty if it may."""
        if self._home is None:
            return ""
        process, loop = self._home
        if process != os.getpid():
            return FORKED
        try:
            return "" if loop is asyncio.get_running_loop() else OTHER_LOOP
        except RuntimeError:  # what nobody runs any more is being closed
            return ""

    def check_home(self) -> None:
        """Raise `ClientClosed` elsewhere: who waits there for a turn here is woken by nobody."""
        if why := self.elsewhere():
            raise ClientClosed(why)

    def link(self, address: str) -> Link | Failure:
        """The channel to `address`; a Failure after `close`, and elsewhere than where the first was made. Raises
        `ConfigurationError` for what is no address."""
        if self._closed:
            return closed()
        if why := self.elsewhere():
            return closed(why)
        link = self._links.get(address)
        if link is None:
            split_address(address)  # a caller may name any
            self._home = self._home or (os.getpid(), asyncio.get_running_loop())
            link = self._links[address] = Link(address, self._engine)
        return link

    def ended(self) -> bool:
        """Whether a call that raised `CancelledError` was ended by `close`, and not by whoever waits for it."""
        task = asyncio.current_task()
        return self._closed and not (task is not None and task.cancelling())

    async def _attempt(self, method: Method[Answer], request: Message, kind: Kind, step: Try) -> Answer | Failure:
        link = self.link(step.address)
        if isinstance(link, Failure):
            return link
        began = self.clock()
        if not await link.connected(step.connect):
            return not_sent(step.address)
        seconds = step.seconds - (self.clock() - began)
        if seconds <= step.least:
            return not_sent(step.address)
        try:
            return await link.unary(method)(request, timeout=seconds)
        except grpc.aio.AioRpcError as status:
            return failure_of(
                status, step.address, writes=kind is not Kind.READ, once=kind is Kind.ONCE, again=kind is Kind.AGAIN
            )
        except asyncio.CancelledError:
            if not self.ended():
                raise
            return closed_amid(step.address, writes=kind is not Kind.READ)


class Stream(Generic[Answer]):
    """One attempt at a stream: ``async with`` gives a function that reads the next message, None at its end.

    Entering and reading raise `StreamBroken`. No generator, since a loop that ends closes all generators at once, the
    inner ones beneath the feet of the outer.
    """

    def __init__(
        self, transport: Transport, method: Method[Answer], request: Message, step: Try, patience: float | None
    ) -> None:
        self._transport = transport
        self._method = method
        self._request = request
        self._step = step
        self.patience = patience

    async def __aenter__(self) -> Callable[[], Awaitable[Answer | None]]:
        link = self._transport.link(self._step.address)
        if isinstance(link, Failure):
            raise StreamBroken(link)
        if not await link.connected(self._step.connect):
            raise StreamBroken(not_sent(self._step.address))
        self._link = link  # as long as the call runs: the transport may forget it
        self._call = link.stream(self._method, self._request)
        return self._read

    async def __aexit__(self, *_: object) -> None:
        if not self._transport.elsewhere():
            self._call.cancel()

    async def _read(self) -> Answer | None:
        address = self._step.address
        if why := self._transport.elsewhere():
            raise StreamBroken(closed(why))
        try:
            async with asyncio.timeout(self.patience):
                message = await self._call.read()
        except grpc.aio.AioRpcError as status:
            raise StreamBroken(failure_of(status, address, writes=False)) from None
        except TimeoutError:
            raise StreamBroken(silent(address)) from None
        except asyncio.CancelledError:
            if not self._transport.ended():
                raise
            raise StreamBroken(closed()) from None
        return None if message is grpc.aio.EOF else message  # type: ignore[return-value]


class StreamBroken(Exception):
    """A stream's attempt failed. Never leaves the package."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error.message)
        self.failure = failure


def check_size(request: Message) -> None:
    """Raise `RequestTooLarge`."""
    size = request.ByteSize()
    if size > MAX_REQUEST:
        raise RequestTooLarge(
            f"the request has {size:,} bytes; at most {MAX_REQUEST:,} (1.5 MiB) go: split the value or the transaction"
        )

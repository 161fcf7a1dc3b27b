"""What stands behind a `Channel`: subchannels, the choice among them, and the calls that wait for one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from time import monotonic
from typing import Final

import grpc
import grpc.aio

from nebuladb.env import probe
from nebuladb.rpc.channel.connection import Connection
from nebuladb.rpc.channel.deadlines import Deadlines
from nebuladb.rpc.channel.rpc import Rpc
from nebuladb.rpc.channel.settings import PICK_FIRST, Settings
from nebuladb.rpc.channel.subchannel import State, Subchannel
from nebuladb.rpc.channel.target import Endpoint, Target
from nebuladb.rpc.http2 import Limits
from nebuladb.rpc.tls import ChannelCredentials

CLOSE_SECONDS: Final = 1.0
"""For transports to say goodbye; then they are cut."""
RESOLVE_SECONDS: Final = 30.0
"""At least between two questions for a name's addresses, when connections of a round robin fail."""


class Dispatcher:
    """Brings each call to a connection, now or when there is one.

    pick_first has one subchannel with all endpoints, round_robin one an endpoint. Calls that don't wait for ready fail
    when, and only when, the channel is in TRANSIENT_FAILURE.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        target: Target,
        settings: Settings,
        limits: Limits,
        security: tuple[ChannelCredentials, str] | None,
    ) -> None:
        self.loop = loop
        self.settings = settings
        self.deadlines = Deadlines(loop)
        self.target = target.text
        self.state = State.IDLE
        self.closing = False
        self._where = target
        self._limits = limits
        self._security = security
        self._subchannels: dict[Endpoint | None, Subchannel] = {}
        self._leaving: list[Subchannel] = []
        """Those whose address has left the name, until their calls are over."""
        self._ready: list[Connection] = []
        self._turn = 0
        self._waiting: dict[Rpc, None] = {}
        self._watchers: list[asyncio.Future[None]] = []
        self._resolving: asyncio.Task[None] | None = None
        self._resolved = float("-inf")
        self._failure = ""

    # --- calls -----------------------------------------------------------------------------------------------------

    def start(self, rpc: Rpc) -> None:
        """Begin `rpc` on a connection, let it wait for one, or fail it."""
        ready = self._ready
        if len(ready) == 1:
            ready[0].admit(rpc)
        elif ready:
            self._turn = (self._turn + 1) % len(ready)
            ready[self._turn].admit(rpc)
        elif self.state is State.SHUTDOWN:
            rpc.cancel("Channel closed!")
        elif self.state is State.TRANSIENT_FAILURE and not rpc.wait_for_ready:
            rpc.fail(grpc.StatusCode.UNAVAILABLE, self._unreachable())
        elif len(self._waiting) >= self.settings.max_waiting_calls:
            rpc.refuse(f"too many calls wait for a connection to {self.target}")
        else:
            self._waiting[rpc] = None
            rpc.queued = self._waiting
            self.connect()

    def again(self, rpc: Rpc) -> None:
        """A call that a server has not looked at, or that never began."""
        if rpc.over:
            return
        if rpc.connection is not None:
            rpc.forget()
        self.start(rpc)

    def live(self) -> list[Rpc]:
        """Calls that are not over, in the order of their start on each connection."""
        connections = [c for sub in (*self._subchannels.values(), *self._leaving) for c in sub.connections()]
        return [*(rpc for c in connections for rpc in (*c.calls, *c.waiting)), *self._waiting]

    def _unreachable(self) -> str:
        return f"failed to connect to {self.target}; last error: {self._failure}"

    # --- connectivity ----------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Leave IDLE."""
        if self.closing:
            return
        if not self._subchannels:
            if self.settings.policy == PICK_FIRST:
                self._subchannels[None] = self._subchannel(self._where.resolve)
            else:
                self._resolve()
        for subchannel in list(self._subchannels.values()):
            subchannel.connect()

    def _subchannel(self, resolve: Callable[[], object]) -> Subchannel:
        return Subchannel(self.loop, self.settings, self._limits, self, resolve, self._security)  # type: ignore[arg-type]

    def changed(self, subchannel: Subchannel) -> None:
        """A subchannel is in another state."""
        if self.state is State.SHUTDOWN:
            return
        subchannels = self._subchannels.values()
        self._ready = [sub.connection for sub in subchannels if sub.connection is not None]
        if subchannel.failure:
            self._failure = subchannel.failure
        states = {sub.state for sub in subchannels}
        for state in (State.READY, State.CONNECTING, State.IDLE, State.TRANSIENT_FAILURE):
            if state in states:
                break
        self._become(state)
        if subchannel.state is State.READY:
            self._begin_waiting()
        elif subchannel.state is State.IDLE:
            # Without calls that wait, pick_first stays IDLE; a round robin wants all its connections.
            if self._waiting or self.settings.policy != PICK_FIRST:
                subchannel.connect()
        elif subchannel.state is State.TRANSIENT_FAILURE and self.settings.policy != PICK_FIRST:
            self._resolve()
        if self.state is State.TRANSIENT_FAILURE:
            self._fail_waiting()

    def _begin_waiting(self) -> None:
        while self._waiting and self._ready:
            rpc = next(iter(self._waiting))
            del self._waiting[rpc]
            rpc.queued = None
            self.start(rpc)

    def _fail_waiting(self) -> None:
        for rpc in [rpc for rpc in self._waiting if not rpc.wait_for_ready]:
            rpc.fail(grpc.StatusCode.UNAVAILABLE, self._unreachable())

    def _become(self, state: State) -> None:
        if state is not self.state:
            self.state = state
            watchers, self._watchers = self._watchers, []
            for future in watchers:
                if not future.done():
                    future.set_result(None)

    async def state_other_than(self, state: State) -> None:
        """Until the channel is not in `state`."""
        while self.state is state:
            future = self.loop.create_future()
            self._watchers.append(future)
            try:
                await future
            finally:
                if future in self._watchers:
                    self._watchers.remove(future)

    # --- round robin over a name -----------------------------------------------------------------------------------

    def _resolve(self) -> None:
        if self._resolving is None and (not self._subchannels or monotonic() - self._resolved >= RESOLVE_SECONDS):
            self._resolving = self.loop.create_task(self._look_up())
            if not self._subchannels:
                self._become(State.CONNECTING)

    async def _look_up(self) -> None:
        try:
            async with asyncio.timeout(self.settings.connect_timeout):
                found = await self._where.resolve()
        except (OSError, TimeoutError) as error:
            found = ()
            self._failure = f"the name can't be resolved: {error or 'no answer in time'}"
        finally:
            self._resolving = None
            self._resolved = monotonic()
        if self.closing:
            return
        if not found:
            if not self._subchannels:
                self._become(State.TRANSIENT_FAILURE)
                self._fail_waiting()
                self.loop.call_later(self.settings.initial_backoff, self._resolve)
            return
        for endpoint in [endpoint for endpoint in self._subchannels if endpoint not in found]:
            probe("rpc: an address has left its name")
            subchannel = self._subchannels.pop(endpoint)
            subchannel.retire()
            self._leaving.append(subchannel)
        self._leaving = [subchannel for subchannel in self._leaving if subchannel.draining]
        self._ready = [sub.connection for sub in self._subchannels.values() if sub.connection is not None]
        for endpoint in found:
            if endpoint not in self._subchannels:
                self._subchannels[endpoint] = subchannel = self._subchannel(_constant(endpoint))
                subchannel.connect()

    # --- the end ---------------------------------------------------------------------------------------------------

    async def close(self, grace: float | None) -> None:
        """No new calls; give those that run `grace` seconds, cancel the rest, close all connections."""
        self.closing = True
        ends = [self.loop.create_task(rpc.ended()) for rpc in self.live()] if grace else []
        try:
            if ends:
                await asyncio.wait(ends, timeout=grace)
        finally:
            for end in ends:
                end.cancel()
            connections = self.shut()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                for connection in connections:
                    await connection.gone()
        for connection in connections:
            connection.abort()

    def shut(self) -> list[Connection]:
        """The end, at once; the connections whose transports are still closing."""
        if self.state is State.SHUTDOWN:
            return []
        self.closing = True
        for rpc in self.live():
            rpc.cancel("Channel closed!")
        self._become(State.SHUTDOWN)
        self._ready = []
        if self._resolving is not None:
            self._resolving.cancel()
        connections = [c for sub in (*self._subchannels.values(), *self._leaving) for c in sub.close()]
        self._subchannels.clear()
        self._leaving.clear()
        self.deadlines.close()
        return connections


def _constant(endpoint: Endpoint) -> Callable[[], object]:
    async def resolve() -> tuple[Endpoint, ...]:
        return (endpoint,)

    return resolve

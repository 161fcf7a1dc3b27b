"""A client that costs a call some microseconds: the sans-IO connection, requests as bytes, and nothing else.

*Closed*: so many calls are in flight, and each answer makes the next call. That gives the rate, and the latency at that
many in flight; but while a server stands still it is asked nothing, so of a stall only as many late calls are seen as
were in flight (coordinated omission). *Paced*: calls are due at times that no answer moves, and their latency counts
from when they were due, so that a stall is paid by every call that fell into it.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import threading
import time
from collections.abc import Sequence
from typing import Final, NamedTuple, cast

from bench.face.requests import Request
from bench.rpc_load import LIMITS, STATUS
from nebuladb.rpc.http2 import (
    Connection,
    ConnectionEnded,
    DataReceived,
    Fields,
    HeadersReceived,
    ResponseReceived,
    StreamReset,
)

SAMPLE: Final = 128
"""One answer of so many is parsed; of all others status, size and tail are compared."""
MAX_WRITE_ANSWER: Final = 128
"""Bytes of an answer that carries no value."""
PACE_SECONDS: Final = 0.001
"""Between two bursts of a paced run."""
PATIENCE: Final = 60.0
"""Seconds without any answer."""


class Run(NamedTuple):
    """What one run saw."""

    calls: int
    seconds: float
    latencies: list[float]
    """Seconds of each call, rising."""
    cpu: float
    """Seconds of CPU that this process took, kernel included."""
    refused: list[str]
    """Words of those that failed; they are among the calls."""
    late: float = 0.0
    """Paced: seconds by which the median burst left after it was due."""

    @property
    def rate(self) -> float:
        """Calls a second."""
        return self.calls / self.seconds

    def percentile(self, share: float) -> float:
        """Milliseconds that `share` of the calls took at most."""
        return self.latencies[min(len(self.latencies) - 1, int(len(self.latencies) * share))] * 1e3


class Caller(asyncio.Protocol):
    """One connection. It walks through its plan, and begins anew at its end."""

    def __init__(self, plan: Sequence[Request]) -> None:
        self.plan = plan
        self.next = self
        """Who makes the next call when an answer came here."""
        self.left = 0
        """Calls that may still be begun."""
        self.until = 0.0
        self.waiting = 0
        """Calls without an answer."""
        self.latencies: list[float] = []
        self.idle = asyncio.Event()
        self.refused: list[str] = []
        """What was said to calls that failed."""
        self.failure = ""
        """A wrong answer, or the connection's end."""
        self._begun: list[float] = []
        """When each call was made, or due, from stream `_first` on."""
        self._first = self._place = 0
        self._calls: list[Request] = []
        self._bodies: dict[int, list[bytes]] = {}
        self._http2 = Connection(client=True, limits=LIMITS)
        self._http2.whole_responses = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.flush()

    def reset(self, plan: Sequence[Request], place: int) -> None:
        """Begin another run at this place of `plan`."""
        self.plan, self._place = plan, place % len(plan)
        self.latencies, self.refused, self._begun, self._calls = [], [], [], []
        self._first = 0
        self.idle.clear()

    def call(self, count: int, now: float) -> None:
        """Make `count` calls, which were due at `now`."""
        plan, place, send, begun, calls = self.plan, self._place, self._http2.call, self._begun, self._calls
        for _ in range(count):
            if place == len(plan):
                place = 0
            request = plan[place]
            place += 1
            stream = send(request.headers, request.body)
            if not self._first:
                self._first = stream.id
            begun.append(now)
            calls.append(request)
        self._place = place
        self.waiting += count

    def flush(self) -> None:
        """Send what was called."""
        data = self._http2.take()
        if data:
            self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        events = self._http2.receive(data, time.monotonic())
        now = time.perf_counter()
        ended = 0
        for event in events:
            if type(event) is ResponseReceived:
                self._answered(event.stream.id, event.data, event.trailers.fields, now)
                ended += 1
            elif type(event) is DataReceived:
                self._http2.consumed(event.stream, len(event.data))
                self._bodies.setdefault(event.stream.id, []).append(event.data)
            elif type(event) is HeadersReceived:
                if event.ended:
                    body = b"".join(self._bodies.pop(event.stream.id, ()))
                    self._answered(event.stream.id, body, event.headers.fields, now)
                    ended += 1
            elif isinstance(event, StreamReset | ConnectionEnded):
                self._fail(f"{event}")
        self.waiting -= ended
        if ended:
            successor = self.next
            more = min(ended, successor.left) if now < successor.until else 0
            if more:
                successor.left -= more
                successor.call(more, now)
                successor.flush()
            if not self.waiting:
                self.idle.set()
        self.flush()

    def _answered(self, stream: int, body: bytes, trailers: Fields, now: float) -> None:
        number = (stream - self._first) >> 1
        self.latencies.append(now - self._begun[number])
        request = self._calls[number]
        tail = request.tail
        if STATUS not in trailers:
            self.refused.append(dict(trailers).get(b"grpc-message", b"?").decode())
        elif not (body.endswith(tail) if tail else 0 < len(body) < MAX_WRITE_ANSWER) or (
            not number % SAMPLE and not request.proof(body, request.number)
        ):
            self._fail(f"a wrong answer to {request}: {body!r}")

    def _fail(self, why: str) -> None:
        self.failure = self.failure or why
        self.next.left = self.left = 0
        self.idle.set()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._transport.is_closing() or error is not None:
            self._fail(f"the connection was lost: {error}")

    def close(self) -> None:
        """End it."""
        self._transport.close()


class Driver:
    """So many connections to each of some servers."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports = ports
        self._callers: list[Caller] = []

    async def connect(self, connections: int) -> None:
        """To each server."""
        loop = asyncio.get_running_loop()
        for _ in range(connections):
            for port in self._ports:
                _, caller = await loop.create_connection(lambda: Caller(()), "127.0.0.1", port)
                self._callers.append(caller)

    def close(self) -> None:
        """End all connections."""
        for caller in self._callers:
            caller.close()

    async def closed(self, plan: Sequence[Request], seconds: float, in_flight: int, calls: int = 1 << 60) -> Run:
        """So many calls in flight for so long, or `calls` of them. A lone one goes to each connection in turn.

        Raises `AssertionError` for a wrong answer.
        """
        callers = self._ready(plan)
        for caller, successor in zip(callers, [*callers[1:], *callers[:1]], strict=True):
            caller.next = successor if in_flight < len(callers) else caller
            caller.left = calls // len(callers) + 1
        with _Clock() as clock:
            for position, caller in enumerate(callers):
                caller.until = clock.began + seconds
                share = in_flight // len(callers) + (position < in_flight % len(callers))
                caller.left -= share
                caller.call(share, time.perf_counter())
                caller.flush()
            await self._settled(callers)
        return clock.run(callers)

    async def paced(self, plan: Sequence[Request], seconds: float, rate: float) -> Run:
        """`rate` calls a second, evenly over the connections, in bursts a millisecond apart."""
        callers = self._ready(plan)
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        late: list[float] = []
        made = burst = 0
        for caller in callers:
            caller.next, caller.left = caller, 0

        def send() -> None:
            nonlocal made, burst
            now = time.perf_counter()
            while not done.is_set() and (due := clock.began + burst * PACE_SECONDS) <= now:
                burst += 1
                late.append(now - due)
                wanted = int(burst * PACE_SECONDS * rate)
                while made < wanted:
                    callers[made % len(callers)].call(1, due)
                    made += 1
                if burst * PACE_SECONDS >= seconds:
                    done.set()
            for caller in callers:
                caller.flush()

        def tick() -> None:
            # Not the loop's timers, which are of whole milliseconds.
            while not done.is_set():
                wait = clock.began + burst * PACE_SECONDS - time.perf_counter()
                time.sleep(max(wait, PACE_SECONDS / 20))
                if wait <= PACE_SECONDS / 20:
                    loop.call_soon_threadsafe(send)

        with _Clock() as clock:
            thread = threading.Thread(target=tick, daemon=True)
            thread.start()
            try:
                await asyncio.wait_for(done.wait(), seconds + PATIENCE)
            finally:
                done.set()
            await self._settled(callers)
        thread.join()
        return clock.run(callers, sorted(late)[len(late) // 2])

    def _ready(self, plan: Sequence[Request]) -> list[Caller]:
        for position, caller in enumerate(self._callers):
            caller.reset(plan, position * len(plan) // len(self._callers))
        return self._callers

    async def _settled(self, callers: Sequence[Caller]) -> None:
        """Until nobody waits for an answer. Raises `AssertionError` when none comes any more, or a wrong one came."""
        answered = -1
        while True:
            failures = [caller.failure for caller in callers if caller.failure]
            if failures:
                raise AssertionError(failures[0])
            waiting = [caller for caller in callers if caller.waiting]
            if not waiting:
                return
            waiting[0].idle.clear()
            try:
                await asyncio.wait_for(waiting[0].idle.wait(), PATIENCE)
            except TimeoutError:
                before, answered = answered, sum(len(caller.latencies) for caller in callers)
                if answered == before:
                    missing = sum(caller.waiting for caller in callers)
                    raise AssertionError(f"{missing} calls have no answer after {PATIENCE:g} s") from None


class _Clock:
    """Time and CPU of a run; the collector waits until it is over."""

    def __enter__(self) -> _Clock:
        gc.collect()
        gc.disable()
        self._cpu = _cpu()
        self.began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._seconds = time.perf_counter() - self.began
        self._used = _cpu() - self._cpu
        gc.enable()

    def run(self, callers: Sequence[Caller], late: float = 0.0) -> Run:
        """What it was."""
        latencies = sorted(latency for caller in callers for latency in caller.latencies)
        refused = [words for caller in callers for words in caller.refused]
        return Run(len(latencies), self._seconds, latencies, self._used, refused, late)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

"""Answers that clients don't take: nothing is done whose answer has no room, and that costs nobody else."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import grpc
import pytest

from nebuladb.rpc import ServerLimits
from nebuladb.rpc.http2 import ErrorCode, StreamReset
from tests.unit.rpc.serving.wired import LATER, Wired, serving, unary, until

LIMITS: Final = ServerLimits(
    sweep_seconds=LATER, keepalive_seconds=LATER, transport_bytes=1 << 20, ahead_bytes=1 << 20, unread_total=3 << 20
)
SIZE: Final = 400_000
STATUS: Final = {code.value[0]: code for code in grpc.StatusCode}


class Handlers:
    def __init__(self) -> None:
        self.begun = 0
        self.gate = asyncio.Event()

    async def large(self, request: bytes, context: Any) -> bytes:
        self.begun += 1
        return bytes(SIZE)

    async def small(self, request: bytes, context: Any) -> bytes:
        self.begun += 1
        return b"small"

    async def later(self, request: bytes, context: Any) -> bytes:
        self.begun += 1
        await self.gate.wait()
        return bytes(SIZE)

    def all(self) -> dict[str, Any]:
        return {"Large": unary(self.large), "Small": unary(self.small), "Later": unary(self.later)}


def stuck(server: Any) -> Wired:
    """A client whose connection's window is full: it reads, and gives none back."""
    wired = Wired(server)
    wired.connection.http2._window = 0
    return wired


def filled(server: Any) -> Wired:
    """One such that is about to ask for as much as may wait for it, and so has its next requests wait."""
    wired = stuck(server)
    for _ in range(3):
        wired.call("Large")
    return wired


def update(size: int = (1 << 31) - 1) -> bytes:
    """The connection's window grows by so many octets."""
    return b"\0\0\4\x08\0\0\0\0\0" + size.to_bytes(4, "big")


def open_window(wired: Wired) -> None:
    """It takes everything from now on."""
    wired.connection.http2.receive(update(), time.monotonic())


async def settle(wired: Wired) -> None:
    await wired.say()
    wired.read()


def ended(wired: Wired) -> list[grpc.StatusCode]:
    return [STATUS[int(status)] for _, status in sorted(wired.statuses().items())]


async def test_requests_wait_until_answers_before_them_are_taken() -> None:
    handlers = Handlers()
    async with serving(LIMITS, handlers.all()) as server:
        wired = stuck(server)
        for _ in range(20):
            wired.call("Large")
        await settle(wired)
        assert handlers.begun == 3, "the third is over a MiB"
        wired.call("Small")
        await settle(wired)
        assert handlers.begun == 3
        assert wired.connection.unfinished > 0, "they count"
        open_window(wired)
        await wired.say()
        await until(lambda: bool(wired.read()) and len(wired.statuses()) == 21)
        assert set(ended(wired)) == {grpc.StatusCode.OK}
        assert handlers.begun == 21
        assert server.unfinished == wired.connection.unfinished == server.unread == 0
        wired.connection.http2.check()


async def test_one_that_waits_may_be_cancelled_or_late() -> None:
    handlers = Handlers()
    async with serving(LIMITS, handlers.all()) as server:
        wired = filled(server)
        cancelled = wired.call("Small")
        late = wired.call("Small", more=((b"grpc-timeout", b"1m"),))
        await settle(wired)
        wired.client.reset(cancelled, ErrorCode.CANCEL)
        await settle(wired)
        await until(lambda: len(wired.connection._later) == 0)
        open_window(wired)
        await settle(wired)
        assert handlers.begun == 3
        assert wired.statuses()[late.id] == b"4"
        assert server.unfinished == 0


async def test_too_many_that_wait_are_refused_and_were_not_done() -> None:
    handlers = Handlers()
    async with serving(LIMITS, handlers.all()) as server:
        wired = filled(server)
        for _ in range(30):
            wired.call("Small", bytes(3 << 20))
            await settle(wired)
        assert handlers.begun == 3
        assert set(ended(wired)) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert wired.connection.unfinished <= LIMITS.unfinished_bytes


async def test_who_reads_is_served_while_others_leave_too_much_unread() -> None:
    handlers = Handlers()
    async with serving(LIMITS, handlers.all()) as server:
        idle = [stuck(server) for _ in range(4)]
        for one in idle:
            for _ in range(3):
                one.call("Later")
            await settle(one)
        handlers.gate.set()
        await until(lambda: server.calls == 0)
        for one in idle:
            one.connection.flush()
            one.read()
        assert server.crowded
        given = [code for one in idle for code in ended(one)]
        assert set(given) == {grpc.StatusCode.UNAVAILABLE}, "done, but without room"
        assert server.unread < LIMITS.unread_total + 2 * SIZE
        reader = Wired(server)
        reader.call("Small")
        reader.call("Large")
        await settle(reader)
        assert ended(reader) == [grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE]
        now = time.monotonic()
        server.sweep(now + LIMITS.crowded_seconds + 1)
        for one in idle:
            one.connection.flush()
            one.read()
        codes = {event.code for one in idle for event in one.events if isinstance(event, StreamReset)}
        assert codes == {ErrorCode.INTERNAL_ERROR}, "on which watches go on"
        assert not server.crowded
        reader.call("Large")
        await settle(reader)
        assert ended(reader)[-1] is grpc.StatusCode.OK


async def test_what_a_lost_connection_left_unread_counts_no_more() -> None:
    handlers = Handlers()
    async with serving(LIMITS, handlers.all()) as server:
        wired = stuck(server)
        wired.call("Large")
        await settle(wired)
        assert server.unread == SIZE + 5
        wired.wire.lose()
        assert server.unread == 0


async def test_a_peer_that_takes_a_little_now_and_then_is_kept() -> None:
    limits = ServerLimits(sweep_seconds=LATER, keepalive_seconds=LATER, transport_bytes=100_000)
    handlers = Handlers()
    async with serving(limits, handlers.all()) as server:
        wired = Wired(server)
        wired.call("Large")
        await wired.say()
        assert wired.connection.paused
        now = time.monotonic()
        for _ in range(5):
            wired.wire.took(limits.held_progress)
            now += limits.held_seconds + 1
            wired.connection.sweep(now)
            assert not wired.wire.aborted
        wired.wire.took(limits.held_progress - 1)
        wired.connection.sweep(now + limits.held_seconds + 1)
        assert wired.wire.aborted


async def test_what_is_given_up_with_its_transport_counts_no_more() -> None:
    """uvloop's transport tells a size until it is freed, after the connection was told that it is lost."""
    async with serving(LIMITS, Handlers().all()) as server:
        wired = Wired(server)
        wired.connection.http2._window = (1 << 20) + 100_000  # the rest waits for the window
        for _ in range(5):
            wired.call("Large")
        await wired.say()
        assert wired.connection.paused
        assert wired.connection.http2.waiting
        server.sweep(time.monotonic() + LIMITS.held_seconds + 1)
        assert wired.wire.aborted
        wired.wire.lose()
        server.flush()
        assert server.unread == 0


async def test_none_overtakes_those_that_wait() -> None:
    handlers = Handlers()
    order: list[bytes] = []

    async def note(request: bytes, context: Any) -> bytes:
        order.append(request)
        return b""

    async with serving(LIMITS, {**handlers.all(), "Note": unary(note)}) as server:
        wired = filled(server)
        wired.call("Note", b"first")
        await settle(wired)
        assert not order
        wired.call("Note", b"second")
        await wired.hear(update() + wired.client.take())
        await until(lambda: bool(wired.read()) and len(order) == 2)
        assert order == [b"first", b"second"]


async def test_one_that_waits_is_begun_though_others_come() -> None:
    handlers = Handlers()

    async def huge(request: bytes, context: Any) -> bytes:
        return bytes(1_100_000)

    async with serving(LIMITS, {**handlers.all(), "Huge": unary(huge)}) as server:
        wired = filled(server)
        wired.call("Small")
        await settle(wired)
        data = update(1 << 29)
        for _ in range(20):
            while len(wired.client.streams) < 8:
                wired.call("Huge")
            await wired.hear(data + wired.client.take())
            data = b""
            wired.read()
            await asyncio.sleep(0)
        assert handlers.begun == 4


@pytest.mark.parametrize("calls", [1, 6], ids=["an answer waits", "requests wait"])
async def test_a_connection_that_drains_ends_with_its_last_answer(calls: int) -> None:
    handlers = Handlers()
    async with serving(LIMITS, handlers.all()) as server:
        wired = stuck(server)
        for _ in range(calls):
            wired.call("Large")
        await settle(wired)
        stop = asyncio.ensure_future(server.stop(LATER))
        await until(lambda: bool(wired.wire.written))
        wired.read()
        await settle(wired)  # the ping behind the GOAWAY is answered
        await wired.hear(update(1 << 24))
        await until(lambda: bool(wired.read()) or wired.wire.aborted)
        await until(lambda: bool(wired.read()) or wired.wire.aborted)
        assert ended(wired) == [grpc.StatusCode.OK] * calls
        assert wired.wire.aborted, "closed"
        wired.wire.lose()
        await stop


async def answered(server: Any, handlers: Handlers, count: int) -> Wired:
    """A client whose window is full, and for which so many answers wait."""
    wired = stuck(server)
    for _ in range(count):
        wired.call("Later")
    await settle(wired)
    handlers.gate.set()
    await until(lambda: server.calls == 0)
    return wired


async def test_no_more_of_what_waited_is_written_than_the_transport_takes() -> None:
    handlers = Handlers()
    async with serving(LIMITS, handlers.all()) as server:
        wired = await answered(server, handlers, 7)
        wired.read()
        assert wired.connection.http2.waiting == 7 * (SIZE + 5)
        await wired.hear(update())
        writes = 0
        while wired.connection.http2.waiting:
            await until(lambda: wired.connection.paused or not wired.connection.http2.waiting)
            assert len(wired.wire.written) <= 3 * LIMITS.transport_bytes
            held = len(wired.wire.written) + wired.connection.http2.waiting
            assert server.unread >= held - 10_000
            wired.read()
            writes += 1
        await until(lambda: len(wired.wire.written) > 0 or len(wired.statuses()) == 7)
        wired.read()
        assert writes >= 2
        assert ended(wired) == [grpc.StatusCode.OK] * 7
        assert not wired.connection.http2.streams
        assert server.unread == 0


async def test_an_answer_that_waits_for_our_transport_only_is_not_given_up() -> None:
    """Its client has opened all windows, and reads; it is our turn."""
    handlers = Handlers()
    async with serving(LIMITS, handlers.all()) as server:
        wired = await answered(server, handlers, 7)
        now = time.monotonic()
        wired.connection.sweep(now)
        await wired.hear(update())
        await until(lambda: wired.connection.paused)
        assert wired.connection.http2.waiting
        for _ in range(3):
            now += LIMITS.held_seconds + 1
            wired.wire.took(LIMITS.held_progress)
            wired.connection.sweep(now)
        while wired.connection.http2.waiting:
            await until(lambda: wired.connection.paused or not wired.connection.http2.waiting)
            wired.read()
        await until(lambda: len(wired.wire.written) > 0 or len(wired.statuses()) == 7)
        wired.read()
        assert ended(wired) == [grpc.StatusCode.OK] * 7

"""What comes in one large read is handled over several turns of the loop: nobody waits for the end of another's."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any, Final

import pytest

from nebuladb.rpc import ServerLimits
from nebuladb.rpc.http2 import ErrorCode
from nebuladb.rpc.serving import connection, turns
from nebuladb.rpc.serving.connection import SMALL_READ, UNTIMED
from tests.unit.rpc.serving.wired import LATER, Wired, serving, unary, until

LIMITS: Final = ServerLimits(sweep_seconds=LATER)
CALLS: Final = 400


class Handler:
    """Notes what it is asked, in order."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    async def __call__(self, request: bytes, context: Any) -> bytes:
        self.seen.append(request)
        return request


@pytest.fixture(autouse=True)
def no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each event took as long as all of a turn may."""
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.0)


def flooded(wired: Wired, name: bytes = b"") -> bytes:
    """Many requests that come in one read."""
    for number in range(CALLS):
        wired.call("Note", name + b"%d" % number)
    data = wired.client.take()
    assert len(data) > SMALL_READ
    return data


async def test_a_flood_is_handled_over_turns_and_others_come_between() -> None:
    note = Handler()
    async with serving(LIMITS, {"Note": unary(note)}) as server:
        many, lone = Wired(server), Wired(server)
        await many.hear(flooded(many))
        before = len(note.seen)
        lone.call("Note", b"lone")
        await lone.say()
        lone.read()
        assert set(lone.statuses().values()) == {b"0"}
        assert before <= note.seen.index(b"lone") <= 4 * UNTIMED
        turn = len(note.seen)
        while len(note.seen) < CALLS + 1:
            await asyncio.sleep(0)
            assert len(note.seen) - turn <= 2 * UNTIMED
            turn = len(note.seen)
        many.read()
        assert list(many.statuses().values()) == [b"0"] * CALLS
        note.seen.remove(b"lone")
        assert note.seen == [b"%d" % number for number in range(CALLS)]


async def test_a_usual_read_is_handled_as_it_comes() -> None:
    note = Handler()
    async with serving(LIMITS, {"Note": unary(note)}) as server:
        wired = Wired(server)
        for _ in range(2 * UNTIMED):
            wired.call("Note", b"x")
        await wired.say()
        assert len(note.seen) == 2 * UNTIMED


async def test_a_large_read_is_handled_as_it_comes_where_the_turn_has_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some hundred calls in flight come in one read: to put each off would cost two calls of the system."""
    monkeypatch.setattr(turns, "TURN_SECONDS", 60.0)
    note = Handler()
    async with serving(LIMITS, {"Note": unary(note)}) as server:
        one, other = Wired(server), Wired(server)
        paused: list[Wired] = []
        for wired in (one, other):
            wired.wire.pause_reading = partial(paused.append, wired)  # type: ignore[method-assign]
        await one.hear(flooded(one))
        assert (len(note.seen), paused) == (CALLS, [])
        monkeypatch.setattr(server.turns, "_until", 1.0)  # long ago
        await other.hear(flooded(other))
        assert paused == [other], "the time is all connections' together"
        await until(lambda: len(note.seen) == 2 * CALLS)


async def test_what_waits_has_a_bound_and_past_it_a_read_is_handled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six thousand connections with a read each were a gigabyte."""
    note = Handler()
    async with serving(LIMITS, {"Note": unary(note)}) as server:
        one, other, gone = Wired(server), Wired(server), Wired(server)
        data = flooded(one)
        monkeypatch.setattr(connection, "MOST_HELD", len(data))
        monkeypatch.setattr(connection, "SLICE", 100)
        await gone.hear(flooded(gone))
        await one.hear(data)
        assert server.turns.held > len(data)
        before = len(note.seen)
        await other.hear(flooded(other, b"other"))
        assert [name[:5] for name in note.seen].count(b"other") == CALLS
        assert len(note.seen) - CALLS - before <= 4 * UNTIMED
        gone.wire.lose()
        await until(lambda: len(note.seen) >= 2 * CALLS and not server.turns.held)


async def test_nothing_is_read_until_that_is_handled() -> None:
    note = Handler()
    async with serving(LIMITS, {"Note": unary(note)}) as server:
        wired = Wired(server)
        reading: list[bool] = []
        wired.wire.pause_reading = lambda: reading.append(False)  # type: ignore[method-assign]
        wired.wire.resume_reading = lambda: reading.append(True)  # type: ignore[method-assign]
        data = flooded(wired)
        await wired.hear(data[:-1])
        await asyncio.sleep(0)
        assert reading == [False]
        await wired.hear(data[-1:])  # transports of TLS have some more for us
        while not reading[-1]:
            assert len(note.seen) < CALLS
            await asyncio.sleep(0)
        assert len(note.seen) == CALLS
        assert reading.count(True) == 1


async def test_floods_take_turns() -> None:
    note = Handler()
    async with serving(LIMITS, {"Note": unary(note)}) as server:
        first, second = Wired(server), Wired(server)
        await first.hear(flooded(first, b"a"))
        await second.hear(flooded(second, b"b"))
        await until(lambda: len(note.seen) == 2 * CALLS)
        half = note.seen[:CALLS]
        assert abs(sum(one.startswith(b"a") for one in half) - CALLS // 2) <= 4 * UNTIMED


async def test_what_waits_for_a_turn_goes_with_its_connection() -> None:
    note = Handler()
    ended = asyncio.Event()

    async def wait(request: bytes, context: Any) -> bytes:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()
        return b""

    async with serving(LIMITS, {"Note": unary(note), "Wait": unary(wait)}) as server:
        wired = Wired(server)
        stream = wired.call("Wait")
        await wired.say()
        data = flooded(wired)
        wired.client.reset(stream, ErrorCode.CANCEL)
        await wired.hear(data + wired.client.take() + flooded(wired))
        await asyncio.sleep(0)
        seen = len(note.seen)
        assert seen < CALLS
        wired.wire.lose()
        await until(ended.is_set)
        await until(lambda: server.calls == 0)
        assert len(note.seen) == seen


async def test_one_that_waits_for_a_turn_is_not_taken_for_silent() -> None:
    note = Handler()
    async with serving(LIMITS, {"Note": unary(note)}) as server:
        wired = Wired(server)
        wired.connection.sweep(time.monotonic() + LIMITS.keepalive_seconds + 1)
        assert wired.connection._pinged
        await wired.hear(flooded(wired))
        wired.connection.sweep(time.monotonic() + LATER)
        assert not wired.wire.aborted
        await until(lambda: len(note.seen) == CALLS)


async def test_a_peer_that_does_not_read_between_two_turns() -> None:
    async def large(request: bytes, context: Any) -> bytes:
        return bytes(10_000)

    limits = ServerLimits(sweep_seconds=LATER, transport_bytes=30_000)
    async with serving(limits, {"Note": unary(large)}) as server:
        wired = Wired(server)
        await wired.hear(flooded(wired))
        while len(wired.statuses()) < CALLS:
            await until(lambda: wired.connection.paused or not (wired.connection._input or wired.connection._backlog))
            assert len(wired.wire.written) < 200_000
            wired.read()
            await wired.say()
        assert set(wired.statuses().values()) == {b"0"}
        wired.connection.http2.check()


async def test_one_that_fails_costs_nobody_else_the_turn(caplog: pytest.LogCaptureFixture) -> None:
    note = Handler()
    async with serving(LIMITS, {"Note": unary(note)}) as server:
        broken, other = Wired(server), Wired(server)
        broken.connection.limits = None
        await broken.hear(flooded(broken))
        await other.hear(flooded(other, b"b"))
        await until(lambda: broken.wire.aborted)
        await until(lambda: len(note.seen) >= CALLS)
        assert "a connection failed" in caplog.text

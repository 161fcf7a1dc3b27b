"""What headers of calls in progress take in memory, and what becomes of those that are too many."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from nebuladb.rpc import ServerLimits
from nebuladb.rpc.framing import frame
from nebuladb.rpc.http2 import ErrorCode, Fields
from nebuladb.rpc.http2.stream import Stream
from nebuladb.rpc.metadata import decode_metadata
from nebuladb.rpc.serving.request import Request
from nebuladb.rpc.serving.routes import Routes
from tests.unit.rpc.serving.wired import LATER, Wired, chatting, serving, unary, until

LIMITS: Final = ServerLimits(sweep_seconds=LATER, keepalive_seconds=LATER, headers_total=100_000)
COST: Final = 40_000
"""About, of a request with `many` fields."""


def many(number: int) -> Fields:
    return tuple((b"a%d" % field, b"%d" % (number * 1_000 + field)) for field in range(100))


class Handlers:
    def __init__(self) -> None:
        self.release = asyncio.Event()

    async def talk(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        await self.release.wait()
        async for request in requests:
            yield request

    async def wait(self, request: bytes, context: Any) -> bytes:
        await self.release.wait()
        return request

    def all(self) -> dict[str, Any]:
        return {"Talk": chatting(self.talk), "Wait": unary(self.wait)}


def opened(wired: Wired, number: int, kind: str) -> Stream:
    """A call with many fields of its own, to be said."""
    if kind == "unary":
        return wired.call("Wait", more=many(number))
    return wired.client.open(wired.fields("Wait" if kind == "not whole" else "Talk") + many(number))


@pytest.mark.parametrize("kind", ["stream", "unary", "not whole"])
async def test_large_ones_are_refused_past_the_bound_and_usual_ones_are_not(kind: str) -> None:
    handlers = Handlers()
    async with serving(LIMITS, handlers.all()) as server:
        one, other = Wired(server), Wired(server)
        streams = [opened(one, number, kind) for number in range(10)]
        await one.say()
        assert LIMITS.headers_total < server.headers < LIMITS.headers_total + COST
        one.read()
        taken = [stream for stream in streams if stream.id not in one.statuses()]
        assert 2 <= len(taken) <= 5
        assert set(one.statuses().values()) == {b"8"}
        assert all("nebula-error-bin" in dict(decode_metadata(fields)) for fields in one.ends().values()), "not done"
        elsewhere = opened(other, 0, kind)
        usual = other.call("Wait")
        await other.say()
        other.read()
        assert other.statuses() == {elsewhere.id: b"8"}
        one.client.reset(taken[0], ErrorCode.CANCEL)
        await one.say()
        await until(lambda: server.headers <= LIMITS.headers_total)
        again = opened(other, 1, kind)
        handlers.release.set()
        for wired, stream in (*((one, stream) for stream in taken[1:]), (other, again)):
            if kind != "unary":
                wired.client.send_data(stream, frame(b"x"), end=True)
        await one.say()
        await other.say()
        await until(lambda: server.calls == 0)
        other.read()
        assert other.statuses() == {elsewhere.id: b"8", usual.id: b"0", again.id: b"0"}
        assert server.headers == 0


async def test_the_same_list_counts_once() -> None:
    handlers = Handlers()
    async with serving(LIMITS, handlers.all()) as server:
        wired = Wired(server)
        for _ in range(100):
            wired.call("Wait")
        await wired.say()
        assert server.calls == 100
        assert 0 < server.headers < 10_000
        handlers.release.set()
        await until(lambda: server.calls == 0)
        assert server.headers == 0


async def test_what_a_lost_connection_held_counts_no_more() -> None:
    handlers = Handlers()
    async with serving(LIMITS, handlers.all()) as server:
        wired = Wired(server)
        for number, kind in enumerate(("stream", "unary", "not whole")):
            opened(wired, number, kind)
        await wired.say()
        assert server.headers > COST
        wired.wire.lose()
        await until(lambda: server.calls == 0)
        assert server.headers == 0


def test_the_cost_is_what_they_take() -> None:
    fields = many(7)
    size = sum(len(name) + len(value) + 32 for name, value in fields)
    request = Request(fields, size, Routes(()))
    objects = [fields, *fields, *(text for field in fields for text in field)]
    metadata = tuple(decode_metadata(fields))
    objects += [metadata, *metadata, *(text for field in metadata for text in field)]
    taken = sum(sys.getsizeof(one) for one in objects)
    assert 0.9 * taken < request.cost < 1.5 * taken

"""Links between transports on real sockets: they stand, break, come again, and end with nothing left behind."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from nebuladb.errors import ConfigurationError
from nebuladb.pb.nebula.peer.v1 import peer_pb2 as pb
from nebuladb.rpc import peer as module
from nebuladb.rpc.engine import DEFAULT, ENGINES, NEBULA, Engine
from nebuladb.rpc.http2.reading import Reading
from nebuladb.rpc.status import StatusError
from tests.unit.rpc.links import SECONDS, End, until


@pytest.fixture(params=["nebula", "grpcio", "nebula and grpcio", "grpcio and nebula"])
async def ends(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> AsyncIterator[tuple[End, End]]:
    """Two transports that listen; the first is the one that dials."""
    monkeypatch.setattr(module, "BACKOFF_SECONDS", (0.001,))
    first, _, second = request.param.partition(" and ")
    pair = End(1, ENGINES[first]), End(2, ENGINES[second or first])
    for end in pair:
        await end.transport.serve(end.address)
    yield pair
    for end in pair:
        await end.transport.stop()


async def linked(one: End, other: End) -> None:
    one.transport.connect_to({other.node: other.address, one.node: one.address})
    await until(lambda: one.transport.connected == [2] and other.transport.connected == [1])


async def test_frames_pass_both_ways_in_order(ends: tuple[End, End]) -> None:
    one, other = ends
    await linked(one, other)
    for number in range(100):
        one.transport.send([(2, b"%d" % number)])
        other.transport.send([(1, b"%d" % number)])
    await until(lambda: len(one.frames) == len(other.frames) == 100)
    assert other.frames == [(1, b"%d" % number) for number in range(100)]
    assert one.frames == [(2, b"%d" % number) for number in range(100)]


async def test_without_a_link_a_frame_is_lost(ends: tuple[End, End]) -> None:
    ends[0].transport.send([(2, b"frame")])


async def test_a_link_that_breaks_is_told_once_and_comes_again(ends: tuple[End, End]) -> None:
    one, other = ends
    await linked(one, other)
    await other.transport.stop()
    await until(lambda: one.links == ["up 2", "down 2"])
    heir = End(2)
    heir.address = other.address
    await heir.transport.serve(heir.address)
    await until(lambda: one.transport.connected == [2])
    assert one.links == ["up 2", "down 2", "up 2"]
    await heir.transport.stop()


async def test_a_link_that_is_dropped_stands_again_only_if_its_handshake_is_taken(ends: tuple[End, End]) -> None:
    one, other = ends
    await linked(one, other)
    other.refuses = True
    other.transport.drop(1)
    other.transport.drop(9)  # to whom there is none
    await until(lambda: one.links == ["up 2", "down 2"] and other.links == ["up 1", "down 1"])
    other.refuses = False
    await until(lambda: one.transport.connected == [2] and other.transport.connected == [1])


async def test_who_is_not_dialled_though_it_should_be_dials(
    ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one with the lower id was away when this node came, and knows nobody who could tell it."""
    one, other = ends
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.001)
    other.transport.connect_to({1: one.address})
    await until(lambda: one.transport.connected == [2] and other.transport.connected == [1])
    await linked(one, other)  # now it knows
    one.transport.send([(2, b"frame")])
    await until(lambda: bool(other.frames))
    assert (one.links, other.links) == (["up 2"], ["up 1"]), "a link that stands stays"


async def test_who_should_be_dialled_waits(ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = ends
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 1_000.0)
    other.transport.connect_to({1: one.address})
    await linked(one, other)
    assert other.links == ["up 1"]


async def test_who_is_refused_tries_again_until_it_is_taken(ends: tuple[End, End]) -> None:
    one, other = ends
    other.refuses = True
    one.transport.connect_to({2: other.address})
    await until(lambda: len(one.told) >= 2)
    assert one.links == other.links == other.told == []
    assert set(one.told) == {"not one of us"}
    other.refuses = False
    await until(lambda: one.transport.connected == [2])


@pytest.mark.parametrize("side", [0, 1])
async def test_no_error_ends_the_dialling(ends: tuple[End, End], side: int) -> None:
    one, other = ends
    ends[side].error = RuntimeError("a bug")
    one.transport.connect_to({2: other.address})
    await until(lambda: ends[side].checks >= 2)
    ends[side].error = None
    await until(lambda: one.transport.connected == [2])


async def linked_twice(channel: grpc.aio.Channel) -> list[Any]:
    """Links of node 1 in two lives, the older one first."""
    link: Any = channel.stream_stream(
        f"/{module.SERVICE}/Link", pb.LinkMessage.SerializeToString, pb.LinkMessage.FromString
    )
    calls = []
    for incarnation in (7, 8):
        call = link()
        await call.write(pb.LinkMessage(handshake=pb.Handshake(node_id=1, incarnation=incarnation)))
        assert (await call.read()).HasField("handshake")
        calls.append(call)
    return calls


async def test_a_newer_link_takes_an_older_ones_place_and_its_end_is_not_the_newers(ends: tuple[End, End]) -> None:
    _, other = ends
    async with grpc.aio.insecure_channel(other.address) as channel:
        calls = await linked_twice(channel)
        await until(lambda: other.links == ["up 1", "down 1", "up 1"])
        calls[0].cancel()
        await calls[1].write(pb.LinkMessage(frame=b"frame"))
        await until(lambda: other.frames == [(1, b"frame")])
        assert other.links == ["up 1", "down 1", "up 1"]
        assert other.transport.connected == [1]
        calls[1].cancel()
        await until(lambda: other.links[-1] == "down 1")


async def test_an_older_link_ends_when_a_newer_one_takes_its_place(ends: tuple[End, End]) -> None:
    """Else each lost connection would leave a call behind until the kernel notices."""
    _, other = ends
    async with grpc.aio.insecure_channel(other.address) as channel:
        calls = await linked_twice(channel)
        assert await asyncio.wait_for(calls[0].read(), SECONDS) is grpc.aio.EOF


@pytest.mark.parametrize("first", [pb.LinkMessage(frame=b"frame"), pb.LinkMessage()])
async def test_a_link_begins_with_a_handshake(ends: tuple[End, End], first: pb.LinkMessage) -> None:
    _, other = ends
    async with grpc.aio.insecure_channel(other.address) as channel:
        link: Any = channel.stream_stream(
            f"/{module.SERVICE}/Link", pb.LinkMessage.SerializeToString, pb.LinkMessage.FromString
        )
        call = link()
        await call.write(first)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert other.links == []


@pytest.mark.parametrize("ends", ["nebula"], indirect=True)
async def test_a_link_that_fell_hands_over_nothing(ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch) -> None:
    """What came with the end is read a moment later, when its owner has been told of that."""
    one, other = ends
    await linked(one, other)
    link = one.transport._links[2]
    down = one.peer_down

    def fallen(node: int) -> None:
        down(node)
        link._arrived(module.packed(b"late"))

    monkeypatch.setattr(one, "peer_down", fallen)
    await other.transport.stop()
    await until(lambda: one.links[:2] == ["up 2", "down 2"])
    assert one.frames == []


async def test_who_says_nothing_is_let_go(ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_SECONDS", 0.01)
    _, other = ends
    async with grpc.aio.insecure_channel(other.address) as channel:
        link: Any = channel.stream_stream(
            f"/{module.SERVICE}/Link", pb.LinkMessage.SerializeToString, pb.LinkMessage.FromString
        )
        call = link()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(call.read(), SECONDS)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("size", [0, 1, 127, 128, 129, 130, 131, 16_383, 16_384, 16_385, 16_386, 100_000])
def test_a_message_is_what_protobuf_makes_of_it(size: int) -> None:
    frame = bytes([size % 251]) * size
    assert module.packed(frame) == pb.LinkMessage(frame=frame).SerializeToString()


class _Slow:
    """A link's stream that takes nothing more until `opened`; as of grpc.aio, it can only be written to."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.sent: list[bytes] = []

    async def write(self, message: pb.LinkMessage) -> None:
        await self.opened.wait()
        self.sent.append(message.frame)


class _SlowDirect(_Slow):
    """The same of our own engine: it takes a message, and says that it has no room for the next."""

    connection = None
    direct = property(lambda self: self)

    def put_bytes(self, message: bytes) -> bool:
        self.sent.append(pb.LinkMessage.FromString(message).frame)
        return not self.opened.is_set()

    async def room(self) -> None:
        await self.opened.wait()

    def deliver_to(self, listener: Callable[[bytes], None]) -> None: ...


@pytest.mark.parametrize(("kind", "taken"), [(_Slow, 0), (_SlowDirect, 1)])
async def test_a_slow_peers_queue_is_bounded(kind: type[_Slow], taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_QUEUE_BYTES", 10)
    stream = kind()
    link = module._Link(2, stream, lambda node, frame: None)
    for number in range(20):
        link.send(b"%02d" % number)
    assert len(stream.sent) == taken
    carrier = asyncio.create_task(link.carry())
    stream.opened.set()
    await until(lambda: len(stream.sent) == taken + 5)
    link.send(b"xx")  # what waited has left: there is room again
    await until(lambda: len(stream.sent) == taken + 6)
    assert stream.sent == [*(b"%02d" % number for number in range(taken + 5)), b"xx"]
    carrier.cancel()
    await asyncio.gather(carrier, return_exceptions=True)


@pytest.mark.parametrize("ends", ["nebula"], indirect=True)
async def test_frames_that_come_one_by_one_go_straight_at_both_ends(
    ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = ends
    await linked(one, other)
    straight = {True: 0, False: 0}
    """By whether a client's end took it."""

    def part(http2: Reading, data: bytes) -> bool:
        taken = whole(http2, data)
        straight[http2.client] += taken
        return taken

    whole = Reading.part
    monkeypatch.setattr(Reading, "part", part)
    for number in range(1, 21):
        one.transport.send([(2, b"%d" % number)])
        other.transport.send([(1, b"%d" % number)])
        await until(lambda: len(one.frames) == len(other.frames) == number)  # noqa: B023
    assert other.frames == [(1, b"%d" % number) for number in range(1, 21)]
    assert min(straight.values()) >= 15


@pytest.mark.parametrize("ends", ["nebula"], indirect=True)
async def test_sent_frames_are_with_the_system_at_once(ends: tuple[End, End]) -> None:
    one, other = ends
    await linked(one, other)
    for end, node in ((one, 2), (other, 1)):
        sender: Any = end.transport._links[node]._direct.connection  # type: ignore[union-attr]
        writes: list[bytes] = []
        wire, sender._transport = sender._transport, _Wire(sender._transport, writes)
        end.transport.send([(node, b"frame")])
        sender._transport = wire
        assert b"frame" in b"".join(writes)
    await until(lambda: len(one.frames) == len(other.frames) == 1)


class _Wire:
    """A transport whose writes are seen."""

    def __init__(self, transport: Any, writes: list[bytes]) -> None:
        self._transport, self._writes = transport, writes

    def write(self, data: bytes) -> None:
        self._writes.append(data)
        self._transport.write(data)

    def is_closing(self) -> bool:
        return False


@pytest.mark.parametrize("ends", ["nebula"], indirect=True)
async def test_a_frame_is_handed_over_in_the_read_that_brings_it(ends: tuple[End, End]) -> None:
    one, other = ends
    await linked(one, other)
    tasks = len(asyncio.all_tasks())
    seen: list[asyncio.Task[Any] | None] = []
    links = one.transport._links | other.transport._links
    links[1]._deliver = links[2]._deliver = lambda *_: seen.append(asyncio.current_task())
    for _ in range(100):
        one.transport.send([(2, b"frame")])
        other.transport.send([(1, b"frame")])
    await until(lambda: len(seen) == 200)
    assert set(seen) == {None}  # no task was woken for it
    assert len(asyncio.all_tasks()) == tasks


class _Call:
    """A link's call on which nothing comes but what the test gives."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[pb.LinkMessage] | None = None

    async def write(self, message: pb.LinkMessage) -> None: ...

    async def read(self) -> pb.LinkMessage:
        self.answer = asyncio.get_running_loop().create_future()
        return await self.answer

    def cancel(self) -> None: ...

    def stream_stream(self, *_: object) -> Callable[[], _Call]:
        return lambda: self

    async def __aenter__(self) -> _Call:
        return self

    async def __aexit__(self, *_: object) -> None: ...


async def test_a_handshake_that_comes_as_the_transport_stops_makes_no_link() -> None:
    """Before Python 3.12 `asyncio.wait_for` forgets a cancellation that meets its answer."""
    call = _Call()
    end = End(1, Engine("one call", DEFAULT.server, lambda *_, **__: call))  # type: ignore[arg-type]
    end.transport.connect_to({2: "127.0.0.1:1"})
    await until(lambda: call.answer is not None)
    assert call.answer is not None
    call.answer.set_result(pb.LinkMessage(handshake=pb.Handshake(node_id=2)))
    async with asyncio.timeout(SECONDS):
        await end.transport.stop()
    assert end.links == []


async def test_a_new_node_asks_a_member_who_it_is(ends: tuple[End, End]) -> None:
    one, other = ends
    assert (await one.transport.join(other.address, pb.JoinRequest(name="n9"))).wait == "n2 has no room for n9"
    [lag] = (await one.transport.lags(other.address, pb.LagsRequest(node_id=5))).lags
    assert (lag.group, lag.lacks) == (2, 5)


async def test_a_node_that_is_no_peer_any_more_is_not_dialled(ends: tuple[End, End]) -> None:
    one, other = ends
    await linked(one, other)
    one.transport.connect_to({1: one.address})
    await until(lambda: other.links[-1] == "down 1")
    assert one.transport.connected == []


class _Refusing(_SlowDirect):
    """A stream of our own server, which refuses a frame."""

    def put_bytes(self, message: bytes) -> bool:
        raise StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, "the response is too large")


async def test_a_frame_that_its_stream_refuses_is_lost_and_nothing_else() -> None:
    """Neither the pump, which sends it, nor the task that carries what waited, ends for it."""
    stream = _Refusing()
    link = module._Link(2, stream, lambda node, frame: None)
    link.send(b"one")
    link._full = True
    link.send(b"two")
    carrier = asyncio.create_task(link.carry())
    stream.opened.set()
    await until(lambda: not link._queue)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not carrier.done()
    carrier.cancel()
    await asyncio.gather(carrier, return_exceptions=True)


@pytest.mark.parametrize("ends", ["nebula"], indirect=True)
@pytest.mark.parametrize("direction", [(0, 1), (1, 0)])
async def test_a_link_outlives_a_frame_that_is_too_large_or_comes_again(
    ends: tuple[End, End], direction: tuple[int, int]
) -> None:
    """Both ends of a real one. (No frame is ever made that large.)"""
    await linked(*ends)
    sender, receiver = (ends[at] for at in direction)
    sender.transport.send([(receiver.node, bytes(module.MAX_FRAME_BYTES + 1))])
    while not receiver.frames:
        sender.transport.send([(receiver.node, b"next")])
        await asyncio.sleep(0.001)
    assert receiver.frames[0] == (sender.node, b"next")


@pytest.mark.parametrize("ends", ["nebula"], indirect=True)
@pytest.mark.parametrize("direction", [(0, 1), (1, 0)])
async def test_bytes_that_are_no_message_end_the_link_and_the_next_one_comes(
    ends: tuple[End, End], direction: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    await linked(*ends)
    sender, receiver = (ends[at] for at in direction)
    direct: Any = sender.transport._links[receiver.node]._direct
    for _ in range(2):
        direct.put_bytes(b"\xff\xff")
    direct.connection.flush()
    await until(lambda: receiver.links[:2] == [f"up {sender.node}", f"down {sender.node}"])
    await until(lambda: ends[0].transport.connected == [2] and ends[1].transport.connected == [1])
    sender.transport.send([(receiver.node, b"frame")])
    await until(lambda: receiver.frames == [(sender.node, b"frame")])
    (line,) = caplog.messages
    assert f"node {sender.node:016x} sent 2 bytes that are no message of a link" in line


@pytest.mark.parametrize("ends", ["nebula"], indirect=True)
async def test_a_link_that_stood_is_dialled_again_without_delay_however_often_it_breaks(
    ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = ends
    await linked(one, other)
    monkeypatch.setattr(module, "BACKOFF_SECONDS", (0.001, 1_000.0))
    for count in range(2, 5):
        direct: Any = other.transport._links[1]._direct
        direct.connection._transport.abort()
        await until(lambda count=count: one.links.count("up 2") == other.links.count("up 1") == count)  # type: ignore[misc]


@pytest.mark.parametrize("engine", list(ENGINES))
async def test_a_port_that_can_not_be_had_is_named_with_the_reason(engine: str) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        end = End(1, ENGINES[engine])
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        why = "Address already in use" if engine == NEBULA else "it is in use, or not this machine's"
        with pytest.raises(ConfigurationError, match=f"^peer-addr: can't listen at {address}: {why}$"):
            await end.transport.serve(address)
        await end.transport.stop()
    if engine == NEBULA:
        with pytest.raises(ConfigurationError, match=r"^peer-addr: can't listen at none\.invalid:7380: (?!it is)"):
            await End(1).transport.serve("none.invalid:7380")


def test_grpcio_is_told_as_well_how_long_a_ping_may_take() -> None:
    """It has two settings for it, of which the longer one rules: 60 s, if nobody says otherwise."""
    options = dict(module.OPTIONS)
    assert options["grpc.http2.ping_timeout_ms"] == options["grpc.keepalive_timeout_ms"]

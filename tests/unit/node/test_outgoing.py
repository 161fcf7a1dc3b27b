"""The sender's side of a snapshot: what it holds in memory, and how it learns that all is in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nebuladb.kv.chunk import ChunkKind, encode_chunk
from nebuladb.kv.export import Exporter
from nebuladb.node.frame import HostMessageType
from nebuladb.node.outgoing import IDLE_TICKS, INSTALL_TICKS, RESEND_TICKS, WINDOW_CHUNKS, Outgoing, TransferOutcome
from nebuladb.raft import Message
from tests.unit.kv.helpers import GENERATION, GROUP, Log, fresh, put, run

NUMBER = 7


def chunk(number: int, kind: ChunkKind = ChunkKind.ROWS) -> bytes:
    return encode_chunk(kind, number, 10, b"")


def reply(*, hint: int = 0, index: int = 0) -> Message:
    return Message(HostMessageType.SNAPSHOT_REPLY, 2, 1, 1, hint=hint, index=index, context=NUMBER)


def sent(outgoing: Outgoing) -> list[int]:
    return [envelope.message.hint for envelope in outgoing.messages()]


@pytest.fixture
def outgoing() -> Iterator[Outgoing]:
    store, engine = fresh()
    run(store, Log(), put(b"k", b"v"))
    exporter = Exporter(engine, GROUP, GENERATION)
    yield Outgoing(GROUP, 1, 2, 12, 1, 1, NUMBER, exporter)
    exporter.close()


def test_no_more_is_read_than_the_window_takes(outgoing: Outgoing) -> None:
    """A receiver that is slow, or silent, had the whole shard read into memory."""
    read = 0
    while outgoing.wants_chunk and read < 2 * WINDOW_CHUNKS:
        outgoing.chunk_read(chunk(read))
        read += 1
    assert read == WINDOW_CHUNKS
    assert sent(outgoing) == list(range(WINDOW_CHUNKS))
    outgoing.replied(reply(hint=1))
    assert outgoing.wants_chunk, "one was taken, so there is room for one"
    outgoing.chunk_read(chunk(read))
    assert not outgoing.wants_chunk


def test_the_last_chunk_asks_until_it_is_said_that_all_is_in(outgoing: Outgoing) -> None:
    """That word may be lost: the chunk comes again then, and for as long as a flush takes. Without it nobody asked, and
    the transfer, whole and installed, was given up and begun anew."""
    outgoing.chunk_read(chunk(0, ChunkKind.HEAD))
    outgoing.chunk_read(chunk(1, ChunkKind.END))
    assert sent(outgoing) == [0, 1]
    outgoing.replied(reply(hint=2))
    for _ in range(RESEND_TICKS):
        outgoing.tick(connected=True)
    assert sent(outgoing) == [1]
    for _ in range(2 * IDLE_TICKS):
        outgoing.tick(connected=True)
    assert sent(outgoing) == [1], "it hasn't given up"
    outgoing.replied(reply(index=5))
    assert (outgoing.outcome, outgoing.index) == (TransferOutcome.INSTALLED, 5)


def test_chunks_before_the_last_are_waited_for_as_long_as_nothing_is_flushed(outgoing: Outgoing) -> None:
    """All is read, and none of it is taken: whoever doesn't take a chunk isn't flushing."""
    for number, kind in enumerate((ChunkKind.HEAD, ChunkKind.ROWS, ChunkKind.END)):
        outgoing.chunk_read(chunk(number, kind))
    outgoing.messages()
    for _ in range(IDLE_TICKS):
        outgoing.tick(connected=True)
    assert outgoing.outcome is TransferOutcome.FAILED
    assert IDLE_TICKS < INSTALL_TICKS


def test_what_can_not_be_read_ends_it_at_once(outgoing: Outgoing) -> None:
    """It was asked for again, and again, until nothing had come of it for 10 s."""
    outgoing.chunk_read(chunk(0, ChunkKind.HEAD))
    outgoing.chunk_read(None)
    assert outgoing.outcome is TransferOutcome.FAILED
    assert not outgoing.wants_chunk
    assert sent(outgoing) == []

"""The receiver's side of a snapshot: what of it waits in memory."""

from __future__ import annotations

from nebuladb.ids import Generation
from nebuladb.kv.chunk import ChunkKind, encode_chunk
from nebuladb.kv.importer import Importer
from nebuladb.node.incoming import Incoming
from nebuladb.node.outgoing import WINDOW_CHUNKS
from nebuladb.storage.memory import MemoryEngine
from tests.unit.kv.helpers import GROUP


def test_no_more_waits_than_a_sender_may_have_on_its_way() -> None:
    """The bound is the receiver's own: who sends on without waiting fills no memory."""
    incoming = Incoming((1, 1), 1, 11, Importer(MemoryEngine(wal=False), GROUP, Generation(2)), 2)
    for number in range(2 * WINDOW_CHUNKS):
        incoming.receive(number, encode_chunk(ChunkKind.ROWS, number, 10, b""))
    written = 0
    while incoming.waiting:
        incoming.write()
        written += 1
    assert written == WINDOW_CHUNKS

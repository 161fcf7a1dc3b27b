"""One snapshot that is coming in: the receiver's side. It is built under a generation that nobody refers to (S30)."""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import Final

from nebuladb.env import probe
from nebuladb.errors import Corruption
from nebuladb.kv.chunk import Head
from nebuladb.kv.importer import Importer
from nebuladb.node.outgoing import WINDOW_CHUNKS

QUIET_TICKS: Final = 40
"""Without a chunk for so long (2 s) a replica that has nothing else asks whether somebody is still sending."""
SILENT_TICKS: Final = 300
"""Without a chunk for so long (15 s) it is given up: its sender has, too."""


class Stage(IntEnum):
    """How far it is. After RECEIVING all rows are written; after FLUSHING they are durable, and the batch in raft/ that
    makes them the replica's state is under way."""

    RECEIVING = 1
    FLUSHING = 2
    FLIPPING = 3


class Incoming:
    """Chunks in order, each at most once; the others are dropped, and come again."""

    def __init__(self, name: tuple[int, int], sender: int, node: int, importer: Importer, generation: int) -> None:
        """`name`: (term, number) of the transfer. `sender` is a replica, on `node`."""
        self.name = name
        self.sender = sender
        self.node = node
        self.importer = importer
        self.generation = generation
        self.stage = Stage.RECEIVING
        self.batch = 0
        """FLIPPING: the log batch that makes it current."""
        self.damaged = False
        """What came is wrong, or this node's disk is: it has no end."""
        self.received = 0
        """Bytes of chunks that were taken."""
        self.since = 0
        """When it began, ms."""
        self._queue: deque[bytes] = deque()
        self._silent = 0

    @property
    def head(self) -> Head:
        """Of the first chunk."""
        head = self.importer.head
        assert head is not None
        return head

    @property
    def waiting(self) -> bool:
        """Whether a chunk waits to be written."""
        return bool(self._queue)

    def receive(self, number: int, chunk: bytes) -> None:
        """Chunk `number` came."""
        self._silent = 0
        if self.stage is not Stage.RECEIVING or len(self._queue) >= WINDOW_CHUNKS:
            return
        if number == self.importer.next + len(self._queue):
            self._queue.append(chunk)
        else:
            probe("chunk out of order dropped")

    def write(self) -> int:
        """Write one chunk; returns the bytes that the data store was given. Raises `WriteStalled`: call again later."""
        chunk = self._queue[0]
        before = self.importer.written
        try:
            self.importer.feed(chunk)
        except Corruption:
            probe("damaged chunk refused")
            self.damaged = True
        self._queue.popleft()
        self.received += len(chunk)
        probe("chunk of a snapshot written")
        if self.importer.done:
            probe("snapshot written")
            self.stage = Stage.FLUSHING
        return self.importer.written - before

    @property
    def quiet(self) -> bool:
        """Whether chunks are missing and none has come for a while."""
        return self.stage is Stage.RECEIVING and self._silent >= QUIET_TICKS

    def tick(self, term: int) -> bool:
        """A tick passed in `term`; False: the rest won't come. Who leads a later term than the sender's doesn't know of
        it, also if it is the same node."""
        self._silent += 1
        return self.stage is not Stage.RECEIVING or (self._silent < SILENT_TICKS and self.name[0] >= term)

"""A shard's state from chunks, under another (group, generation)."""

from __future__ import annotations

from typing import Final, Protocol

from nebuladb.errors import Corruption, InvariantViolation
from nebuladb.ids import Generation, GroupId
from nebuladb.kv.chunk import MAX_ROW_BYTES, ROW_LENGTHS, Chunk, ChunkKind, End, Head, decode_chunk, stream_hash
from nebuladb.kv.rows import (
    ANSWER,
    ATTACHMENT,
    CURRENT,
    DELETION,
    LEASE,
    POSITION,
    RECORD,
    SESSION,
    STATE,
    Keys,
)
from nebuladb.kv.state import State
from nebuladb.storage.engine import Batch

ROW_TYPES: Final = frozenset(row[0] for row in (ANSWER, ATTACHMENT, CURRENT, DELETION, LEASE, RECORD, SESSION, STATE))


class Target(Protocol):
    """What rows are written to: an engine, or what stands before one."""

    def write(self, batch: Batch) -> None:
        """As `Engine.write`."""
        ...


class Importer:
    """Writes what the chunks hold, each as it comes: memory is bounded by a chunk and a row, whatever the shard's size.

    Nothing may lie under (group, generation) before. The state row, without which nobody can open a store, is written
    last, when the counts and the hash of the whole are right: half an import is never seen (S30). It is durable only
    when the engine was flushed after `done`. What was given up is removed by `Store.destroy`.
    """

    def __init__(self, engine: Target, group: GroupId, generation: Generation) -> None:
        self.head: Head | None = None
        """From the first chunk on. Its group is the one that was exported."""
        self.next = 0
        """Number of the chunk that is to come."""
        self.done = False
        self.written = 0
        """Bytes given to the engine."""
        self._engine = engine
        self._keys = Keys(group, generation)
        self._prefix = POSITION.pack(group, generation)
        self._rest = b""
        self._state = b""
        self._last = b""
        self._rows = self._size = 0
        self._hash = stream_hash()

    def feed(self, data: bytes) -> None:
        """Take the next chunk.

        Raises `WriteStalled`, with nothing changed: feed the same chunk again later. Raises `Corruption` for a damaged
        chunk, also with nothing changed, and for a sequence that is wrong as a whole, which then has no end here.
        """
        chunk = decode_chunk(data)
        if self.done:
            raise InvariantViolation("a chunk after the last one")
        if chunk.number != self.next or (chunk.kind == ChunkKind.HEAD) is not (chunk.number == 0):
            raise Corruption(f"chunk {chunk.number}, of kind {chunk.kind.name}, came in place of chunk {self.next}")
        if chunk.kind == ChunkKind.HEAD:
            self.head = Head.decode(chunk.content)
            self._hash.update(chunk.content)
        elif chunk.kind == ChunkKind.ROWS:
            self._take_rows(chunk)
        else:
            self._finish(End.decode(chunk.content))
        self.next += 1

    def _take_rows(self, chunk: Chunk) -> None:
        """Write the rows that end in `chunk`."""
        batch, put, prefix = Batch(), [], self._prefix
        data, position, last, state = self._rest + chunk.content, 0, self._last, self._state
        end = len(data)
        count = 0
        while position + ROW_LENGTHS.size <= end:
            key_size, value_size = ROW_LENGTHS.unpack_from(data, position)
            middle = position + ROW_LENGTHS.size + key_size
            if key_size == 0 or key_size + value_size > MAX_ROW_BYTES:
                raise Corruption(f"chunk {chunk.number} has a row with {key_size} and {value_size} bytes")
            if middle + value_size > end:
                break
            key = data[position + ROW_LENGTHS.size : middle]
            if key <= last or key[0] not in ROW_TYPES:
                raise Corruption(f"chunk {chunk.number} has a row of type {key[:1]!r} out of order, or unknown")
            position = middle + value_size
            if key == STATE:
                state = data[middle:position]
            else:
                put.append((prefix + key, data[middle:position]))
            last = key
            count += 1
        for key, value in put:
            batch.put(key, value)
        if batch:
            self._engine.write(batch)
        self._rest, self._last, self._state = data[position:], last, state
        self._rows += count
        self._size += len(chunk.content)
        self.written += batch.size
        self._hash.update(chunk.content)

    def _finish(self, end: End) -> None:
        """Compare with what was announced, and make it a state."""
        if self._rest or (self._rows, self._size, self._hash.digest()) != end:
            raise Corruption(f"{self._rows} rows of {self._size} bytes came; {end.rows} of {end.size} were announced")
        state, head = State.decode(self._state), self.head
        if head is None or (state.index, state.term, state.configuration) != (
            head.index,
            head.term,
            head.configuration,
        ):
            raise Corruption("the state is not the one that the first chunk announces")
        batch = Batch()
        batch.put(self._keys.state, self._state)
        self._engine.write(batch)
        self.written += batch.size
        self.done = True

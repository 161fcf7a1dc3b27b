"""A shard's state as chunks, from a view that writes don't change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from typing import Final

from zstandard import ZstdCompressor

from nebuladb.errors import Corruption, StoreClosed, Unavailable
from nebuladb.ids import Generation, GroupId
from nebuladb.kv.chunk import CHUNK_BYTES, ROW_LENGTHS, ChunkKind, End, Head, encode_chunk, stream_hash
from nebuladb.kv.rows import PREFIX_SIZE, Keys, group_span
from nebuladb.kv.state import State
from nebuladb.storage.engine import Engine

COMPRESSION_LEVEL: Final = 1
"""zstd's quickest but for the negative ones: 128 KiB take 0.3 ms, without the interpreter's lock."""


class Exporter:
    """The rows of one (group, generation) as they lie now, and how far physical deletion got in exactly these.

    One engine snapshot serves it from the first chunk to the last, so index, term, configuration and rows are of one
    instant (S5). Make and close it in the engine's thread; `read` may run in another, one call at a time. Close it soon
    after it is done or given up: it keeps old tables on the disk, and one memtable in memory.
    """

    def __init__(
        self,
        engine: Engine,
        group: GroupId,
        generation: Generation,
        spans: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """`spans`, ascending: only these rows of it.

        Raises `Corruption` if there is no such state, or `Unavailable` while an entry is half applied in it: the view
        of half an entry is of no index. Try again when the next slices are through.
        """
        spans = spans or [group_span(group, generation)]
        self._view = engine.snapshot(spans)
        try:
            data = self._view.get(Keys(group, generation).state)
            if data is None:
                raise Corruption(f"group {group} has no state under generation {generation}")
            state = State.decode(data)
            if state.place or state.cursor:
                raise Unavailable(f"an entry of shard {group} is half applied; try again in a moment")
        except BaseException:
            self._view.close()
            raise
        self.head = Head(
            group, state.index, state.term, state.revision, state.floor, state.keys, state.size, state.configuration
        )
        self._chunks: Iterator[bytes] = self._run(spans)

    def read(self) -> bytes | None:
        """The next chunk; None after the last. Raises `Corruption` or `StoreError`; then the sequence has no end."""
        return next(self._chunks, None)

    def close(self) -> None:
        """Let go of the engine, even while `read` runs in a thread, which then raises `StoreError`. Idempotent."""
        self._view.close()
        self._chunks = map(_closed, repeat(None))  # what it was leads back to this, and has a row and a chunk

    def _run(self, spans: Sequence[tuple[bytes, bytes]]) -> Iterator[bytes]:
        head = self.head.encode()
        yield encode_chunk(ChunkKind.HEAD, 0, len(head), head)
        digest, packer = stream_hash(), ZstdCompressor(level=COMPRESSION_LEVEL)
        digest.update(head)
        number = rows = size = 0
        waiting = bytearray()

        def rows_chunk(content: bytes) -> bytes:
            digest.update(content)
            return encode_chunk(ChunkKind.ROWS, number, len(content), packer.compress(content))

        for key, value in chain.from_iterable(self._view.scan(*span) for span in spans):
            waiting += ROW_LENGTHS.pack(len(key) - PREFIX_SIZE, len(value))
            waiting += key[PREFIX_SIZE:]
            waiting += value
            rows += 1
            while len(waiting) >= CHUNK_BYTES:
                content = bytes(waiting[:CHUNK_BYTES])
                del waiting[:CHUNK_BYTES]
                number += 1
                size += CHUNK_BYTES
                yield rows_chunk(content)
        if waiting:
            number += 1
            size += len(waiting)
            yield rows_chunk(bytes(waiting))
        end = End(rows, size, digest.digest()).encode()
        yield encode_chunk(ChunkKind.END, number + 1, len(end), end)


def _closed(_: None) -> bytes:
    raise StoreClosed

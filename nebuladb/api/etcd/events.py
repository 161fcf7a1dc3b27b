"""Events as etcd's watch responses carry them. Each is encoded once, for all watches that are told it."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import Final

from nebuladb.api.etcd.wire import WORD, key_value, message_field, number_field
from nebuladb.kv.limits import MAX_REQUEST_BYTES
from nebuladb.kv.watcher import Event, EventBatch

PACK_BYTES: Final = 1 << 20
PACK_EVENTS: Final = 1_000
"""Whole revisions share a response up to here."""
FRAGMENT_BYTES: Final = MAX_REQUEST_BYTES + (512 << 10)
"""Of a larger one a watch with `fragment` is told in pieces of this size at most (as etcd: a request and 512 KiB)."""
MAX_MESSAGE_BYTES: Final = 64 << 20
"""A revision that is larger can be told in fragments only. (etcd's own bound is 2 GiB.)"""
CHUNK_BYTES: Final = 64 << 10
"""A revision's events are joined up to here, once for all who are told them: one by one they take twice as much."""

_FRAGMENT: Final = b"\x38\x01"


class Telling:
    """What a watch is told, as responses. A revision that comes in parts is gathered, or with `fragment` told as it
    comes: a piece of it is kept until it is known whether more follows, so that the last one isn't empty."""

    __slots__ = ("_count", "_fragment", "_who", "_wires", "size")

    def __init__(self, watch_id: int, *, fragment: bool) -> None:
        self._who = number_field(b"\x10", watch_id & WORD)
        self._fragment = fragment
        self._wires: list[bytes] = []
        self._count = 0
        self.size = 0
        """Bytes that are kept of a revision whose end hasn't come."""

    def responses(self, batches: Iterable[EventBatch], through: int) -> Iterator[tuple[int, bytes]]:
        """`batches` as responses: each one's revision for the header, and its bytes behind the header.

        A revision is never split, unless with `fragment`. The header of the last one says `through`, up to which the
        watch has been told everything then; of those before, their last event's: who resumes after it misses nothing.
        """
        pack: list[bytes] = []
        size = count = revision = 0
        alone = False
        for batch in batches:
            wires = _encoded(batch)
            weight, events = self.size + sum(map(len, wires)), self._count + len(batch.events)
            if pack and (alone or batch.more or size + weight > PACK_BYTES or count + events > PACK_EVENTS):
                yield from self._pieces(revision, pack, size)
                pack, size, count = [], 0, 0
            if batch.more:
                self._wires += wires
                self.size, self._count = weight, events
                if self._fragment:
                    yield from self._ahead(batch.revision)
                continue
            alone = self._fragment and bool(self._wires)  # the header of the first of its pieces is that of all
            pack += self._wires
            pack += wires
            self.forget()
            count += events
            size += weight
            revision = batch.revision
        if pack:
            yield from self._pieces(max(through, revision), pack, size)

    def forget(self) -> None:
        """Keep nothing: it has been told, or the watch has ended."""
        self._wires, self.size, self._count = [], 0, 0

    def _ahead(self, revision: int) -> Iterator[tuple[int, bytes]]:
        """Pieces of what has come of a revision, but for the last."""
        self._wires = yield from self._fragments(revision, self._wires)
        self.size = sum(map(len, self._wires))

    def _pieces(self, revision: int, wires: list[bytes], size: int) -> Iterator[tuple[int, bytes]]:
        if self._fragment and size >= FRAGMENT_BYTES:
            wires = yield from self._fragments(revision, wires)
        yield revision, b"".join((self._who, *wires))

    def _fragments(self, revision: int, wires: list[bytes]) -> Generator[tuple[int, bytes], None, list[bytes]]:
        """All pieces of `wires` but the last, which is returned."""
        *pieces, last = _cut(wires)
        for piece in pieces:
            yield revision, b"".join((self._who, _FRAGMENT, *piece))
        return last


def _cut(wires: Iterable[bytes]) -> list[list[bytes]]:
    """In pieces of less than `FRAGMENT_BYTES`, or of one wire."""
    pieces: list[list[bytes]] = [[]]
    size = 0
    for wire in wires:
        if pieces[-1] and size + len(wire) >= FRAGMENT_BYTES:
            pieces.append([])
            size = 0
        pieces[-1].append(wire)
        size += len(wire)
    return pieces


def _encoded(batch: EventBatch) -> tuple[bytes, ...]:
    """The events of `batch`, in chunks."""
    if batch.wire is None:
        chunks: list[bytes] = []
        chunk: list[bytes] = []
        size = 0
        for event in batch.events:
            wire = message_field(b"\x5a", _event(event))
            if chunk and size + len(wire) > CHUNK_BYTES:
                chunks.append(b"".join(chunk))
                chunk, size = [], 0
            chunk.append(wire)
            size += len(wire)
        if chunk:
            chunks.append(b"".join(chunk))
        batch.wire = tuple(chunks)
    return batch.wire


def _event(event: Event) -> bytes:
    """``mvccpb.Event``."""
    parts = [b"\x08\x01" if event.deleted else b"", message_field(b"\x12", key_value(event.kv))]
    if event.previous is not None:
        parts.append(message_field(b"\x1a", key_value(event.previous)))
    return b"".join(parts)

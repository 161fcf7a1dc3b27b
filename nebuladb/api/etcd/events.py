"""Events as etcd's watch responses carry them. Each is encoded once, for all watches that are told it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
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
SLICE_EVENTS: Final = 1_000
"""Encoded in one turn of the loop, about: of a revision of more `encode` makes so many at a time."""
CHUNK_BYTES: Final = 64 << 10
"""Events of such a revision are joined up to here, once for all who are told them."""

_FRAGMENT: Final = b"\x38\x01"


async def encode(batches: Iterable[EventBatch], turns: asyncio.Lock) -> None:
    """What `responses` would encode of large revisions, in slices; others have a turn between two. Who shares `turns`
    does so one after the other."""
    for batch in batches:
        if batch.wire is None and len(batch.events) > SLICE_EVENTS:
            async with turns:
                if batch.wire is None:  # nobody has done it meanwhile
                    batch.wire = await _sliced(batch.events)


async def _sliced(told: Sequence[Event]) -> tuple[bytes, ...]:
    chunks: list[bytes] = []
    for start in range(0, len(told), SLICE_EVENTS):
        chunk: list[bytes] = []
        size = 0
        for wire in _wires(told[start : start + SLICE_EVENTS]):
            if chunk and size + len(wire) > CHUNK_BYTES:
                chunks.append(b"".join(chunk))
                chunk, size = [], 0
            chunk.append(wire)
            size += len(wire)
        chunks.append(b"".join(chunk))
        await asyncio.sleep(0)
    return tuple(chunks)


def _wires(told: Iterable[Event]) -> tuple[bytes, ...]:
    return tuple(message_field(b"\x5a", _event(event)) for event in told)


def responses(
    watch_id: int, batches: Sequence[EventBatch], through: int, *, fragment: bool
) -> Iterator[tuple[int, bytes]]:
    """`batches` as responses: each one's revision for the header, and its bytes behind the header.

    A revision is never split, unless `fragment`. The header of the last one says `through`, up to which the watch has
    been told everything then; of those before, their last event's: who resumes after it misses nothing.
    """
    who = number_field(b"\x10", watch_id & WORD)
    pack: list[bytes] = []
    size = count = revision = 0
    for batch in batches:
        wire = batch.wire
        if wire is None:
            wire = batch.wire = _wires(batch.events)
        weight = sum(map(len, wire))
        if pack and (size + weight > PACK_BYTES or count + len(batch.events) > PACK_EVENTS):
            yield from _pieces(revision, who, pack, size, fragment=fragment)
            pack, size, count = [], 0, 0
        pack += wire
        count += len(batch.events)
        size += weight
        revision = batch.revision
    if pack:
        yield from _pieces(max(through, revision), who, pack, size, fragment=fragment)


def _pieces(revision: int, who: bytes, wires: list[bytes], size: int, *, fragment: bool) -> Iterator[tuple[int, bytes]]:
    if not fragment or size < FRAGMENT_BYTES:
        yield revision, b"".join((who, *wires))
        return
    piece: list[bytes] = []
    size = 0
    for wire in wires:
        if piece and size + len(wire) >= FRAGMENT_BYTES:
            yield revision, b"".join((who, _FRAGMENT, *piece))
            piece, size = [], 0
        piece.append(wire)
        size += len(wire)
    yield revision, b"".join((who, *piece))


def _event(event: Event) -> bytes:
    """``mvccpb.Event``."""
    parts = [b"\x08\x01" if event.deleted else b"", message_field(b"\x12", key_value(event.kv))]
    if event.previous is not None:
        parts.append(message_field(b"\x1a", key_value(event.previous)))
    return b"".join(parts)

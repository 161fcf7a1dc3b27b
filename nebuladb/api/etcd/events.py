"""Events as etcd's watch responses carry them. Each is encoded once, for all watches that are told it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

_FRAGMENT: Final = b"\x38\x01"


def responses(
    watch_id: int, batches: Sequence[EventBatch], through: int, *, fragment: bool
) -> Iterator[tuple[int, bytes]]:
    """`batches` as responses: each one's revision for the header, and its bytes behind the header.

    A revision is never split, unless `fragment`. The header of the last one says `through`, up to which the watch has
    been told everything then; of those before, their last event's: who resumes after it misses nothing.
    """
    who = number_field(b"\x10", watch_id & WORD)
    pack: list[bytes] = []
    size = revision = 0
    for batch in batches:
        wire = batch.wire
        if wire is None:
            wire = batch.wire = tuple(message_field(b"\x5a", _event(event)) for event in batch.events)
        weight = sum(map(len, wire))
        if pack and (size + weight > PACK_BYTES or len(pack) + len(wire) > PACK_EVENTS):
            yield from _pieces(revision, who, pack, size, fragment=fragment)
            pack, size = [], 0
        pack += wire
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

"""What one node sends another in one turn: a frame of messages of many groups (``docs/formats.md``, "Peer frame").

The transport carries frames as opaque bytes. Big-endian. A frame begins with 64 bytes::

    u8 version | u8 flags (1 = the rest is zstd; not written yet) | u16 status | u32 cluster version
    | u64 cluster id | u64 sender node | u64 sender incarnation | u64 receiver node | u64 receiver incarnation
    | u64 liveness epoch = 0 | u32 count of messages | u32 crc32 of the rest

and each message is 100 bytes and its items::

    u8 type | u8 flags (1 = reject) | u16 reserved | u32 bytes of items | u64 group | u64 sender replica
    | u64 receiver replica | u64 term | u64 log term | u64 index | u64 commit | u64 floor | u64 hint | u64 nonce
    | u64 context | u32 count of items | items: (u32 length, bytes) each

Items are entry records in an APPEND and encoded commands in a FORWARD. Types below 32 are Raft's
(`raft.message.MessageType`), from 32 on the node's own.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple
from zlib import crc32

from nebuladb.errors import Corruption
from nebuladb.raft import APPEND, Message
from nebuladb.raft.entry import decode_entry

FRAME_VERSION: Final = 4
"""Of frames, and of what they ask for: builds whose state machines make something else of the same command must not be
in one cluster (S22), so they don't understand each other. 2: nested transactions, puts that keep value or lease, leases
of any id. 3: what a transaction may look at counts no tombstone below the floor; a session's id is drawn. 4: entries
have payload version 2, at which a build of before stops."""
MAX_FRAME_BYTES: Final = 512 << 10
"""A frame takes no further message past this size; one message is at most an append of about 2.5 MiB. A frame is whole
when its end has come: on a slow link heartbeats of other groups wait no longer behind what is large."""
CLUSTER_VERSION: Final = 1
"""Which entry kinds may be proposed (S22): in the head of every frame, and a row of meta (``node.meta``)."""
_FRAME: Final = struct.Struct(">BBHI40sQII")
_ADDRESS: Final = struct.Struct(">5Q")
_MESSAGE: Final = struct.Struct(">BBHI11QI")
_LENGTH: Final = struct.Struct(">I")
_HEAD_BYTES: Final = _FRAME.size
_MESSAGE_BYTES: Final = _MESSAGE.size
_LENGTH_BYTES: Final = _LENGTH.size
ADDRESS: Final = slice(8, 48)
"""Where a frame says who speaks to whom (`Address`); of anything that is no frame, something else than any address."""


class HostMessageType(IntEnum):
    """Messages between nodes that are not Raft's. Numbers are on the wire: never reuse one."""

    FORWARD = 32
    """Commands for the leader of a group to propose. `term`: in which the sender believes that the receiver leads;
    `context`: the forward's number in the sender's process."""
    FORWARD_REPLY = 33
    """`context` repeats the forward's number; (`index`, `term`) say where the commands were appended, or `reject`:
    they certainly were not."""
    ANSWER = 34
    """Reserved and never sent: a leader's answer to a node without a replica."""
    GONE = 36
    """The receiver's replica was removed from its group, for ever, as meta says (S16)."""
    HASH = 40
    """The sender's state at `index` has the hash (`nonce`, `context`), its upper and lower half (S28)."""
    SNAPSHOT_CHUNK = 48
    """A piece of a snapshot at (`index`, `log_term`), from a leader of `term`: chunk `hint` (``kv.chunk``) of the
    transfer `context`, which is unique in the term."""
    SNAPSHOT_REPLY = 49
    """To transfer `context`: `hint` chunks have come, without a gap; `index` not 0: the state here is at least that
    new, durably; `reject`: no more of it, please."""
    SNAPSHOT_WANTED = 50
    """The sender has lost its data, and wants a snapshot at `index` or later."""


FORWARD: Final = HostMessageType.FORWARD
FORWARD_REPLY: Final = HostMessageType.FORWARD_REPLY
GONE: Final = HostMessageType.GONE
HASH: Final = HostMessageType.HASH
SNAPSHOT_CHUNK: Final = HostMessageType.SNAPSHOT_CHUNK
"""Bound once: see `raft.state.LEADER`."""


@dataclass(slots=True)
class Envelope:
    """A message with its group; `commands` only for FORWARD."""

    group: int
    message: Message
    commands: Sequence[bytes] = ()


class Address(NamedTuple):
    """Who speaks to whom: a frame that names another cluster, node or incarnation is dropped (S16, S18)."""

    cluster: int
    sender: int
    sender_incarnation: int
    receiver: int
    receiver_incarnation: int

    def encode(self) -> bytes:
        """As it stands in frames."""
        return _ADDRESS.pack(*self)


def encode_frames(address: bytes, envelopes: Sequence[Envelope], status: int = 0) -> list[bytes]:
    """One frame, or several where one would exceed `MAX_FRAME_BYTES`; entries and commands go in as the bytes that they
    are. `address`: encoded; `status`: how our disk is (``node.disk``)."""
    frames = []
    parts: list[bytes] = []
    size = count = 0
    for envelope in envelopes:
        message = envelope.message
        items = [entry.record for entry in message.entries] if message.entries else envelope.commands
        length = sum(map(len, items)) if items else 0
        if count and size + _MESSAGE_BYTES + length > MAX_FRAME_BYTES:
            frames.append(_sealed(address, status, count, parts))
            parts = []
            size = count = 0
        size += _MESSAGE_BYTES + length
        count += 1
        parts.append(
            _MESSAGE.pack(
                message.type,
                message.reject,
                0,
                length + _LENGTH_BYTES * len(items),
                envelope.group,
                message.sender,
                message.receiver,
                message.term,
                message.log_term,
                message.index,
                message.commit,
                message.floor,
                message.hint,
                message.nonce,
                message.context,
                len(items),
            )
        )
        for item in items:
            parts += (_LENGTH.pack(len(item)), item)
    frames.append(_sealed(address, status, count, parts))
    return frames


def _sealed(address: bytes, status: int, count: int, parts: Sequence[bytes]) -> bytes:
    """The frame of `count` messages whose bytes are `parts`."""
    rest = b"".join(parts)
    return _FRAME.pack(FRAME_VERSION, 0, status, CLUSTER_VERSION, address, 0, count, crc32(rest)) + rest


def decode_frame(frame: bytes) -> tuple[int, list[Envelope]]:
    """How the disk of the frame's sender is, and its messages. Raises `Corruption` for all that `encode_frames` doesn't
    write; entries' CRCs are checked (S35)."""
    try:
        version, flags, status, _, _, _, count, crc = _FRAME.unpack_from(frame)
        if version != FRAME_VERSION or flags:
            raise Corruption(f"a peer frame has version {version}, flags {flags}; this build knows {FRAME_VERSION}, 0")
        if crc32(memoryview(frame)[_HEAD_BYTES:]) != crc:
            raise Corruption("a peer frame fails its CRC")
        position = _HEAD_BYTES
        envelopes = []
        for _ in range(count):
            envelope, position = _decode_message(frame, position)
            envelopes.append(envelope)
    except struct.error as error:
        raise Corruption("a peer frame is cut short") from error
    if position != len(frame):
        raise Corruption("a peer frame has bytes behind its last message")
    return status, envelopes


def _decode_message(frame: bytes, position: int) -> tuple[Envelope, int]:
    (
        kind, flags, _, size, group, sender, receiver, term, log_term, index, commit, floor, hint, nonce, context,
        count,
    ) = _MESSAGE.unpack_from(frame, position)  # fmt: skip
    message = Message(
        kind, sender, receiver, term, log_term, index, commit, floor, bool(flags & 1), hint, nonce, context
    )
    position += _MESSAGE_BYTES
    if not count and not size:
        return Envelope(group, message, []), position
    end = position + size
    items = []
    for _ in range(count):
        (length,) = _LENGTH.unpack_from(frame, position)
        position += _LENGTH_BYTES + length
        items.append(frame[position - length : position])
    if position != end or end > len(frame):
        raise Corruption("a peer message does not end where its items do")
    if kind == APPEND:
        message.entries = [decode_entry(item) for item in items]
        items = []
    return Envelope(group, message, items), end

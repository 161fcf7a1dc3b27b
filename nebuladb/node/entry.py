"""The payload of a NORMAL log entry: a head that the leader writes, then the commands of one turn, one or many (S21).

Layout (``docs/formats.md``, "Entry payload"), big-endian. The head is 12 bytes::

    u8 version = 2 | u8 flags = 0 | u16 count of commands | u64 lease clock in ms (0 = none)

and each command 80 bytes and its body, which is the client's own bytes::

    u16 kind | u16 flags | u32 body length | u64 epoch | u64 origin node | u64 request | u64 session | u64 sequence
    | u64 lowest unanswered | u64 principal | u64 auth revision | u64 chosen | body

A command is encoded once, by the node that took the request; it is forwarded, proposed and replicated as those bytes.
An empty payload is a new leader's no-op. Version 1 is read as well: there a transaction may read more bytes than
`MAX_TXN_BYTES`, the bound of version 2. So every replica does with an entry what the leader that wrote it would do; one
of a build that doesn't know the bound stops at version 2.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import partial
from typing import Final

from nebuladb.errors import InvariantViolation
from nebuladb.kv.command import Command

PAYLOAD_VERSION: Final = 2
OLD_VERSION: Final = 1
MAX_COMMANDS: Final = 0xFFFF
_HEAD: Final = struct.Struct(">BBHQ")
_COMMAND: Final = struct.Struct(">HHI9Q")
COMMAND_HEADER: Final = _COMMAND.size
_new_command: Final = partial(tuple.__new__, Command)
"""From its fields, without a Python-level call."""
_CHOSEN: Final = struct.Struct(">Q")
_CHOSEN_OFFSET: Final = COMMAND_HEADER - 8


def encode_command(command: Command, origin: int = 0, request: int = 0) -> bytes:
    """The bytes of one command; `origin` and `request`, unless they are 0, in place of what it says itself."""
    return (
        _COMMAND.pack(
            command.kind,
            command.flags,
            len(command.body),
            command.epoch,
            origin or command.origin,
            request or command.request,
            command.session,
            command.sequence,
            command.lowest,
            command.principal,
            command.auth_revision,
            command.chosen,
        )
        + command.body
    )


def command_kind(wire: bytes) -> int:
    """The kind of an encoded command."""
    return int.from_bytes(wire[:2], "big")


def with_chosen(wire: bytes, chosen: int) -> bytes:
    """The encoded command with what the leader chose; apply looks at it only where the client left it open."""
    return wire[:_CHOSEN_OFFSET] + _CHOSEN.pack(chosen) + wire[COMMAND_HEADER:]


def encode_payload(clock: int, commands: Sequence[bytes]) -> bytes:
    """The payload of one entry from encoded commands; `clock` is the leader's lease clock in ms (S27)."""
    return _HEAD.pack(PAYLOAD_VERSION, 0, len(commands), clock) + b"".join(commands)


def decode_payload(record: bytes, position: int) -> tuple[int, list[Command]]:
    """The lease clock and the commands of the payload that begins at `position` of an entry's record.

    Raises `InvariantViolation` for an unknown version or a malformed payload: the entry's CRC is right, so another
    build wrote it, and a replica that skipped it would diverge (S22).
    """
    end = len(record)
    if position == end:
        return 0, []
    try:
        version, _, count, clock = _HEAD.unpack_from(record, position)
        if version not in (PAYLOAD_VERSION, OLD_VERSION):
            raise InvariantViolation(
                f"an entry has payload version {version}, this build knows {OLD_VERSION} and {PAYLOAD_VERSION}: "
                "another build wrote it; install that one, or restore a backup"
            )
        position += _HEAD.size
        commands = []
        for _ in range(count):
            fields = _COMMAND.unpack_from(record, position)
            kind, flags, length = fields[:3]
            position += COMMAND_HEADER
            body = record[position : position + length]
            position += length
            commands.append(_new_command((kind, body, *fields[3:], flags, version)))
    except struct.error as error:
        raise InvariantViolation("an entry's payload is cut short") from error
    if position != end:
        raise InvariantViolation("an entry's payload does not end where its commands do")
    return clock, commands

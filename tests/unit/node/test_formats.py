"""Golden bytes of what ``docs/formats.md`` lists for the log, the wire between nodes and a node's documents.

These are final: a change here breaks all data directories and mixed clusters. A format gets a new version instead.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebuladb.errors import Corruption, IdentityError, InvariantViolation
from nebuladb.kv.command import Command, Kind
from nebuladb.node.entry import command_kind, decode_payload, encode_command, encode_payload, with_chosen
from nebuladb.node.frame import Address, Envelope, HostMessageType
from nebuladb.node.identity import Founder, Founding, Identity, initial_cluster_hash
from nebuladb.node.record import NodeRecord, NodeState
from nebuladb.node.registry import GroupState, RegistryRow, first_row
from nebuladb.raft import Configuration, Message, MessageType
from nebuladb.raft.entry import Entry, EntryKind, decode_entry, encode_entry
from tests.unit.node.wire import decode_frame, encode_frame

U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)


def hexed(text: str) -> bytes:
    """Bytes from hexadecimal with blanks, line breaks and # comments."""
    return bytes.fromhex("".join(line.partition("#")[0] for line in text.splitlines()))


# --- entry record ----------------------------------------------------------------------------------------------------

ENTRY = encode_entry(5, 3, EntryKind.NORMAL, b"payload")
ENTRY_BYTES = hexed("""
    01 00 0000          # version, kind NORMAL, reserved
    0000000000000003    # term
    0000000000000005    # index
    ca9e460f            # crc32 of the 20 bytes above and the payload
    7061796c6f6164
""")


def test_entry_record() -> None:
    assert ENTRY.record == ENTRY_BYTES
    assert decode_entry(ENTRY_BYTES) == ENTRY
    assert ENTRY.payload == b"payload"
    assert encode_entry(1, 1, EntryKind.CONFIGURATION, b"").record[:2] == b"\x01\x01"


@given(st.builds(encode_entry, U64, U64, st.sampled_from(EntryKind), st.binary(max_size=50)))
def test_an_entry_survives_its_record(entry: Entry) -> None:
    assert decode_entry(entry.record) == entry


def test_a_flipped_bit_of_an_entry_shows() -> None:
    for bit in range(8 * len(ENTRY_BYTES)):
        with pytest.raises(Corruption):
            decode_entry(flipped(ENTRY_BYTES, bit))


def test_an_entry_cut_short_is_refused() -> None:
    for length in range(len(ENTRY_BYTES)):
        with pytest.raises(Corruption):
            decode_entry(ENTRY_BYTES[:length])


def test_an_entry_of_another_version_is_refused_though_its_crc_is_right() -> None:
    head = b"\x02" + ENTRY_BYTES[1:20]
    with pytest.raises(Corruption, match="format version 2"):
        decode_entry(head + crc32(b"payload", crc32(head)).to_bytes(4, "big") + b"payload")


# --- entry payload ---------------------------------------------------------------------------------------------------

COMMAND = Command(Kind.PUT, b"body", 2, 3, 4, 5, 6, 7, 8, 9, 10, 1)
COMMAND_BYTES = hexed("""
    0002 0001           # kind PUT, flags
    00000004            # bytes of the body
    0000000000000002    # descriptor epoch
    0000000000000003    # origin: the node that answers the client
    0000000000000004    # request, the origin's number for it
    0000000000000005    # session
    0000000000000006    # sequence
    0000000000000007    # lowest unanswered
    0000000000000008    # principal
    0000000000000009    # revision of the rights
    000000000000000a    # chosen by the leader
    626f6479
""")
CLOCK_BYTES = hexed("0001 0000 00000000" + 9 * "0000000000000000")
PAYLOAD_BYTES = hexed("""
    02 00               # version, flags
    0002                # commands
    0000000000001000    # lease clock, ms
""")


def test_entry_payload() -> None:
    assert encode_command(COMMAND) == COMMAND_BYTES
    assert encode_command(Command(Kind.CLOCK, b"")) == CLOCK_BYTES
    payload = encode_payload(4096, [COMMAND_BYTES, CLOCK_BYTES])
    assert payload == PAYLOAD_BYTES + COMMAND_BYTES + CLOCK_BYTES
    record = encode_entry(1, 1, EntryKind.NORMAL, payload).record
    assert decode_payload(record, 24) == (4096, [COMMAND, Command(Kind.CLOCK, b"")])


def test_a_payload_of_version_1_is_read_and_its_commands_are_not_bounded_in_what_they_read() -> None:
    _, commands = decode_payload(b"\x01" + PAYLOAD_BYTES[1:] + COMMAND_BYTES + CLOCK_BYTES, 0)
    assert commands[0] == COMMAND._replace(version=1)
    assert (commands[0].bounded, COMMAND.bounded) == (False, True)


def test_an_empty_payload_is_a_no_op() -> None:
    assert decode_payload(encode_entry(1, 1, EntryKind.NORMAL, b"").record, 24) == (0, [])


def test_the_leaders_choice_goes_into_the_last_eight_bytes_of_the_header() -> None:
    assert command_kind(COMMAND_BYTES) == Kind.PUT
    changed = with_chosen(COMMAND_BYTES, 0xFFEE)
    assert changed == COMMAND_BYTES[:72] + bytes.fromhex("000000000000ffee") + b"body"
    assert decode_payload(encode_payload(0, [changed]), 0)[1] == [COMMAND._replace(chosen=0xFFEE)]


commands = st.builds(Command, U16, st.binary(max_size=20), U64, U64, U64, U64, U64, U64, U64, U64, U64, U16, st.just(2))


@given(U64, st.lists(commands, min_size=1, max_size=4), st.binary(max_size=5))
def test_commands_survive_their_payload(clock: int, batch: list[Command], before: bytes) -> None:
    data = before + encode_payload(clock, [encode_command(command) for command in batch])
    assert decode_payload(data, len(before)) == (clock, batch)


def test_a_payload_cut_short_or_too_long_stops_the_replica() -> None:
    payload = PAYLOAD_BYTES + COMMAND_BYTES + CLOCK_BYTES
    for length in range(1, len(payload)):
        with pytest.raises(InvariantViolation):
            decode_payload(payload[:length], 0)
    with pytest.raises(InvariantViolation):
        decode_payload(payload + b"\0", 0)


def test_an_unknown_payload_version_stops_the_replica() -> None:
    with pytest.raises(InvariantViolation, match=r"version 3, this build knows 1 and 2: .*install that one"):
        decode_payload(b"\x03" + PAYLOAD_BYTES[1:] + COMMAND_BYTES + CLOCK_BYTES, 0)


# --- peer frame ------------------------------------------------------------------------------------------------------

ADDRESS = Address(0xC1, 0xA1, 0xA2, 0xB1, 0xB2)
APPEND = Message(
    MessageType.APPEND, 4, 5, 3, log_term=2, index=4, commit=4, floor=1, entries=[ENTRY, encode_entry(6, 3, 0, b"")]
)
HEARTBEAT_REPLY = Message(MessageType.HEARTBEAT_REPLY, 5, 4, 3, reject=True, hint=7, nonce=8, context=9)
FORWARD = Message(HostMessageType.FORWARD, 5, 4, 3, context=1)
ENVELOPES = [
    Envelope(2, APPEND, []),
    Envelope(3, HEARTBEAT_REPLY, []),
    Envelope(2, FORWARD, [COMMAND_BYTES, CLOCK_BYTES]),
]

FRAME_HEAD = hexed("""
    04 00 0000          # version (which rises with that of payloads), flags, reserved
    00000001            # cluster version
    00000000000000c1    # cluster
    00000000000000a1    # sending node
    00000000000000a2    # its incarnation
    00000000000000b1    # receiving node
    00000000000000b2    # its incarnation
    0000000000000000    # liveness epoch
    00000003            # messages
""")
FRAME_REST = (
    hexed("""
    05 00 0000 0000003f # APPEND, flags, reserved, bytes of items: 4 + 31 + 4 + 24
    0000000000000002    # group
    0000000000000004    # sending replica
    0000000000000005    # receiving replica
    0000000000000003    # term
    0000000000000002    # log term
    0000000000000004    # index
    0000000000000004    # commit
    0000000000000001    # floor
    0000000000000000    # hint
    0000000000000000    # nonce
    0000000000000000    # context
    00000002            # items
    0000001f            # bytes of the first
    """)
    + ENTRY_BYTES
    + hexed("""
    00000018            # bytes of the second, an entry without payload
    01 00 0000 0000000000000003 0000000000000006 ba5c393b

    08 01 0000 00000000 # HEARTBEAT_REPLY, reject
    0000000000000003 0000000000000005 0000000000000004 0000000000000003
    0000000000000000 0000000000000000 0000000000000000 0000000000000000
    0000000000000007 0000000000000008 0000000000000009 00000000

    20 00 0000 000000ac # FORWARD, bytes of items: 4 + 84 + 4 + 80
    0000000000000002 0000000000000005 0000000000000004 0000000000000003
    0000000000000000 0000000000000000 0000000000000000 0000000000000000
    0000000000000000 0000000000000000 0000000000000001 00000002
    00000054
    """)
    + COMMAND_BYTES
    + hexed("00000050")
    + CLOCK_BYTES
)
FRAME_BYTES = FRAME_HEAD + hexed("3478e9dd  # crc32 of all that follows") + FRAME_REST


def framed(rest: bytes, count: int = 3) -> bytes:
    """A frame whose CRC is right, whatever the rest is."""
    return FRAME_HEAD[:-4] + struct.pack(">II", count, crc32(rest)) + rest


def test_peer_frame() -> None:
    assert encode_frame(ADDRESS.encode(), ENVELOPES) == FRAME_BYTES
    assert decode_frame(FRAME_BYTES) == (ADDRESS, ENVELOPES)


def test_numbers_of_messages_are_on_the_wire() -> None:
    assert {kind.name: kind.value for kind in MessageType} == {
        "PRE_VOTE": 1, "PRE_VOTE_REPLY": 2, "VOTE": 3, "VOTE_REPLY": 4, "APPEND": 5, "APPEND_REPLY": 6, "HEARTBEAT": 7,
        "HEARTBEAT_REPLY": 8, "READ_INDEX": 9, "READ_INDEX_REPLY": 10, "TIMEOUT_NOW": 11, "SNAPSHOT": 12,
    }  # fmt: skip
    assert {kind.name: kind.value for kind in HostMessageType} == {
        "FORWARD": 32, "FORWARD_REPLY": 33, "ANSWER": 34, "GONE": 36, "HASH": 40, "SNAPSHOT_CHUNK": 48,
        "SNAPSHOT_REPLY": 49, "SNAPSHOT_WANTED": 50,
    }  # fmt: skip


def test_numbers_of_commands_are_in_the_log() -> None:
    assert [kind.name for kind in sorted(Kind)] == [
        "CLOCK", "PUT", "DELETE", "TXN", "COMPACT", "LEASE_GRANT", "LEASE_REVOKE", "LEASE_KEEP_ALIVE", "LEASE_EXPIRE",
        "SESSION_OPEN", "SESSION_CLOSE", "HASH",
    ]  # fmt: skip
    assert [kind.value for kind in sorted(Kind)] == list(range(1, 13))


entries = st.builds(encode_entry, U64, U64, st.just(EntryKind.NORMAL), st.binary(max_size=20))
FIELDS = (*[U64] * 7, st.booleans(), *[U64] * 3)
messages = st.builds(Message, st.sampled_from(MessageType), *FIELDS)
appends = st.builds(Message, st.just(MessageType.APPEND), *FIELDS, entries=st.lists(entries, min_size=1, max_size=3))
envelopes = st.one_of(
    st.builds(Envelope, U64, st.one_of(messages, appends), st.just(())),
    st.builds(
        Envelope,
        U64,
        st.builds(Message, st.just(HostMessageType.FORWARD), U64, U64, U64),
        st.lists(st.binary(max_size=20)),
    ),
)


@given(st.builds(Address, U64, U64, U64, U64, U64), st.lists(envelopes, max_size=4))
def test_messages_survive_their_frame(address: Address, batch: list[Envelope]) -> None:
    found, back = decode_frame(encode_frame(address.encode(), batch))
    assert found == address
    assert [(one.group, one.message, list(one.commands)) for one in back] == [
        (one.group, one.message, list(one.commands)) for one in batch
    ]


def test_a_frame_cut_short_is_refused() -> None:
    for length in range(len(FRAME_BYTES)):
        with pytest.raises(Corruption):
            decode_frame(FRAME_BYTES[:length])


def test_a_flipped_bit_behind_the_address_shows() -> None:
    # The head's own bits are checked where they mean something: Host compares the address (S16).
    for bit in range(8 * 56, 8 * len(FRAME_BYTES)):
        with pytest.raises(Corruption):
            decode_frame(flipped(FRAME_BYTES, bit))


def test_a_frame_with_a_right_crc_and_wrong_lengths_is_refused() -> None:
    assert decode_frame(framed(FRAME_REST)) == (ADDRESS, ENVELOPES)
    for length in range(len(FRAME_REST)):
        with pytest.raises(Corruption):
            decode_frame(framed(FRAME_REST[:length]))
    with pytest.raises(Corruption, match="behind its last message"):
        decode_frame(framed(FRAME_REST + b"\0"))
    with pytest.raises(Corruption, match="behind its last message"):
        decode_frame(framed(FRAME_REST, 2))
    for offset in (4, 96, 100):  # bytes of items, count of items, length of an item
        for number in (0, 1, 2**32 - 1):
            with pytest.raises(Corruption):
                decode_frame(framed(FRAME_REST[:offset] + number.to_bytes(4, "big") + FRAME_REST[offset + 4 :]))


def test_a_damaged_entry_in_a_sound_frame_is_refused() -> None:
    with pytest.raises(Corruption, match="fails its CRC"):
        decode_frame(framed(flipped(FRAME_REST, 8 * (104 + 25))))


@pytest.mark.parametrize("offset", [0, 1])
def test_a_frame_of_another_version_or_with_unknown_flags_is_refused(offset: int) -> None:
    frame = bytearray(FRAME_BYTES)
    frame[offset] += 1
    with pytest.raises(Corruption, match="this build knows"):
        decode_frame(bytes(frame))


# --- configuration and registry row ----------------------------------------------------------------------------------

CONFIGURATION = Configuration((4, 5, 6), (4, 5, 7), (8,), (7,), auto_leave=True)
CONFIGURATION_BYTES = hexed("""
    01 01                                                       # version, flags: leave by itself
    0003 0000000000000004 0000000000000005 0000000000000006     # voters
    0003 0000000000000004 0000000000000005 0000000000000007     # outgoing voters
    0001 0000000000000008                                       # learners
    0001 0000000000000007                                       # learners to be
""")
ROW = first_row(5, {6: 0xC3, 4: 0xC1, 5: 0xC2}, (1, 1))
ROW_BYTES = hexed("""
    01 01 0000          # version, state NORMAL, reserved
    00000001            # generation
    0000000000000005    # replica
    0000000000000001    # initial index
    0000000000000001    # initial term
    0000000000000001    # index of the configuration
    0003                # nodes
    0000000000000004 00000000000000c1
    0000000000000005 00000000000000c2
    0000000000000006 00000000000000c3
    0022                # bytes of the configuration
    01 00 0003 0000000000000004 0000000000000005 0000000000000006 0000 0000 0000
""")

ids = st.lists(U64, max_size=4).map(tuple)
configurations = st.builds(Configuration, ids, ids, ids, ids, st.booleans())
rows = st.builds(
    RegistryRow,
    st.sampled_from(GroupState),
    U32,
    U64,
    st.tuples(U64, U64),
    U64,
    st.lists(st.tuples(U64, U64), max_size=4).map(tuple),
    configurations,
)


def test_configuration() -> None:
    assert CONFIGURATION.encode() == CONFIGURATION_BYTES
    assert Configuration.decode(CONFIGURATION_BYTES) == CONFIGURATION


def test_registry_row() -> None:
    assert ROW.encode() == ROW_BYTES
    assert RegistryRow.decode(ROW_BYTES) == ROW
    assert {state.name: state.value for state in GroupState} == {
        "NORMAL": 1, "CREATING": 2, "INSTALLING": 3, "TOMBSTONE": 4
    }  # fmt: skip


@given(configurations)
def test_a_configuration_survives_its_bytes(configuration: Configuration) -> None:
    assert Configuration.decode(configuration.encode()) == configuration


@given(rows)
def test_a_registry_row_survives_its_bytes(row: RegistryRow) -> None:
    assert RegistryRow.decode(row.encode()) == row


@pytest.mark.parametrize(
    ("decode", "data"), [(Configuration.decode, CONFIGURATION_BYTES), (RegistryRow.decode, ROW_BYTES)]
)
def test_a_row_cut_short_too_long_or_of_another_version_is_refused(decode: Callable[[bytes], Any], data: bytes) -> None:
    for wrong in [*(data[:length] for length in range(len(data))), data + b"\0", b"\x02" + data[1:]]:
        with pytest.raises(Corruption):
            decode(wrong)


# --- documents -------------------------------------------------------------------------------------------------------

IDENTITY = Identity(0x1234, "n1", 0xABCD)
IDENTITY_BYTES = (
    b'{"cluster":"000000000000abcd","format":1,"name":"n1","node":"0000000000001234"}\n'
    b"e408305e\n"
)  # fmt: skip
FOUNDING = Founding(0xABCD, (Founder("n1", 0x1234, "a:1"), Founder("n2", 0x5678, "b:2")))
FOUNDING_BYTES = (
    b'{"cluster":"000000000000abcd","format":1,"nodes":['
    b'{"name":"n1","node":"0000000000001234","peer":"a:1"},{"name":"n2","node":"0000000000005678","peer":"b:2"}]}\n'
    b"ba0fa735\n"
)


def test_identity_document() -> None:
    assert IDENTITY.encode() == IDENTITY_BYTES
    assert Identity.decode(IDENTITY_BYTES) == IDENTITY


def test_founding_document() -> None:
    assert FOUNDING.encode() == FOUNDING_BYTES
    assert Founding.decode(FOUNDING_BYTES) == FOUNDING


def test_replica_ids_of_a_founding_go_by_group_and_name() -> None:
    assert FOUNDING.replicas(1) == {1: 0x1234, 2: 0x5678}
    assert FOUNDING.replicas(2) == {3: 0x1234, 4: 0x5678}
    assert FOUNDING.replicas(3) == {5: 0x1234, 6: 0x5678}
    assert FOUNDING.next_replica == 7


def test_hash_of_the_initial_cluster() -> None:
    members = {"n2": "b:2", "n1": "a:1"}
    golden = "b14b494099a380d7174cbf5d13519ef639147fa547cf0439743c0a13494c5d6f"
    assert initial_cluster_hash(members).hex() == golden
    assert initial_cluster_hash(dict(sorted(members.items()))).hex() == golden


names = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=9)


@given(st.builds(Identity, U64, names, U64))
def test_an_identity_survives_its_document(identity: Identity) -> None:
    assert Identity.decode(identity.encode()) == identity


@given(st.builds(Founding, U64, st.lists(st.builds(Founder, names, U64, names), max_size=4).map(tuple)))
def test_a_founding_survives_its_document(founding: Founding) -> None:
    assert Founding.decode(founding.encode()) == founding


@pytest.mark.parametrize(("decode", "data"), [(Identity.decode, IDENTITY_BYTES), (Founding.decode, FOUNDING_BYTES)])
def test_a_damaged_document_is_refused(decode: Callable[[bytes], Any], data: bytes) -> None:
    for length in range(len(data) - 1):  # its last line break may be missing
        with pytest.raises(IdentityError, match="damaged"):
            decode(data[:length])
    for bit in range(8 * (len(data) - 1)):
        with pytest.raises(IdentityError):
            decode(flipped(data, bit))


@pytest.mark.parametrize(("decode", "data"), [(Identity.decode, IDENTITY_BYTES), (Founding.decode, FOUNDING_BYTES)])
def test_a_document_of_another_format_is_refused(decode: Callable[[bytes], Any], data: bytes) -> None:
    body = data.splitlines()[0].replace(b'"format":1', b'"format":2')
    with pytest.raises(IdentityError, match="has format 2"):
        decode(body + b"\n%08x\n" % crc32(body))


def test_node_record() -> None:
    record = NodeRecord(0x1234, "n1", "a:1", "a:0")
    assert record.key == b"node/0000000000001234"
    data = b'{"client":"a:0","format":1,"name":"n1","node":"0000000000001234","peer":"a:1"}'
    assert record.encode() == data
    assert NodeRecord.decode(data) == record
    for wrong in (
        b"",
        b"[]",
        b"{}",
        data[:-1],
        data.replace(b'"format":1', b'"format":3'),
        data.replace(b'"format":1', b'"format":2'),
        data.replace(b"1234", b"g"),
    ):
        with pytest.raises(Corruption):
            NodeRecord.decode(wrong)


def test_record_of_a_node_on_its_way() -> None:
    record = NodeRecord(
        0x1234, "n4", "a:1", "", NodeState.JOINING, learner=True, claim=0xABC, replaces=9, version="1.2"
    )
    data = (
        b'{"claim":"0000000000000abc","client":"","format":2,"learner":true,"name":"n4","node":"0000000000001234",'
        b'"peer":"a:1","replaces":"0000000000000009","state":"joining","version":"1.2"}'
    )
    assert record.encode() == data
    assert NodeRecord.decode(data) == record
    for wrong in (data.replace(b"joining", b"gone"), data.replace(b'"learner":true,', b""), data.replace(b"abc", b"?")):
        with pytest.raises(Corruption):
            NodeRecord.decode(wrong)


def flipped(data: bytes, bit: int) -> bytes:
    """`data` with one bit changed."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)

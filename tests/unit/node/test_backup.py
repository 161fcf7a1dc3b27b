"""The backup file: its bytes, and that nothing damaged is taken."""

from __future__ import annotations

import hashlib
from io import BytesIO

import pytest

from nebuladb.errors import Corruption
from nebuladb.node.backup import BackupReader, BackupWriter, Manifest, ShardPart
from nebuladb.node.declared import Declared, DeclaredAlarm
from nebuladb.shard import Descriptor, Keyspace, Partitioning

SHARD = Descriptor(2, "default", 1, b"", b"", (0, 0), ((4, 11),))
PART = ShardPart(SHARD, 9, 7, 3, 1, 2, 5)
ALARM = DeclaredAlarm(Declared.CORRUPT, 11)
MANIFEST = Manifest(0xABCD, "1.2", (Keyspace("default", Partitioning.RANGE),), "ff", 0xB0, 9, (ALARM,))
MANIFEST_JSON = (
    b'{"alarms":["alarm/corrupt/000000000000000b"],"cluster":"000000000000abcd","format":2,'
    b'"keyspaces":["{\\"format\\":1,\\"name\\":\\"default\\",\\"partitioning\\":\\"range\\"}"],'
    b'"life":"00000000000000b0","next_group":9,"since":"ff","version":"1.2"}'
)
SHARD_JSON = (
    b'{"after":5,"descriptor":"{\\"end\\":\\"\\",\\"epoch\\":1,\\"format\\":1,\\"group\\":2,\\"initial\\":[1,1],'
    b'\\"keyspace\\":\\"default\\",\\"replicas\\":[[4,11]],\\"slots\\":[0,0],\\"start\\":\\"\\"}",'
    b'"floor":3,"index":9,"keys":1,"revision":7,"size":2}'
)
BODY = b"".join(
    (
        b"NEBULADB BACKUP\n",
        b"\x01" + len(MANIFEST_JSON).to_bytes(4, "big") + MANIFEST_JSON,
        b"\x02" + len(SHARD_JSON).to_bytes(4, "big") + SHARD_JSON,
        b"\x03\x00\x00\x00\x05chunk",
    )
)
FILE = BODY + b"\x04\x00\x00\x00\x20" + hashlib.sha256(BODY).digest()


def read(data: bytes) -> tuple[BackupReader, list[tuple[ShardPart, list[bytes]]]]:
    reader = BackupReader(BytesIO(data))
    return reader, [(part, list(chunks)) for part, chunks in reader.shards()]


def test_the_bytes_of_a_backup() -> None:
    writer = BackupWriter()
    assert writer.begin(MANIFEST) + writer.shard(PART) + writer.chunk(b"chunk") + writer.end() == FILE
    reader, shards = read(FILE)
    assert reader.manifest == MANIFEST
    assert shards == [(PART, [b"chunk"])]
    assert reader.name == hashlib.sha256(BODY).hexdigest()


def test_a_backup_of_before_there_were_lives_is_of_none() -> None:
    older = MANIFEST_JSON.replace(b'"life":"00000000000000b0",', b"")
    assert Manifest.decode(older) == MANIFEST._replace(life=0)


def test_a_backup_of_before_it_said_which_group_is_the_next_does_not_know() -> None:
    older = MANIFEST_JSON.replace(b'"next_group":9,', b"")
    assert Manifest.decode(older) == MANIFEST._replace(next_group=0)


def test_a_backup_of_before_it_named_alarms_has_none() -> None:
    older = MANIFEST_JSON.replace(b'"alarms":["alarm/corrupt/000000000000000b"],', b"")
    assert Manifest.decode(older) == MANIFEST._replace(alarms=())
    with pytest.raises(Corruption):
        Manifest.decode(MANIFEST_JSON.replace(b"alarm/corrupt", b"alarm/unheard"))


def test_a_backup_of_format_1_is_read_and_one_of_a_format_to_come_is_not() -> None:
    assert Manifest.decode(MANIFEST_JSON.replace(b'"format":2', b'"format":1')) == MANIFEST
    with pytest.raises(Corruption, match="this build knows 1 to 2"):
        Manifest.decode(MANIFEST_JSON.replace(b'"format":2', b'"format":3'))


USERS = Keyspace("users", Partitioning.HASH)
HALVES = tuple(
    ShardPart(Descriptor(8 + i, "users", 1, b"", b"", (i << 15, (i + 1) << 15), ()), *PART[1:]) for i in (0, 1)
)
TWO = MANIFEST._replace(keyspaces=(*MANIFEST.keyspaces, USERS))


def test_a_keyspace_that_was_dropped_meanwhile_is_left_out_as_a_whole() -> None:
    writer = BackupWriter()
    data = writer.begin(TWO) + writer.shard(PART) + writer.shard(HALVES[0]) + writer.chunk(b"chunk")
    gone = writer.gone("users")
    assert gone == b'\x05\x00\x00\x00\x14{"keyspace":"users"}'
    data += gone + writer.end()
    reader, shards = read(data)
    assert [chunks for _, chunks in shards] == [[], [b"chunk"]]
    assert reader.kept(part for part, _ in shards) == [PART]
    assert (reader.gone, reader.keyspaces) == ({"users"}, MANIFEST.keyspaces)


@pytest.mark.parametrize("missing", [PART, *HALVES])
def test_a_backup_that_lacks_a_shard_of_what_was_not_dropped_is_not_taken(missing: ShardPart) -> None:
    writer = BackupWriter()
    data = writer.begin(TWO) + b"".join(writer.shard(part) for part in (PART, *HALVES) if part != missing)
    with pytest.raises(Corruption, match=f"lacks a shard: .*{missing.descriptor.keyspace}"):
        read(data + writer.end())
    other = "users" if missing == PART else "default"
    writer = BackupWriter()
    data = writer.begin(TWO) + writer.gone(other)
    data += b"".join(writer.shard(p) for p in (PART, *HALVES) if p != missing and p.descriptor.keyspace != other)
    with pytest.raises(Corruption, match="lacks a shard"):
        read(data + writer.end())


@pytest.mark.parametrize("name", ["other", "users"])
def test_what_is_gone_was_there_and_nothing_of_it_follows(name: str) -> None:
    writer = BackupWriter()
    data = writer.begin(TWO) + writer.shard(PART) + writer.gone("users")
    for more in (writer.gone(name), writer.shard(HALVES[0])):
        with pytest.raises(Corruption, match="not in it"):
            read(data + more + writer.end())


def test_every_flipped_bit_and_every_cut_is_noticed() -> None:
    for position in range(len(FILE)):
        with pytest.raises(Corruption):
            read(FILE[:position])
        for bit in (1, 0x80):
            with pytest.raises(Corruption):
                read(FILE[:position] + bytes([FILE[position] ^ bit]) + FILE[position + 1 :])
    with pytest.raises(Corruption):
        read(FILE + b"x")


@pytest.mark.parametrize("more", range(0, 512, 37))
def test_the_end_that_etcds_clients_want_is_taken_and_no_other(more: int) -> None:
    """Zeros to a multiple of 512 bytes, and SHA-256 of all before it."""
    writer = BackupWriter()
    manifest = Manifest(7, "v" * more, ())
    data = writer.begin(manifest) + writer.end()
    zeros = bytes(-len(data) % 512)
    sealed = data + zeros + hashlib.sha256(data + zeros).digest()
    assert len(sealed) % 512 == 32
    reader, parts = read(sealed)
    assert (reader.manifest, parts, reader.name) == (manifest, [], read(data)[0].name)
    for bit in range(len(data) * 8, len(sealed) * 8, 61):
        with pytest.raises(Corruption):
            read(flip(sealed, bit))
    for wrong in (sealed[:-1], sealed + b"\0", data + zeros + b"\1", data + sealed[-32:-1]):
        with pytest.raises(Corruption):
            read(wrong)


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)

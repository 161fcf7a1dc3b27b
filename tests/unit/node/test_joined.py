"""The joining document: its bytes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from zlib import crc32

import pytest

from nebuladb.errors import IdentityError
from nebuladb.node.identity import Founder, Founding, Identity
from nebuladb.node.joined import Joined
from nebuladb.node.meta import meta_shard
from nebuladb.server.directory import DataDirectory
from nebuladb.shard import Role

FOUNDING = Founding(0xABCD, (Founder("n1", 0x11, "a:1"),))
JOINED = Joined(FOUNDING, 0x22, meta_shard(FOUNDING).with_role(4, 0x22, Role.JOINING), ((0x11, "a:1"), (0x22, "b:1")))
BODY = (
    rb'{"format":1,"founding":"{\"cluster\":\"000000000000abcd\",\"format\":1,\"nodes\":[{\"name\":\"n1\",'
    rb'\"node\":\"0000000000000011\",\"peer\":\"a:1\"}]}\n2b5fa507\n","meta":"{\"end\":\"\",\"epoch\":1,\"format\":2,'
    rb"\"founders\":[1],\"group\":1,\"initial\":[1,1],\"keyspace\":\"\",\"replicas\":[[1,17],[4,34]],\"roles\":"
    rb'[[4,\"joining\"]],\"slots\":[0,0],\"start\":\"\"}","node":"0000000000000022","peers":'
    rb'{"0000000000000011":"a:1","0000000000000022":"b:1"}}'
)


def test_joining_document() -> None:
    data = BODY + b"\n%08x\n" % crc32(BODY)
    assert JOINED.encode() == data
    assert Joined.decode(data) == JOINED


@pytest.mark.parametrize("body", [BODY.replace(b'"format":1,"founding"', b'"format":2,"founding"'), b'{"format":1}'])
def test_what_is_no_joining_document_is_refused(body: bytes) -> None:
    with pytest.raises(IdentityError):
        Joined.decode(body + b"\n%08x\n" % crc32(body))
    with pytest.raises(IdentityError, match="damaged"):
        Joined.decode(body + b"\n00000000\n")


def test_a_directory_that_joined_comes_back_as_the_node_that_it_is(tmp_path: Path) -> None:
    """Also if the process ended between its two documents."""
    directory = DataDirectory(tmp_path)
    fresh = directory.identity("n2")
    drawn = (tmp_path / "identity.json").read_bytes()
    assert directory.join(fresh, JOINED) == Identity(0x22, "n2", 0xABCD)
    for crashed in (False, True):
        if crashed:
            (tmp_path / "identity.json").write_bytes(drawn)
        directory.close()
        directory = DataDirectory(tmp_path)
        assert directory.identity("n2") == Identity(0x22, "n2", 0xABCD)
        assert (directory.founding(), directory.joined()) == (FOUNDING, JOINED)
    directory.close()

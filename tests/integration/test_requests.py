"""Large, empty, binary and wrong requests, through the client and the command line: each does what one would hope."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nebuladb.client import AsyncClient
from nebuladb.errors import InvalidArgument, KeyspaceNotFound, RequestTooLarge
from tests.integration.cluster import Cluster


def cli(cluster: Cluster, *arguments: str, value: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [Path(sys.executable).with_name("nebula-cli"), "--endpoints", ",".join(cluster.endpoints), *arguments],
        input=value,
        capture_output=True,
        timeout=60,
        env={key: text for key, text in os.environ.items() if not key.startswith("NEBULA_")},
        check=False,
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"k" * 65_536, b"a long key"),
        (b"large", os.urandom(1 << 20)),
        (b"empty", b""),
        (bytes(range(256)), bytes(range(255, -1, -1))),
        (b"\0", b"\0"),
        (b"\xff" * 16, b"the last key"),
    ],
    ids=["key of 64 KiB", "value of 1 MiB", "empty value", "binary", "zero byte", "high bytes"],
)
async def test_it_comes_back_as_it_went(client: AsyncClient, key: bytes, value: bytes) -> None:
    await client.put(key, value)
    found = await client.get(key)
    assert found is not None
    assert (found.key, found.value) == (key, value)
    assert [row.value async for row in client.scan(key, key + b"\0")] == [value]


async def test_an_empty_key_is_refused(client: AsyncClient) -> None:
    with pytest.raises(InvalidArgument, match="key is not provided"):
        await client.put(b"", b"value")
    with pytest.raises(InvalidArgument, match="key is not provided"):
        await client.get(b"")
    with pytest.raises(InvalidArgument, match="key is not provided"):
        await client.delete(b"")


@pytest.mark.parametrize("size", [1_572_864, 3 << 20, 8 << 20])
async def test_a_request_over_the_limit_is_refused_and_says_so(client: AsyncClient, size: int) -> None:
    with pytest.raises(RequestTooLarge, match=r"1572864|1\.5 MiB"):
        await client.put(b"too large", b"x" * size)
    assert await client.get(b"too large") is None


async def test_an_unknown_keyspace_is_refused(cluster: Cluster) -> None:
    async with AsyncClient(cluster.endpoints, keyspace="nowhere") as client:
        with pytest.raises(KeyspaceNotFound, match="keyspace list"):
            await client.put(b"key", b"value")


async def test_a_transaction_is_all_or_nothing(client: AsyncClient) -> None:
    await client.put(b"txn/a", b"1")
    done = await client.txn().when("value", b"txn/a", "=", b"1").put(b"txn/a", b"2").put(b"txn/b", b"2").commit()
    missed = (
        await client.txn().when("value", b"txn/a", "=", b"1").put(b"txn/b", b"3").get(b"txn/a", branch="else").commit()
    )
    assert (done.succeeded, missed.succeeded) == (True, False)
    assert [row.value async for row in client.scan(b"txn/", b"txn0")] == [b"2", b"2"]


def test_the_command_line_tells_hits_from_misses(cluster: Cluster) -> None:
    assert cli(cluster, "put", "cli/key", "-", value=b"a\nb").stdout == b"OK\n"
    assert cli(cluster, "get", "cli/key").stdout == b"a\nb\n"
    missing = cli(cluster, "get", "cli/missing")
    assert (missing.returncode, missing.stdout, missing.stderr) == (1, b"", b"")
    deleted = cli(cluster, "del", "cli/missing")
    assert (deleted.returncode, deleted.stdout) == (0, b"0\n")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("put", "", "value"), 1, b"key is not provided"),
        (("--keyspace", "nowhere", "put", "a", "b"), 1, b"keyspace list"),
        (("put", "a"), 2, b"Usage"),
        (("get", "--no-such-flag", "a"), 2, b"no-such-flag"),
        (("frobnicate",), 2, b"frobnicate"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    cluster: Cluster, arguments: tuple[str, ...], code: int, text: bytes
) -> None:
    done = cli(cluster, *arguments)
    assert (done.returncode, done.stdout) == (code, b"")
    assert text in done.stderr
    assert b"Traceback" not in done.stderr


def test_the_command_line_refuses_a_value_over_the_limit(cluster: Cluster) -> None:
    done = cli(cluster, "put", "big", "-", value=b"x" * (2 << 20))
    assert done.returncode == 1
    assert b"1.5 MiB" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_a_wrong_flag_of_nebulad_exits_with_2() -> None:
    for arguments, text in (
        (["start", "--no-such-flag"], b"no-such-flag"),
        (["start", "--client-addr", "nonsense"], b"client-addr"),
        (["start", "--name", "n9", "--initial-cluster", "n1=127.0.0.1:1"], b"initial-cluster"),
        (["dev", "--nodes", "0"], b"nodes"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "nebuladb.server.main", *arguments], capture_output=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout) == (2, b""), done.stderr
        assert text in done.stderr

"""Many puts at once, each told apart and read back."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from typing import Final

from nebuladb.client import AsyncClient
from tools.compose_test.shell import Failure

IN_FLIGHT: Final = 64
SIZE: Final = 1024
KEYSPACE: Final = "puts"
SECONDS: Final = 30.0
"""A put's deadline: the machine may be busy with something else."""


def value(number: int) -> bytes:
    """The 1 KiB of put `number`, like no other's and not compressible."""
    return hashlib.shake_128(number.to_bytes(8, "big")).digest(SIZE)


def key(number: int) -> bytes:
    """Likewise its key."""
    return f"{number:09}".encode()


async def _put(endpoints: Sequence[str], count: int) -> None:
    numbers = iter(range(count))
    async with AsyncClient(endpoints, keyspace=KEYSPACE, timeout=SECONDS) as client:

        async def work() -> None:
            for number in numbers:
                await client.put(key(number), value(number))

        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(work())


async def _verify(endpoints: Sequence[str], count: int) -> int:
    expected = 0
    async with AsyncClient(endpoints, keyspace=KEYSPACE, timeout=SECONDS) as client:
        async for row in client.scan():
            if (row.key, row.value) != (key(expected), value(expected)):
                raise Failure(f"put {expected} is not what comes back: the key {row.key!r}")
            expected += 1
    return expected


def put(endpoints: Sequence[str], count: int) -> float:
    """Put `count` values, `IN_FLIGHT` at a time; seconds that it took. Raises what a put raises."""
    began = time.monotonic()
    asyncio.run(_put(endpoints, count))
    return time.monotonic() - began


def verify(endpoints: Sequence[str], count: int) -> None:
    """Read all of them back. Raises `Failure` at the first that is missing or another."""
    found = asyncio.run(_verify(endpoints, count))
    if found != count:
        raise Failure(f"{found} of {count} puts are there")

"""The samples of the documents for Python's users run as they stand, against a cluster."""

from __future__ import annotations

import ast
import asyncio
import re
from collections.abc import Callable
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any, Final

import pytest

from nebuladb import client as sdk
from nebuladb.client import AsyncClient, Client
from tests.integration.cluster import Cluster

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
README: Final = (ROOT / "README.md").read_text(encoding="utf-8")
SECONDS: Final = 60.0
"""For one sample. Patience, not a claim."""
ENDPOINTS: Final = re.compile(r'\["127\.0\.0\.1:7379"[^]]*\]')
"""As the documents write them."""


def samples(text: str) -> list[str]:
    """The Python samples of a document."""
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def execute(sample: str, cluster: Cluster, names: dict[str, Any]) -> list[Callable[..., Any]]:
    """Run a sample, with the cluster's addresses in place of those that are written there; the functions of a client
    alone that it defines."""
    exec(compile(ENDPOINTS.sub(repr(cluster.endpoints), sample), "<sample>", "exec"), names)
    return [
        names[node.name]
        for node in ast.parse(sample).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and len(node.args.args) == 1
    ]


async def call(function: Callable[..., Any], endpoints: list[str]) -> None:
    """Call an asynchronous sample."""
    async with asyncio.timeout(SECONDS), AsyncClient(endpoints) as client:
        await function(client)


def test_the_page_for_python(cluster: Cluster) -> None:
    names: dict[str, Any] = {}
    called = []
    for sample in samples(PAGE):
        for function in execute(sample, cluster, names):
            called.append(function.__name__)
            if iscoroutinefunction(function):
                asyncio.run(call(function, cluster.endpoints))
            else:
                with Client(cluster.endpoints) as client:
                    function(client)
    assert len(called) == len(set(called)) > 10


def test_every_sample_is_a_program_or_functions_that_are_called() -> None:
    for sample in samples(PAGE):
        for node in ast.parse(sample).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name != "main":
                (argument,) = node.args.args
                assert argument.annotation is not None
                kind = "AsyncClient" if isinstance(node, ast.AsyncFunctionDef) else "Client"
                assert ast.unparse(argument.annotation) == kind


def test_the_first_program_of_the_readme(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    execute(samples(README)[0], cluster, {})
    assert "value=b'hello'" in capsys.readouterr().out


@pytest.fixture
def follow() -> Callable[..., Any]:
    """The README's copy that is kept up to date."""
    names: dict[str, Any] = dict(vars(sdk))
    (sample,) = (sample for sample in samples(README) if "def follow" in sample)
    exec(compile(sample, "<sample>", "exec"), names)
    function: Callable[..., Any] = names["follow"]
    return function


async def test_the_copy_of_the_readme_follows_over_all_shards(
    cluster: Cluster, client: AsyncClient, follow: Callable[..., Any]
) -> None:
    await client.create_keyspace("followed", shards=4)
    async with AsyncClient(cluster.endpoints, keyspace="followed") as users:
        await users.batch({b"%d" % number: b"1" for number in range(20)})
        copy: dict[bytes, bytes] = {}
        following = asyncio.create_task(follow(users, copy))
        async with asyncio.timeout(SECONDS):
            while len(copy) < 20:
                await asyncio.wait((following,), timeout=0.02)
                assert not following.done()
            await users.batch({b"%d" % number: b"2" for number in range(10)}, [b"19"])
            wanted = {row.key: row.value async for row in users.scan()}
            while copy != wanted:
                await asyncio.wait((following,), timeout=0.02)
                assert not following.done()
        following.cancel()
    await client.drop_keyspace("followed")

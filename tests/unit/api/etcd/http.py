"""A client of HTTP/1.1 that shows what came, chunk by chunk."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.unit.node.lone import SECONDS


@dataclass
class Response:
    """One answer."""

    status: int
    headers: dict[str, str]
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)


class Http:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, method: str, path: str, body: bytes | str | None = None, **headers: str) -> None:
        """A request."""
        data = body.encode() if isinstance(body, str) else body
        lines = [f"{method} {path} HTTP/1.1", "Host: x"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if data is not None:
            lines.append(f"Content-Length: {len(data)}")
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + (data or b""))

    async def head(self) -> Response:
        """Up to the body."""
        async with asyncio.timeout(SECONDS):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        return Response(int(lines[0].split()[1]), headers)

    async def chunk(self) -> bytes:
        """One chunk; empty: there are no more."""
        async with asyncio.timeout(SECONDS):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def response(self, *, bodiless: bool = False) -> Response:
        """A whole answer."""
        response = await self.head()
        if bodiless:
            return response
        if response.headers.get("transfer-encoding") == "chunked":
            while chunk := await self.chunk():
                response.body += chunk
        else:
            async with asyncio.timeout(SECONDS):
                response.body = await self.reader.readexactly(int(response.headers["content-length"]))
        return response

    async def ended(self) -> bool:
        """Whether the server closes, having said no more."""
        async with asyncio.timeout(SECONDS):
            return not await self.reader.read()


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Http]:
    """A connection to HOST:PORT."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Http(reader, writer)
    finally:
        writer.close()


async def post(address: str, path: str, body: bytes | str, **headers: str) -> Response:
    """An answer on a connection of its own."""
    async with connected(address) as http:
        http.send("POST", path, body, **headers)
        return await http.response()


async def get(address: str, path: str, method: str = "GET") -> Response:
    """Likewise."""
    async with connected(address) as http:
        http.send(method, path)
        return await http.response(bodiless=method == "HEAD")

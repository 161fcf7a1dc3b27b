"""The admin port over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nebuladb.errors import Unavailable
from nebuladb.server import admin
from nebuladb.server.admin import AdminApp, AdminServer, bind
from nebuladb.server.metrics import Metrics


class View:
    def __init__(self) -> None:
        self.alive = (True, "")
        self.ready = (True, "")
        self.checks = 0
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    def livez(self) -> tuple[bool, str]:
        return self.alive

    async def readyz(self) -> tuple[bool, str]:
        self.checks += 1
        self.asked.set()
        await self.gate.wait()
        return self.ready

    def status(self) -> dict[str, Any]:
        return {"name": "n1", "pid": os.getpid()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Served:
    """A view and the admin port that shows it."""

    def __init__(self) -> None:
        self.view = View()
        self.port = free_port()
        self.server = AdminServer(AdminApp(self.view, Metrics()), f"127.0.0.1:{self.port}")

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def get(self, path: str) -> tuple[int, str]:
        reader, writer = await self.open()
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = (await reader.read()).decode()
        writer.close()
        head, _, body = answer.partition("\r\n\r\n")
        return int(head.split()[1]), body


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served = Served()
    await served.server.start()
    try:
        yield served
    finally:
        served.view.gate.set()
        await served.server.stop()


async def test_each_page_answers(served: Served) -> None:
    assert await served.get("/livez") == (200, "ok\n")
    assert await served.get("/readyz") == (200, "ok\n")
    code, body = await served.get("/status")
    assert (code, json.loads(body)["pid"]) == (200, os.getpid())
    assert "nebula_log_fsync_total 0.0" in (await served.get("/metrics"))[1]
    assert (await served.get("/"))[1].startswith("<!doctype html>")
    code, body = await served.get("/nothing")
    assert (code, body) == (404, "no such page; there are / /livez /readyz /status /metrics\n")


async def test_the_dashboard_needs_nothing_from_elsewhere(served: Served) -> None:
    _, page = await served.get("/")
    assert "http" not in page.replace("http-equiv", "")
    assert "src=" not in page


async def test_a_verdict_says_why(served: Served) -> None:
    served.view.alive = (False, "the log's disk failed")
    served.view.ready = (False, "no leader for etcd")
    assert await served.get("/livez") == (503, "the log's disk failed\n")
    assert await served.get("/readyz") == (503, "no leader for etcd\n")


async def test_a_slow_check_is_shared_and_bounded(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "READY_SECONDS", 0.2)
    served.view.gate.clear()
    answers = await asyncio.gather(*(served.get("/readyz") for _ in range(20)))
    assert set(answers) == {(503, "no answer within 0.2 s\n")}
    assert served.view.checks == 1
    served.view.gate.set()
    assert (await served.get("/readyz"))[0] == 200


async def test_a_page_that_fails_harms_no_other(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.view, "status", lambda: 1 / 0)
    assert (await served.get("/status"))[0] == 500
    assert (await served.get("/livez"))[0] == 200


async def test_garbage_and_silence_harm_nobody(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "IDLE_SECONDS", 0.1)
    silent, silent_writer = await served.open()
    for garbage in (
        b"\x00" * 100_000,
        os.urandom(1000),
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ):
        reader, writer = await served.open()
        writer.write(garbage)
        writer.write_eof()
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                await reader.read()
        writer.close()
    async with asyncio.timeout(5):
        assert await silent.read() == b""
    silent_writer.close()
    assert (await served.get("/livez"))[0] == 200


async def ended(reader: asyncio.StreamReader) -> bool:
    """Whether the server closes the connection, without an answer."""
    async with asyncio.timeout(5):
        try:
            return await reader.read() == b""
        except ConnectionError:
            return True


async def test_one_connection_too_many_ends_the_oldest(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "MAX_CONNECTIONS", 2)
    reader, writer = await served.open()
    writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
    kept, kept_writer = await served.open()
    assert (await served.get("/livez"))[0] == 200
    assert await ended(reader)
    kept_writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert (await kept.read()).startswith(b"HTTP/1.1 200 OK")
    kept_writer.close()
    writer.close()


async def test_a_request_that_trickles_in_ends(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "IDLE_SECONDS", 0.2)
    reader, writer = await served.open()
    writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nA: ")
    end = asyncio.create_task(ended(reader))
    async with asyncio.timeout(5):
        while not end.done():
            writer.write(b"a")
            await asyncio.wait([end], timeout=0.05)
    assert await end
    writer.close()


async def test_an_answer_that_nobody_reads_ends(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "IDLE_SECONDS", 0.2)
    size = 64 << 20
    monkeypatch.setattr(served.view, "status", lambda: "x" * size)
    sock = socket.create_connection(("127.0.0.1", served.port))
    sock.settimeout(0)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await loop.sock_recv(sock, 1)
    end = loop.time() + 0.4
    while loop.time() < end:
        await served.get("/livez")
    read = 1
    with contextlib.suppress(ConnectionError):
        while data := await loop.sock_recv(sock, 1 << 20):
            read += len(data)
    assert read < size
    sock.close()


async def test_the_loop_goes_round_while_metrics_are_written(served: Served) -> None:
    rounds = 0
    asking = asyncio.create_task(served.get("/metrics"))
    while not asking.done():
        await asyncio.sleep(0)
        rounds += 1
    families = (await asking)[1].count("# TYPE")
    assert 20 < families < rounds


async def test_it_leaves_signals_alone(served: Served) -> None:
    await served.get("/livez")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_stop_ends_what_is_in_flight(served: Served) -> None:
    served.view.gate.clear()
    asking = asyncio.create_task(served.get("/readyz"))
    await served.view.asked.wait()
    async with asyncio.timeout(5):
        await served.server.stop()
    served.view.gate.set()
    await asyncio.gather(asking, return_exceptions=True)
    with pytest.raises(ConnectionRefusedError):
        await served.open()


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        with pytest.raises(Unavailable, match=f"admin-addr: can't listen at {address}: Address already in use"):
            bind(address, "admin-addr")


def test_a_host_that_is_not_ours_is_named() -> None:
    with pytest.raises(Unavailable, match=r"client-addr: can't listen at 192.0.2.1:7379"):
        bind("192.0.2.1:7379", "client-addr")


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_all_addresses_of_version_6_leave_those_of_version_4_to_others() -> None:
    with socket.socket() as holder:
        holder.bind(("0.0.0.0", 0))
        holder.listen()
        address = f"[::]:{holder.getsockname()[1]}"
        with pytest.raises(Unavailable, match="Address already in use"):
            bind(address, "client-addr")
        bind(address, "client-addr", v6_only=True).close()

"""A real etcd, and ours, as processes of a test's own on loopback ports."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

import grpc

from tests.integration.cluster import Cluster, Ports

READY_SECONDS: Final = 60.0
STOP_SECONDS: Final = 20.0
POLL_SECONDS: Final = 0.05
LOG_TAIL: Final = 2000
PANIC_BYTES: Final = 500
DYING: Final = re.compile(r'panic|"level":"fatal"|fatal error')
END_SECONDS: Final = 2.0

ETCD: Final = shutil.which("etcd")
"""Its binary; None: it isn't installed here."""


class Server(Protocol):
    """Something that speaks etcd's API."""

    @property
    def endpoints(self) -> list[str]:
        """Client addresses, by node."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None, /
    ) -> bool | None: ...


class RealEtcd:
    """`nodes` members of etcd in `directory`, ready when entered; killed at the end."""

    def __init__(self, directory: Path, nodes: int = 1, *arguments: str) -> None:
        self.directory = directory
        self._ports = Ports(nodes)
        bases = [self._ports.base + 100 * node for node in range(nodes)]
        self.endpoints = [f"127.0.0.1:{base}" for base in bases]
        peers = [f"http://127.0.0.1:{base + 1}" for base in bases]
        members = ",".join(f"e{node + 1}={peer}" for node, peer in enumerate(peers))
        self._arguments = [
            [
                f"--name=e{node + 1}",
                f"--data-dir={directory}/e{node + 1}",
                f"--listen-client-urls=http://{self.endpoints[node]}",
                f"--advertise-client-urls=http://{self.endpoints[node]}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster={members}",
                "--log-level=error",
                "--unsafe-no-fsync",
                *arguments,
            ]
            for node, peer in enumerate(peers)
        ]
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        assert ETCD is not None
        self.directory.mkdir(parents=True, exist_ok=True)
        environ = {key: value for key, value in os.environ.items() if not key.startswith("ETCD_")}
        for node, arguments in enumerate(self._arguments):
            with (self.directory / f"e{node + 1}.log").open("ab") as log:
                self.processes.append(
                    subprocess.Popen([ETCD, *arguments], env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
                )
        try:
            for endpoint in self.endpoints:
                wait_serving(endpoint)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill them."""
        for process in self.processes:
            process.kill()
            process.wait(STOP_SECONDS)
        self._ports.close()

    def log(self) -> str:
        """The ends of the logs."""
        return "\n".join(path.read_text(errors="replace")[-LOG_TAIL:] for path in self.directory.glob("*.log"))

    def panic(self) -> str:
        """Why a member has ended by itself, or is about to; empty: none has, or it didn't say."""
        deadline = time.monotonic() + END_SECONDS
        while all(process.poll() is None for process in self.processes):
            if time.monotonic() > deadline:
                return ""
            time.sleep(POLL_SECONDS)
        logs = (path.read_text(errors="replace") for path in self.directory.glob("*.log"))
        lines = (line for log in logs for line in log.splitlines())
        return next((line[:PANIC_BYTES] for line in lines if DYING.search(line[:PANIC_BYTES])), "")


class Nebula(Cluster):
    """Ours, started when entered."""

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_ready()
            for endpoint in self.endpoints:
                wait_serving(endpoint)
        except BaseException:
            self.close()
            raise
        return self

    @property
    def etcd_group(self) -> int:
        """The group of the keyspace that the face shows."""
        status = self.status(0)
        assert status is not None
        return next(int(entry["group"]) for entry in status["groups"] if entry["keyspace"] == "etcd")


def wait_serving(endpoint: str) -> None:
    """Until a linearizable read of one key is answered there."""
    deadline = time.monotonic() + READY_SECONDS
    with grpc.insecure_channel(endpoint) as channel:
        read: Any = channel.unary_unary("/etcdserverpb.KV/Range")
        while True:
            try:
                read(b"\x0a\x01k", timeout=5.0, wait_for_ready=True)
                return
            except grpc.RpcError as error:
                # A server that says anything of its own serves: what it says is what tests are about.
                if error.code() not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                    return
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)

"""Three nodes of etcd, with its defaults but for names, ports, directories, the quota and the amount of logs."""

from __future__ import annotations

import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final, Self

from tests.integration.cluster import Ports

BINARY: Final = "etcd"
NODES: Final = 3
QUOTA: Final = 8 << 30
"""Bytes. Its default, 2 GiB, is a bound that a long run of puts would meet; it costs nothing until then."""
READY_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.05
STRIDE: Final = 100
"""Ports of a node: a client's, a peer's."""
NOTED: Final = f"--quota-backend-bytes={QUOTA} --log-level=error"


def installed() -> bool:
    """Whether there is an etcd."""
    return shutil.which(BINARY) is not None


def version() -> str:
    """Of the binary."""
    out = subprocess.run([BINARY, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
    return out.splitlines()[0].rpartition(" ")[2]


class Etcd:
    """The cluster. Nothing runs until `start`, and nothing after `close`."""

    name = "etcd"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ports = Ports(NODES)
        self.ports = [self._ports.base + STRIDE * node for node in range(NODES)]
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """All nodes. Doesn't wait."""
        self.directory.mkdir(parents=True, exist_ok=True)
        cluster = ",".join(f"n{node + 1}=http://127.0.0.1:{port + 1}" for node, port in enumerate(self.ports))
        for node, port in enumerate(self.ports):
            client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"
            with (self.directory / f"n{node + 1}.log").open("ab") as log:
                self._processes.append(
                    subprocess.Popen(
                        [
                            *(BINARY, "--name", f"n{node + 1}", "--data-dir", str(self.directory / f"n{node + 1}")),
                            *("--listen-client-urls", client, "--advertise-client-urls", client),
                            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                            *("--initial-cluster", cluster, "--initial-cluster-token", self.directory.name),
                            *NOTED.split(),
                        ],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        process_group=0,
                    )
                )

    def wait_ready(self) -> None:
        """Until every node says that it is healthy."""
        deadline = time.monotonic() + READY_SECONDS
        for port in self.ports:
            while not _healthy(port):
                if time.monotonic() > deadline or any(process.poll() is not None for process in self._processes):
                    logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in self.directory.glob("*.log"))
                    raise RuntimeError(f"etcd did not start:\n{logs}")
                time.sleep(POLL_SECONDS)

    @property
    def pids(self) -> list[int]:
        """Of the nodes."""
        return [process.pid for process in self._processes]

    def close(self) -> None:
        """Kill what still runs."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
        self._ports.close()


def _healthy(port: int) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return b'"true"' in answer.read()
    except (OSError, urllib.error.URLError):
        return False

"""A cluster as a person would run it: `nebulad dev`, kill -9, and `nebulad start` for the node that died."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from nebuladb.ids import DEFAULT_GROUP
from nebuladb.server.dev import CONFIG_FILE, PORTS_PER_NODE
from tests.integration.cluster import Ports

NODES: Final = 3
POLL_SECONDS: Final = 0.1
"""Each look costs the nodes a little, and they have a load to carry."""
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 30.0
HTTP_SECONDS: Final = 5.0
LOG_TAIL: Final = 20
"""Lines of the log that a failure shows."""


class Failure(Exception):
    """What was expected did not happen; the text says what."""


class DevCluster:
    """Nodes n1 to n3, numbered from 0, in `directory`. Ends only what it started, by pid."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ports = Ports(NODES)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._revived: dict[int, subprocess.Popen[bytes]] = {}
        # Not our caller's settings; and the interpreter must not write into the directories that the demo loads.
        environ = {key: value for key, value in os.environ.items() if not key.startswith("NEBULA_")}
        self.environ = {**environ, "PYTHONDONTWRITEBYTECODE": "1"}

    @property
    def endpoints(self) -> list[str]:
        """Client addresses, by node."""
        return [f"127.0.0.1:{self._port(node)}" for node in range(NODES)]

    def name(self, node: int) -> str:
        """As the node calls itself."""
        return f"n{node + 1}"

    def start(self) -> None:
        """`nebulad dev`, until it says that every node serves."""
        said = self.directory / "dev.out"
        with said.open("wb") as output:
            dev = self._run(
                [
                    "nebulad", "dev", "--nodes", str(NODES), "--data-dir", str(self.directory / "cluster"),
                    "--base-port", str(self._port(0)),
                ],
                output.fileno(),
            )  # fmt: skip

        def ready() -> bool:
            if dev.poll() is not None:
                raise Failure(f"nebulad dev ended with {dev.returncode}")
            return said.read_text().startswith("cluster ready ")

        self.wait(ready, "the cluster is ready", START_SECONDS)

    def data_dir(self, node: int) -> Path:
        """Where it keeps everything."""
        return self.directory / "cluster" / self.name(node)

    def status(self, node: int) -> dict[str, Any] | None:
        """/status of its admin port; None if it doesn't answer."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{self._port(node) + 2}/status", timeout=HTTP_SECONDS) as answer:
                status: dict[str, Any] = json.load(answer)
                return status
        except OSError:
            return None

    def groups(self, node: int) -> dict[int, dict[str, Any]]:
        """What it says of its groups, by id; empty if it doesn't answer."""
        status = self.status(node) or {"groups": []}
        return {group["group"]: group for group in status["groups"]}

    def leader(self) -> int:
        """The node that leads the shard of `default`, as it says itself; of several claims that of the newest term."""
        found: list[tuple[int, int]] = []

        def look() -> bool:
            for node in range(NODES):
                group = self.groups(node).get(DEFAULT_GROUP)
                if group is not None and group["role"] == "leader":
                    found.append((group["term"], node))
            return bool(found)

        self.wait(look, "the shard of `default` has a leader", START_SECONDS)
        return max(found)[1]

    def kill(self, node: int) -> int:
        """SIGKILL; returns the pid that died."""
        status = self.status(node)
        if status is None:
            raise Failure(f"{self.name(node)} does not say its pid")
        pid = int(status["pid"])
        os.kill(pid, signal.SIGKILL)
        return pid

    def revive(self, node: int) -> None:
        """`nebulad start` on the dead node's directory, until it serves."""
        self._revived[node] = process = self._run(
            ["nebulad", "start", "--config", str(self.data_dir(node) / CONFIG_FILE)], subprocess.DEVNULL
        )

        def serves() -> bool:
            if process.poll() is not None:
                raise Failure(f"{self.name(node)} ended with {process.returncode}")
            return self.status(node) is not None

        self.wait(serves, f"{self.name(node)} is back", START_SECONDS)

    def stop_revived(self, node: int) -> None:
        """SIGTERM to a node that was revived, until it is gone."""
        self._end(self._revived.pop(node))

    def load(self, arguments: list[str]) -> subprocess.Popen[bytes]:
        """`nebula-cli ... load`, in the background; what it says goes to the log."""
        return self._run(["nebula-cli", "--endpoints", ",".join(self.endpoints), "load", *arguments], None)

    def wait(self, condition: Callable[[], bool], what: str, seconds: float, poll: float = POLL_SECONDS) -> None:
        """Until `condition()`, asked each `poll` seconds. Raises `Failure` that says `what` did not come true."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise Failure(f"not within {seconds:g} s: {what}")
            time.sleep(poll)

    def stop(self) -> None:
        """End everything."""
        for process in reversed(self._processes):
            self._end(process)
        self._ports.close()

    def log_tail(self) -> str:
        """The last lines of what everyone said."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-LOG_TAIL:]) if self._log.exists() else ""

    @property
    def _log(self) -> Path:
        return self.directory / "log"

    def _port(self, node: int) -> int:
        return self._ports.base + PORTS_PER_NODE * node

    def _run(self, command: list[str], stdout: int | None) -> subprocess.Popen[bytes]:
        """Start one of our programs, from the environment that we run in."""
        program = Path(sys.executable).with_name(command[0])
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [str(program), *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log if stdout is None else stdout,
                stderr=log,
                env=self.environ,
                process_group=0,  # Ctrl-C is for us; we end the others in order
            )
        self._processes.append(process)
        return process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()

"""Clusters of real `nebulad` processes, for tests.

A `Cluster` owns a range of loopback ports and a directory; it starts, kills, stops and asks its nodes. Waiting is
polling with a deadline. It ends only processes that it started, by pid. Calls block: from a coroutine, use a thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

from nebuladb.ids import DEFAULT_GROUP
from nebuladb.rpc.engine import VARIABLE, engine_of
from nebuladb.server.dev import PORTS_PER_NODE, Member, plan, prepare

READY_SECONDS: Final = 60.0
"""Patience, not a claim: the machine may be busy with something else."""
STOP_SECONDS: Final = 20.0
POLL_SECONDS: Final = 0.02
HTTP_SECONDS: Final = 6.0
LOG_TAIL: Final = 2000
"""Characters of a node's log in an error."""
PORTS: Final = range(10_000, 30_000)
"""Below the range from which the kernel takes ports for outgoing connections."""


class ClusterError(Exception):
    """The cluster did not do what the harness waited for; the text has the log's end."""


class Ports:
    """A base port whose nodes' ports are free, held against other harnesses while this is open.

    The holder listens at base+3, which no node uses. Between the check and a node's start a stranger may still take a
    port; then the node says so.
    """

    def __init__(self, nodes: int) -> None:
        rng = random.Random(os.getpid() ^ time.monotonic_ns())
        for _ in range(1000):
            base = rng.randrange(PORTS.start, PORTS.stop - PORTS_PER_NODE * nodes, 4)
            holder = _listen(base + 3)
            if holder is None:
                continue
            if all(is_free(base + PORTS_PER_NODE * node + offset) for node in range(nodes) for offset in range(3)):
                self.base = base
                self._holder = holder
                return
            holder.close()
        raise ClusterError("no free ports")

    def close(self) -> None:
        self._holder.close()


def _listen(port: int) -> socket.socket | None:
    holder = socket.socket()
    try:
        holder.bind(("127.0.0.1", port))
        holder.listen(1)
    except OSError:
        holder.close()
        return None
    return holder


def is_free(port: int) -> bool:
    """Whether a server could listen at this loopback port now."""
    probe = socket.socket()
    # As a server binds: a port in TIME_WAIT is free.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind(("127.0.0.1", port))
    except OSError:
        return False
    finally:
        probe.close()
    return True


class Cluster:
    """`nodes` nodes in `directory`, numbered from 0; node i is called n{i+1}. Nothing runs until `start`.

    `environ` is added to the nodes' environment; `node_environ(i)` to node i's, asked at each start. `members` replaces
    the plan on loopback ports; `prefix(i)` is a command that runs node i's, in its place and under its pid.
    """

    def __init__(
        self,
        directory: Path,
        nodes: int = 3,
        environ: Mapping[str, str] | None = None,
        node_environ: Callable[[int], Mapping[str, str]] = lambda _: {},
        members: Sequence[Member] = (),
        prefix: Callable[[int], Sequence[str]] = lambda _: (),
    ) -> None:
        self.directory = directory
        self._ports = None if members else Ports(nodes)
        self.members = plan(nodes, directory, self._ports.base) if self._ports else list(members)
        prepare(self.members, directory)
        self._environ = {key: value for key, value in os.environ.items() if not key.startswith("NEBULA_")}
        # One variable for nodes and clients: NEBULA_RPC_ENGINE=grpcio runs a whole suite on the other engine.
        self._environ.update({"NEBULA_LOG_FORMAT": "json", VARIABLE: engine_of().name, **(environ or {})})
        self._node_environ = node_environ
        self._prefix = prefix
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill what still runs."""
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
        for process in self._processes.values():
            process.wait()
        if self._ports:
            self._ports.close()

    @property
    def all(self) -> range:
        """Every node's number."""
        return range(len(self.members))

    @property
    def running(self) -> list[int]:
        """Nodes whose process lives."""
        return [node for node, process in sorted(self._processes.items()) if process.poll() is None]

    @property
    def endpoints(self) -> list[str]:
        """Client addresses, by node."""
        return [member.config.client_addr for member in self.members]

    def data_dir(self, node: int) -> Path:
        """Where it keeps its data."""
        return self.members[node].config.data_dir

    def log_file(self, node: int) -> Path:
        """Its stderr, of all its starts."""
        return self.directory / f"n{node + 1}.log"

    def pid(self, node: int) -> int:
        """The pid of its last start."""
        return self._processes[node].pid

    def start(self, *nodes: int) -> None:
        """Start these nodes (none named: all). Doesn't wait."""
        for node in nodes or self.all:
            if node in self.running:
                raise ClusterError(f"n{node + 1} runs already")
            with self.log_file(node).open("ab") as log:
                command = [sys.executable, "-m", "nebuladb.server.main", "start", "--config"]
                self._processes[node] = subprocess.Popen(
                    [*self._prefix(node), *command, str(self.members[node].file)],
                    env={**self._environ, **self._node_environ(node)},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    process_group=0,
                )

    def kill(self, *nodes: int) -> None:
        """SIGKILL, all of them before any is waited for."""
        for node in nodes:
            self._processes[node].kill()
        for node in nodes:
            self._processes[node].wait()

    def stop(self, *nodes: int) -> list[int]:
        """SIGTERM and wait (none named: all that run); the exit codes."""
        chosen = nodes or tuple(self.running)
        for node in chosen:
            self._processes[node].terminate()
        codes = []
        for node in chosen:
            try:
                codes.append(self._processes[node].wait(STOP_SECONDS))
            except subprocess.TimeoutExpired:
                raise ClusterError(f"n{node + 1} did not stop after SIGTERM: {self._log_tail(node)}") from None
        return codes

    def wait_exit(self, node: int, seconds: float = READY_SECONDS) -> int:
        """The exit code of a node that ends by itself."""
        try:
            return self._processes[node].wait(seconds)
        except subprocess.TimeoutExpired:
            raise ClusterError(f"n{node + 1} still runs after {seconds:g} s: {self._log_tail(node)}") from None

    @contextmanager
    def paused(self, *nodes: int) -> Iterator[None]:
        """SIGSTOP for a while."""
        for node in nodes:
            os.kill(self.pid(node), signal.SIGSTOP)
        try:
            yield
        finally:
            for node in nodes:
                if node in self.running:
                    os.kill(self.pid(node), signal.SIGCONT)

    def admin(self, node: int, path: str) -> tuple[int, str]:
        """Status code and text of a page of its admin port; (0, why) if nobody answers."""
        url = f"http://{self.members[node].config.admin_addr}{path}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(url, timeout=HTTP_SECONDS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def status(self, node: int) -> dict[str, Any] | None:
        """Its /status, or None if it doesn't answer."""
        code, text = self.admin(node, "/status")
        if code != 200:
            return None
        status: dict[str, Any] = json.loads(text)
        return status

    def metric(self, node: int, name: str) -> float | None:
        """A sample without labels from its /metrics."""
        for line in self.admin(node, "/metrics")[1].splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        return None

    def ready(self, node: int) -> bool:
        """Whether this node's own process answers /readyz with 200."""
        if self.admin(node, "/readyz")[0] != 200:
            return False
        status = self.status(node)
        return status is not None and status["pid"] == self.pid(node)

    def wait_ready(self, *nodes: int, seconds: float = READY_SECONDS) -> None:
        """Until these are ready (none named: all). Raises `ClusterError` as soon as one of them is dead."""
        waiting = list(nodes or self.all)
        deadline = time.monotonic() + seconds
        while True:
            for node in waiting:
                code = self._processes[node].poll()
                if code is not None:
                    raise ClusterError(f"n{node + 1} exited with {code}: {self._log_tail(node)}")
            waiting = [node for node in waiting if not self.ready(node)]
            if not waiting:
                return
            if time.monotonic() > deadline:
                node = waiting[0]
                code, why = self.admin(node, "/readyz")
                raise ClusterError(
                    f"n{node + 1} is not ready after {seconds:g} s: {code} {why.strip()}: {self._log_tail(node)}"
                )
            time.sleep(POLL_SECONDS)

    def leadership(self, group: int = DEFAULT_GROUP) -> tuple[int, int] | None:
        """(term, node) of a group's leader, as it says itself; of several claims the newest. None: there is none."""
        claims = []
        for node in self.running:
            status = self.status(node) or {"groups": []}
            claims += [
                (int(entry["term"]), node)
                for entry in status["groups"]
                if entry["group"] == group and entry["role"] == "leader"
            ]
        return max(claims, default=None)

    def leader(self, group: int = DEFAULT_GROUP, seconds: float = READY_SECONDS) -> int:
        """The node that leads `group`, once one does."""
        found: list[tuple[int, int]] = []

        def look() -> bool:
            leadership = self.leadership(group)
            found.extend([leadership] if leadership else [])
            return leadership is not None

        self.wait_for(look, f"group {group} has a leader", seconds)
        return found[-1][1]

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = READY_SECONDS) -> None:
        """Until `condition()`; raises `ClusterError` that says `what` did not come true."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise ClusterError(f"not within {seconds:g} s: {what}")
            time.sleep(POLL_SECONDS)

    def log_tails(self) -> str:
        """The ends of the nodes' logs, for a report."""
        return "\n".join(self._log_tail(node) for node in self.all)

    def _log_tail(self, node: int) -> str:
        with contextlib.suppress(OSError):
            return f"its log ends with:\n{self.log_file(node).read_text(errors='replace')[-LOG_TAIL:]}"
        return "it has no log"

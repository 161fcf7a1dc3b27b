"""The compose cluster under test: its containers, its nodes, its ports."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from nebuladb.ids import DEFAULT_GROUP
from nebuladb.server.dev import PORTS_PER_NODE
from tests.integration.cluster import Ports, is_free
from tools.compose_test.engine import Engine
from tools.compose_test.image import ROOT
from tools.compose_test.shell import Failure, run, wait

FILE: Final = ROOT / "deploy" / "compose.yaml"
NODES: Final = ("n1", "n2", "n3")
BASE_PORT: Final = 7379
"""The contract's."""
LEADER_SECONDS: Final = 60.0
HTTP_SECONDS: Final = 6.0
LOG_LINES: Final = 15
"""Of each node, in a failure."""


class Project:
    """deploy/compose.yaml under a name of its own, with the image `tag`. `base` is the first node's client port."""

    def __init__(self, engine: Engine, name: str, tag: str, scratch: Path, base: int) -> None:
        self.engine = engine
        self.name = name
        self.base = base
        self._environ = {**engine.environ, "NEBULADB_IMAGE": tag}
        self._files: list[str | Path] = ["--file", FILE]
        if base != BASE_PORT:
            override = scratch / "ports.yaml"
            override.write_text(ports_override(base))
            self._files += ["--file", override]

    # compose

    def compose(self, *words: str, seconds: float = 180.0) -> str:
        """What `docker compose WORDS` prints. Raises `Failure`."""
        command = ["docker", "compose", "--project-name", self.name, *self._files, *words]
        return run(command, environ=self._environ, seconds=seconds)

    def up(self, *words: str, seconds: float) -> None:
        """All three nodes run and are healthy, within `seconds`."""
        self.compose(
            *("up", "--detach", "--no-build", "--wait", "--wait-timeout", str(int(seconds)), *words),
            seconds=seconds + 60,
        )

    def down(self) -> None:
        """Remove all there is, and see that nothing is left."""
        self.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "20")
        label = f"label=com.docker.compose.project={self.name}"
        for what, words in (
            ("containers", ["ps", "--all"]),
            ("volumes", ["volume", "ls"]),
            ("networks", ["network", "ls"]),
        ):
            left = self.engine.docker(*words, "--quiet", "--filter", label).split()
            if left:
                raise Failure(f"{what} are left after `down`: {', '.join(left)}")

    def inspect(self, node: str) -> dict[str, Any]:
        """What the engine knows of a node's container."""
        found: list[dict[str, Any]] = json.loads(self.engine.docker("inspect", self.container(node)))
        return found[0]

    def container(self, node: str) -> str:
        """Its name."""
        return f"{self.name}-{node}-1"

    def inside(self, node: str, *words: str) -> str:
        """What a command prints in a node's container."""
        return self.compose("exec", "--no-TTY", node, *words)

    def logs(self) -> str:
        """What the nodes said last."""
        with contextlib.suppress(Failure):
            return self.compose("logs", "--no-color", "--tail", str(LOG_LINES))
        return ""

    # nodes

    def endpoint(self, node: str) -> str:
        """Its client address, from here."""
        return f"127.0.0.1:{self.base + PORTS_PER_NODE * NODES.index(node)}"

    def page(self, node: str, page: str) -> bytes | None:
        """A page of its admin port; None if it doesn't answer."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        port = self.base + PORTS_PER_NODE * NODES.index(node) + 2
        try:
            with opener.open(f"http://127.0.0.1:{port}/{page}", timeout=HTTP_SECONDS) as answer:
                content: bytes = answer.read()
                return content
        except OSError:
            return None

    def groups(self, node: str) -> dict[int, dict[str, Any]]:
        """Its groups by id; empty if it doesn't answer."""
        status = self.page(node, "status")
        return {group["group"]: group for group in json.loads(status)["groups"]} if status else {}

    def node_id(self, node: str) -> int:
        """As its answers bear it."""
        status = self.page(node, "status")
        if status is None:
            raise Failure(f"{node} does not answer at its admin port")
        return int(json.loads(status)["node_id"], 16)

    def leader(self) -> str:
        """The node that leads the shard of `default`; of several claims that of the newest term."""
        found: list[tuple[int, str]] = []

        def look() -> bool:
            for node in NODES:
                group = self.groups(node).get(DEFAULT_GROUP)
                if group is not None and group["role"] == "leader":
                    found.append((group["term"], node))
            return bool(found)

        wait(look, "the shard of `default` has a leader", LEADER_SECONDS)
        return max(found)[1]

    # nebula-cli, on the host

    @property
    def cli_environ(self) -> Mapping[str, str]:
        """All endpoints, the first one first."""
        environ = {key: value for key, value in os.environ.items() if not key.startswith("NEBULA")}
        return {**environ, "NEBULA_ENDPOINTS": ",".join(map(self.endpoint, NODES)), "PYTHONDONTWRITEBYTECODE": "1"}

    def cli(self, *words: str, through: str | None = None, seconds: float = 120.0) -> str:
        """What `nebula-cli WORDS` prints here, asked of one node or of all."""
        endpoints = ["--endpoints", self.endpoint(through)] if through else []
        return run([_cli(), *endpoints, *words], environ=self.cli_environ, seconds=seconds)

    @contextmanager
    def background(self, log: IO[bytes], *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """`nebula-cli WORDS` while this lasts."""
        process = subprocess.Popen(
            [_cli(), *words], env=self.cli_environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def _cli() -> Path:
    return Path(sys.executable).with_name("nebula-cli")


def ports_override(base: int) -> str:
    """A compose file that publishes the nodes from `base` on instead."""
    lines = ["services:"]
    for number, node in enumerate(NODES):
        client = base + PORTS_PER_NODE * number
        ports = f'["127.0.0.1:{client}:7379", "127.0.0.1:{client + 2}:7381"]'
        lines += [f"  {node}:", f"    ports: !override {ports}"]
    return "\n".join([*lines, ""])


@contextmanager
def base_port() -> Iterator[int]:
    """The contract's ports if all of them are free, else others."""
    wanted = [BASE_PORT + PORTS_PER_NODE * number + offset for number in range(len(NODES)) for offset in (0, 2)]
    if all(map(is_free, wanted)):
        yield BASE_PORT
        return
    ports = Ports(len(NODES))
    try:
        yield ports.base
    finally:
        ports.close()

"""Clusters whose nodes come and go: some places found it, the others join when they are told to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from nebuladb.server.dev import plan
from tests.integration.cluster import Cluster, ClusterError, Ports

CLI_SECONDS: Final = 90.0
REMOVED_EXIT: Final = 3


class Growing(Cluster):
    """`places` places for nodes, the first `founders` of which found the cluster. The node at place i is n{i+1}."""

    def __init__(
        self,
        directory: Path,
        founders: int,
        places: int,
        node_environ: Callable[[int], Mapping[str, str]] = lambda _: {},
    ) -> None:
        self._range = Ports(places)
        planned = plan(places, directory, self._range.base)
        cluster = {one.config.name: one.config.peer_addr for one in planned[:founders]}
        founding = [replace(one, config=replace(one.config, initial_cluster=cluster)) for one in planned[:founders]]
        joining = [
            replace(one, config=replace(one.config, initial_cluster={}, join=planned[0].config.peer_addr))
            for one in planned[founders:]
        ]
        self.founders = founders
        super().__init__(directory, members=[*founding, *joining], node_environ=node_environ)

    def close(self) -> None:
        """Kill what still runs."""
        super().close()
        self._range.close()

    def name(self, place: int) -> str:
        """Of the node there."""
        return self.members[place].config.name

    def cli(self, *arguments: str, through: int | None = None) -> subprocess.CompletedProcess[str]:
        """Run nebula-cli against the node at `through`, or against all that run."""
        chosen = self.running if through is None else [through]
        environ = {key: value for key, value in os.environ.items() if not key.startswith("NEBULA_")}
        environ["NEBULA_ENDPOINTS"] = ",".join(self.endpoints[place] for place in chosen)
        return subprocess.run(
            [sys.executable, "-c", "from nebuladb.cli.main import main; main()", *arguments],
            capture_output=True,
            text=True,
            timeout=CLI_SECONDS,
            check=False,
            env=environ,
        )

    def done(self, *arguments: str, through: int | None = None) -> str:
        """Its stdout; raises `ClusterError` if it failed."""
        result = self.cli(*arguments, through=through)
        if result.returncode:
            raise ClusterError(f"nebula-cli {' '.join(arguments)}: {result.stderr}{self.log_tails()}")
        return result.stdout

    def listed(self, through: int | None = None) -> dict[str, dict[str, Any]]:
        """`member list`, by name."""
        rows = map(json.loads, self.done("-o", "json", "member", "list", through=through).splitlines())
        return {row["name"]: row for row in rows}

    def state(self, place: int) -> str:
        """As `member list` has it; empty: no member."""
        return str(self.listed().get(self.name(place), {}).get("state", ""))

    def enter(self, place: int, *, door: int) -> None:
        """Start the node at `place`, which was added; it joins by the node at `door`."""
        member = self.members[place]
        self.wipe(place)
        config = replace(member.config, initial_cluster={}, join=self.members[door].config.peer_addr)
        self.members[place] = replace(member, config=config)
        member.file.write_text(config.to_toml(member.directory), encoding="utf-8")
        self.start(place)

    def wipe(self, place: int) -> None:
        """Empty its directory, but for its configuration."""
        for path in self.data_dir(place).iterdir():
            if path != self.members[place].file:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def add(self, place: int) -> None:
        """`member add`, start, and wait until it is a member."""
        door = self.running[0]
        self.done("member", "add", self.name(place), "--peer-address", self.members[place].config.peer_addr)
        self.enter(place, door=door)
        self.wait_member(place)

    def wait_member(self, place: int) -> None:
        """Until it is one, and serves."""
        self.wait_for(lambda: self.state(place) == "member", f"{self.name(place)} is a member")
        self.wait_ready(place)

    def same_everywhere(self) -> None:
        """Raise `ClusterError` unless all replicas of all shards have the same hash."""
        result = self.cli("status", "--hash")
        if result.returncode:
            raise ClusterError(f"{result.stdout}{result.stderr}")

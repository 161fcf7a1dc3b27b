"""What the test does with a cluster in containers, a chapter a method."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import grpc

from nebuladb.ids import DEFAULT_GROUP
from nebuladb.server.lifecycle import EXIT_FORCED
from tools.compose_test import puts
from tools.compose_test.project import NODES, Project
from tools.compose_test.shell import Failure, wait
from tools.tree import EXCLUDE, Manifest, differences, files, in_database, manifest

UP_SECONDS: Final = 120.0
LOAD_SECONDS: Final = 900.0
SHOWN: Final = 5
"""Paths that a failure names."""
USER: Final = "7379"
MEMORY: Final = 512 << 20
PEAKS: Final = ("/sys/fs/cgroup/memory.peak", "/sys/fs/cgroup/memory/memory.max_usage_in_bytes")
"""Where the kernel says the most that a container took, page cache and all: cgroup v2, v1."""
NO_CAPABILITIES: Final = "0" * 16


class Story:
    """All of it. `tree` is the folder that gets loaded, `count` how many puts of 1 KiB there are besides; what takes
    longer than `patience` seconds has failed."""

    def __init__(
        self, project: Project, tree: Path, count: int, scratch: Path, say: Callable[[str], None], patience: float
    ) -> None:
        self.project = project
        self.tree = tree
        self.count = count
        self.scratch = scratch
        self.say = say
        self.patience = patience
        self.expected: Manifest = manifest(tree)
        self.size = sum(digest.size for digest in self.expected.values())
        self.chapter = "start"
        self.dead = ""
        """The node whose container was killed."""

    def run(self) -> None:
        """Raises `Failure` at the first thing that is not as it should be; `chapter` says where that was."""
        for chapter in (
            self.start, self.confine, self.use, self.load, self.survivors, self.revive, self.restart_by_itself,
            self.recreate, self.read_back, self.many_puts, self.watched, self.back_up, self.drain,
        ):  # fmt: skip
            self.chapter = chapter.__name__
            chapter()

    def start(self) -> None:
        """`docker compose up` waits until all three are healthy."""
        began = time.monotonic()
        self.project.up(seconds=self.patience)
        for node in NODES:
            health = self.project.inspect(node)["State"]["Health"]
            if health["Status"] != "healthy" or health["Log"][-1]["Output"].strip() != "ok":
                raise Failure(f"{node} is {health}")
        self.say(f"Three nodes are healthy after {time.monotonic() - began:.1f} s.")

    def confine(self) -> None:
        """Each container is as deploy/compose.yaml promises, seen from outside and from inside."""
        for node in NODES:
            host = self.project.inspect(node)["HostConfig"]
            wanted = {"ReadonlyRootfs": True, "CapDrop": ["ALL"], "Memory": MEMORY, "MemorySwap": MEMORY}
            found = {key: host[key] for key in wanted}
            if found != wanted:
                raise Failure(f"{node}: {found}")
            status = self._status_of_nebulad(node)
            if (
                status["Uid"].split() != [USER] * 4
                or status["CapEff"] != NO_CAPABILITIES
                or status["NoNewPrivs"] != "1"
            ):
                raise Failure(f"{node}'s nebulad runs as {status['Uid']!r} with capabilities {status['CapEff']}")
            tried = self.project.engine.attempt("exec", self.project.container(node), "touch", "/opt/nebula/x")
            if tried.returncode == 0 or b"Read-only file system" not in tried.stderr:
                raise Failure(f"{node} could write outside of its volume: {tried.stderr.decode(errors='replace')}")
        self.say("No root, no capability, a read-only root file system, 512 MiB each.")

    def _status_of_nebulad(self, node: str) -> dict[str, str]:
        """/proc/PID/status of the process that serves; process 1 is the engine's init."""
        # Neither the init, whose arguments name the program too, nor this search.
        is_it = "tr '\\0' ' ' < $p/cmdline | grep -q 'python3 [^ ]*[n]ebulad start'"
        find = f"for p in /proc/[0-9]*; do {is_it} && cat $p/status; done 2>/dev/null; true"
        text = self.project.inside(node, "sh", "-c", find)
        last = text.rpartition("Name:")[2]
        return {key: value.strip() for key, _, value in (line.partition(":") for line in last.splitlines()[1:])}

    def use(self) -> None:
        """A put through each published port, and what it wrote read through the next one and inside."""
        for number, node in enumerate(NODES):
            other = NODES[(number + 1) % len(NODES)]
            self.project.cli("put", "greeting", f"hello from {node}", through=node)
            for found in (
                self.project.cli("get", "greeting", through=other),
                self.project.inside(other, "nebula-cli", "get", "greeting"),
            ):
                if found != f"hello from {node}\n":
                    raise Failure(f"put through {node}, and {other} says {found!r}")
        self.project.cli("del", "greeting")
        self.say("Puts through each port are seen through the next, and by nebula-cli in the containers.")

    def load(self) -> None:
        """`nebula-cli load` stores the tree; at a third of it the leader's container is killed, and it goes on."""
        project = self.project
        third = self._revision(NODES) + sum(digest.writes for digest in self.expected.values()) // 3
        with (
            (self.scratch / "load.log").open("wb") as log,
            project.background(log, "load", *(f"--exclude={name}" for name in EXCLUDE), str(self.tree)) as loader,
        ):

            def reached(target: int) -> bool:
                if loader.poll() is not None:
                    raise Failure(f"nebula-cli load ended with {loader.returncode} before the leader was killed in it")
                return self._revision(NODES) >= target

            wait(lambda: reached(third), "a third of the load is stored", LOAD_SECONDS)
            self.dead = project.leader()
            project.engine.docker("kill", project.container(self.dead))
            died = time.monotonic()
            leader = project.leader()
            more = self._revision(self._alive()) + 1
            # Two thirds were to come, so that a loader that has ended wrote without the leader, too.
            wait(
                lambda: self._revision(self._alive()) >= more or loader.poll() is not None,
                "writes go on without the leader",
                self.patience,
            )
            took = time.monotonic() - died
            wait(lambda: loader.poll() is not None, "the load ends", LOAD_SECONDS)
            if loader.returncode != 0:
                said = (self.scratch / "load.log").read_text(errors="replace")
                raise Failure(f"nebula-cli load ended with {loader.returncode}: {said[-500:]}")
        self.say(
            f"Loaded {len(self.expected):,} files, {self.size / (1 << 20):.0f} MiB; a third of the way {self.dead}'s "
            f"container, the leader's, was killed; {leader} took over, and writes went on after {took:.1f} s."
        )

    def survivors(self) -> None:
        """Two nodes serve, reads and writes, through either."""
        for node in self._alive():
            self.project.cli("put", "still", f"served by {node}", through=node)
            if self.project.cli("get", "still", through=node) != f"served by {node}\n":
                raise Failure(f"{node} lost a write")
        self.project.cli("del", "still")
        self._compare(self._alive())

    def revive(self) -> None:
        """The dead one's container starts again, and catches up with what it missed."""
        began = time.monotonic()
        alive = self._alive()
        first = self.project.groups(alive[0])
        target = {group: max(self.project.groups(node)[group]["committed"] for node in alive) for group in first}
        self.project.compose("start", self.dead)

        def caught_up() -> bool:
            groups = self.project.groups(self.dead)
            return all(group in groups and groups[group]["applied"] >= index for group, index in target.items())

        wait(caught_up, f"{self.dead} catches up", self.patience)
        wait(lambda: self._healthy(self.dead), f"{self.dead} is healthy again", self.patience)
        self.say(f"{self.dead} started again and caught up in {time.monotonic() - began:.1f} s.")

    def restart_by_itself(self) -> None:
        """A node that dies without anybody's wish is started again by the restart policy."""
        node = self.project.leader()
        before = self.project.inspect(node)
        # As the out-of-memory killer would: SIGKILL to nebulad, and the container's process 1 ends with it.
        self.project.inside(node, "sh", "-c", "kill -9 $(cat /var/lib/nebula/nebulad.pid)")
        count = before["RestartCount"] + 1
        wait(lambda: bool(self.project.inspect(node)["RestartCount"] >= count), f"{node} restarts", self.patience)
        wait(lambda: self._healthy(node), f"{node} is healthy after its restart", self.patience)
        self.say(f"{node}'s process was killed, and the restart policy brought it back.")

    def recreate(self) -> None:
        """New containers for all three, on the same volumes."""
        before = {node: self.project.inspect(node)["Id"] for node in NODES}
        self.project.up("--force-recreate", seconds=self.patience)
        kept = [node for node in NODES if self.project.inspect(node)["Id"] == before[node]]
        if kept:
            raise Failure(f"the containers of {', '.join(kept)} were not recreated")
        self.say("All three containers were removed and made anew, on the same volumes.")

    def read_back(self) -> None:
        """Every file, through every node."""
        self._compare(NODES)
        self.project.cli("--timeout", "60", "check")
        self.say(f"All {len(self.expected):,} files read back through each node: every SHA-256 is right; states agree.")

    def many_puts(self) -> None:
        """Puts of 1 KiB, within the memory limit."""
        self.project.cli("--timeout", "60", "keyspace", "create", puts.KEYSPACE, "--partitioning", "single")
        endpoints = [self.project.endpoint(node) for node in NODES]
        seconds = puts.put(endpoints, self.count)
        puts.verify(endpoints, self.count)
        for node in NODES:
            container = self.project.inspect(node)
            if container["State"]["OOMKilled"] or container["RestartCount"] or not self._healthy(node):
                raise Failure(f"{node} did not bear {self.count:,} puts: {container['State']}")
        peaks = {node: self._peak(node) for node in NODES}
        self.say(
            f"{self.count:,} puts of 1 KiB in {seconds:.0f} s, {self.count / seconds:,.0f} a second, all read back. "
            f"Most memory, page cache included, of 512 MiB: "
            + ", ".join(f"{node} {peak >> 20} MiB" for node, peak in peaks.items() if peak is not None)
            + "; of the processes: "
            + ", ".join(f"{node} {self._resident(node) >> 20} MiB" for node in NODES)
            + "."
        )

    def watched(self) -> None:
        """What dashboard and alerts ask for is in what the nodes show now."""
        from tools.dashboards import expressions
        from tools.promql import metrics

        names = {name for expression in expressions() for name in metrics(expression)} - {"up"}
        for node in NODES:
            page = (self.project.page(node, "metrics") or b"").decode()
            missing = {name for name in names if f"\n{name}{{" not in page and f"\n{name} " not in page}
            # A kind of work that was never late, an alarm that was never raised: the family is there without a sample.
            missing = {name for name in missing if f"# TYPE {name.removesuffix('_total')}" not in page}
            if missing:
                raise Failure(f"{node}'s /metrics lacks {', '.join(sorted(missing))}")
        self.say(f"Each node's /metrics has the {len(names)} metrics of dashboard and alerts.")

    def back_up(self) -> None:
        """A backup by nebula-cli in a container, as deploy/README.md says, whole when checked here."""
        backup = self.scratch / "backup.snap"
        node = NODES[0]
        inside = "/var/lib/nebula/backup.snap"
        self.project.inside(node, "nebula-cli", "snapshot", "save", inside)
        self.project.compose("cp", f"{node}:{inside}", str(backup))
        self.project.inside(node, "rm", inside)
        self.project.cli("snapshot", "verify", str(backup))
        self.say(f"A backup of {backup.stat().st_size >> 20} MiB was made inside and verified outside.")

    def drain(self) -> None:
        """SIGTERM ends each node in order. One after the other: a node gives itself 15 s, and three at once that write
        what they have in memory to one disk may need them."""
        for node in NODES:
            self.project.compose("stop", node)
        ends = {node: self.project.inspect(node)["State"]["ExitCode"] for node in NODES}
        for node, code in ends.items():
            if not ended_in_order(code, self.project.compose("logs", "--no-color", "--tail", "50", node)):
                raise Failure(f"{node} did not drain at `docker compose stop`; the exit codes are {ends}")
        late = [node for node, code in ends.items() if code != 0]
        said = f"; {', '.join(late)} had no time left to close its files" if late else " and exited 0"
        self.say(f"`docker compose stop`: each node drained{said}.")

    # questions

    def _alive(self) -> list[str]:
        return [node for node in NODES if node != self.dead]

    def _healthy(self, node: str) -> bool:
        state: dict[str, Any] = self.project.inspect(node)["State"]
        return bool(state["Running"]) and state["Health"]["Status"] == "healthy"

    def _revision(self, nodes: tuple[str, ...] | list[str]) -> int:
        found = (self.project.groups(node).get(DEFAULT_GROUP) for node in nodes)
        return max((int(group["revision"]) for group in found if group), default=0)

    def _compare(self, nodes: tuple[str, ...] | list[str]) -> None:
        for node in nodes:
            try:
                found = in_database(self.project.endpoint(node), self.project.node_id(node))
            except (ValueError, grpc.RpcError) as error:
                raise Failure(f"reading back through {node}: {error}") from error
            wrong = differences(self.expected, found, self.tree)
            if wrong:
                names = ", ".join(str(path, "utf-8", "replace") for path in wrong[:SHOWN])
                raise Failure(f"{node}: {len(wrong)} files differ from the disk: {names}")

    def _peak(self, node: str) -> int | None:
        for place in PEAKS:
            said = self.project.engine.attempt("exec", self.project.container(node), "cat", place)
            if said.returncode == 0:
                return int(said.stdout)
        return None

    def _resident(self, node: str) -> int:
        return int(self._status_of_nebulad(node)["VmHWM"].split()[0]) << 10


def ended_in_order(code: int, log: str) -> bool:
    """Whether a node that was told to stop drained, by its exit code and its log. On a machine that is busy enough it
    has drained and is ended by its own clock while it closes its files; that is no fault of the image."""
    return code in (0, EXIT_FORCED) and '"event": "stopped"' in log


def part_of(tree: Path, most: int, target: Path) -> Path:
    """A copy of the first `most` bytes' worth of files below `tree`, in `target`."""
    size = 0
    for path, place in files(tree):
        size += place.lstat().st_size
        if size > most:
            break
        copy = target / path.decode(errors="surrogateescape")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place, copy)
    return target

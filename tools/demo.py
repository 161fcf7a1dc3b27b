"""``make demo``: three nodes, every file of Python's standard library, and a leader that dies in the middle.

Exits 0 only if, after all that, every file reads back the same through each node that stayed, and the revived node's
state has the same hash as theirs.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import grpc

from nebuladb.client.methods import STATE_HASH
from nebuladb.ids import DEFAULT_GROUP
from nebuladb.pb.nebula.v1 import cluster_pb2
from tools.devcluster import NODES, DevCluster, Failure
from tools.tree import EXCLUDE, differences, in_database, manifest

LOAD_SECONDS: Final = 900.0
LOOK_SECONDS: Final = 0.02
"""Between two looks for a third of the load: a small tree is stored within a second, and the leader must die in it."""
FAILOVER_SECONDS: Final = 60.0
CATCH_UP_SECONDS: Final = 300.0
HASH_SECONDS: Final = 120.0
DISK_FACTOR: Final = 8
"""Bytes on disk a loaded byte, at most: log and data on three nodes, and RocksDB's room to compact."""
SHOWN: Final = 5
"""Paths that a failure names."""


class Demo:
    """The story, a chapter a method. `say` is told each line; `tree` is what gets loaded."""

    def __init__(self, tree: Path, directory: Path, say: Callable[[str], None]) -> None:
        self.tree = tree
        self.cluster = DevCluster(directory)
        self.say = say
        self.expected = manifest(tree)
        self.size = sum(digest.size for digest in self.expected.values())
        self.dead = -1

    def run(self) -> None:
        """All of it. Raises `Failure` at the first thing that is not as it should be."""
        began = time.monotonic()
        free = shutil.disk_usage(self.cluster.directory).free
        if free < DISK_FACTOR * self.size:
            raise Failure(
                f"{self.cluster.directory} has {_mib(free)} free; the demo wants {_mib(DISK_FACTOR * self.size)}: "
                "set TMPDIR to a larger place"
            )
        try:
            self.start()
            self.load()
            self.read_back()
            self.revive()
            self.compare()
        except Failure:
            self.say(f"--- the end of the log ---\n{self.cluster.log_tail()}\n---")
            raise
        finally:
            self.cluster.stop()
        self.say(f"Nothing was lost, and nobody had to help. {time.monotonic() - began:.0f} s.")

    def start(self) -> None:
        """Three nodes found a cluster."""
        began = time.monotonic()
        self.cluster.start()
        self.say(
            f"Three nodes are up after {time.monotonic() - began:.1f} s, at {', '.join(self.cluster.endpoints)}; "
            f"{self.cluster.name(self.cluster.leader())} leads."
        )

    def load(self) -> None:
        """`nebula-cli load` stores the tree; at a third of it the leader is killed, and the load goes on by itself."""
        cluster = self.cluster
        self.say(f"Loading {len(self.expected):,} files, {_mib(self.size)} ...")
        began = time.monotonic()
        loader = cluster.load([*(f"--exclude={pattern}" for pattern in EXCLUDE), str(self.tree)])
        third = sum(digest.writes for digest in self.expected.values()) // 3

        def revision() -> int:
            found = (cluster.groups(node).get(DEFAULT_GROUP) for node in self._alive())
            return max((int(group["revision"]) for group in found if group), default=0)

        def third_stored() -> bool:
            if loader.poll() is not None:
                raise Failure(f"nebula-cli load ended with {loader.returncode} before the leader could be killed in it")
            return revision() >= third

        cluster.wait(third_stored, "a third of the load is stored", LOAD_SECONDS, LOOK_SECONDS)
        victim = cluster.leader()
        pid = cluster.kill(victim)
        self.dead = victim
        died = time.monotonic()
        self.say(f"... a third is in. kill -9 for the leader: {cluster.name(victim)}, pid {pid}.")
        successor = cluster.leader()
        # What the dead one had still sent out may be applied until here; from here on it is the successor's work.
        # A quick successor can be through with all of the rest by now: then the load has ended well.
        more = revision() + 1
        cluster.wait(
            lambda: loader.poll() is not None or revision() >= more,
            "writes go on without the dead leader",
            FAILOVER_SECONDS,
        )
        took = time.monotonic() - died
        self.say(f"... {cluster.name(successor)} took over; writes went on {took:.1f} s after the kill.")
        cluster.wait(lambda: loader.poll() is not None, "the load ends", LOAD_SECONDS)
        if loader.returncode != 0:
            raise Failure(f"nebula-cli load ended with {loader.returncode}")
        self.say(f"... all stored after {time.monotonic() - began:.0f} s; the load was never told of a failure.")

    def read_back(self) -> None:
        """Every file through each living node, compared with the disk by SHA-256."""
        for node in self._alive():
            began = time.monotonic()
            status = self.cluster.status(node)
            if status is None:
                raise Failure(f"{self.cluster.name(node)} does not answer")
            try:
                found = in_database(self.cluster.endpoints[node], int(status["node_id"], 16))
            except (ValueError, grpc.RpcError) as error:
                raise Failure(f"reading back through {self.cluster.name(node)}: {error}") from error
            wrong = differences(self.expected, found, self.tree)
            if wrong:
                names = ", ".join(map(os.fsdecode, wrong[:SHOWN]))
                raise Failure(f"{self.cluster.name(node)}: {len(wrong)} files differ from the disk: {names}")
            self.say(
                f"Read {len(found):,} files back through {self.cluster.name(node)} in "
                f"{time.monotonic() - began:.1f} s: every SHA-256 is right."
            )

    def revive(self) -> None:
        """The dead node starts on its old directory and catches up."""
        cluster, node = self.cluster, self.dead
        began = time.monotonic()
        target = {
            group: max(cluster.groups(other)[group]["committed"] for other in self._alive())
            for group in cluster.groups(self._alive()[0])
        }
        before = target[DEFAULT_GROUP]
        cluster.revive(node)

        def caught_up() -> bool:
            groups = cluster.groups(node)
            return all(group in groups and groups[group]["applied"] >= index for group, index in target.items())

        cluster.wait(caught_up, f"{cluster.name(node)} catches up to log index {before}", CATCH_UP_SECONDS)
        self.dead = -1
        self.say(
            f"{cluster.name(node)} is back and caught up to log index {before} in {time.monotonic() - began:.1f} s."
        )

    def compare(self) -> None:
        """The hash of every group's state, at one log index, on all three nodes."""
        for group in sorted(self.cluster.groups(0)):
            index, hashes = self._hashes(group)
            if len(set(hashes.values())) != 1:
                shown = ", ".join(f"{self.cluster.name(node)} {found.hex()}" for node, found in hashes.items())
                raise Failure(f"the states of group {group} differ at log index {index}: {shown}")
            if group == DEFAULT_GROUP:
                self.say(f"State hash at log index {index} on all three nodes: {hashes[0].hex()}.")

    def _hashes(self, group: int) -> tuple[int, dict[int, bytes]]:
        """Log index, and node → hash there. The first node makes the log entry that orders it."""
        index = self._state_hash(0, group, 0).index
        return index, {node: self._state_hash(node, group, index).hash for node in range(NODES)}

    def _state_hash(self, node: int, group: int, index: int) -> cluster_pb2.StateHashResponse:
        """What a node says of a group's hash at `index`; 0 orders one."""
        request = cluster_pb2.StateHashRequest(group=group, index=index)
        try:
            with grpc.insecure_channel(self.cluster.endpoints[node]) as channel:
                ask: Any = channel.unary_unary(
                    STATE_HASH.path,
                    request_serializer=cluster_pb2.StateHashRequest.SerializeToString,
                    response_deserializer=STATE_HASH.answer.FromString,
                )
                found: cluster_pb2.StateHashResponse = ask(request, timeout=HASH_SECONDS, wait_for_ready=True)
        except grpc.RpcError as error:
            raise Failure(f"{self.cluster.name(node)} gives no hash of group {group}: {error}") from error
        return found

    def _alive(self) -> list[int]:
        return [node for node in range(NODES) if node != self.dead]


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"


def _say(text: str) -> None:
    print(text, flush=True)


def _terminated(*_: object) -> None:
    sys.exit(128 + signal.SIGTERM)


def main(arguments: list[str] | None = None, make: Callable[[Path, Path, Callable[[str], None]], Demo] = Demo) -> int:
    """The exit code. `make` builds the demo."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description=__doc__)
    parser.add_argument("--tree", type=Path, help="load this directory; default: Python's standard library")
    tree = parser.parse_args(arguments).tree
    if tree is None:
        tree = Path(sysconfig.get_path("stdlib"))
        _say(f"NebulaDB's demo, with the standard library of Python {platform.python_version()}.")
    with tempfile.TemporaryDirectory(prefix="nebula-demo-") as directory:
        try:
            make(tree, Path(directory), _say).run()
        except Failure as failure:
            print(f"FAILED: {failure}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)  # so that everything is ended in order
    sys.exit(main())

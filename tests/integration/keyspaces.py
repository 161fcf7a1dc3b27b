"""Keyspaces are created and dropped while nodes are killed: each ends fully there or fully gone, on all nodes.

``python -m tests.integration.keyspaces --rounds 30 [--seed S]``. After each round registries, meta and routing of all
nodes agree; in the end, no stopped node has a row of a dropped shard. The last line of stdout has the numbers; exit
code 1 on a violation. With --self-test one replica is wiped off a stopped node, and the exit code is 0 only if the
last comparison found that.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nebuladb.client import AsyncClient
from nebuladb.errors import NebulaError
from nebuladb.ids import DEFAULT_GROUP, ETCD_GROUP, META_GROUP, BatchId, GroupId
from nebuladb.kv.store import Store
from nebuladb.node import memory
from nebuladb.node.registry import GroupState, RegistryRow
from nebuladb.pb.nebula.v1 import keyspace_pb2
from nebuladb.server.directory import DataDirectory
from nebuladb.storage.log_batch import LogBatch
from nebuladb.storage.rocks import RocksMemory
from tests.integration.cluster import Cluster, ClusterError

NAMES: Final = ("a", "b", "c", "d")
SHARDS: Final = (1, 12)
KEYS: Final = 40
"""Written to each keyspace that was created, so that a drop has something to remove."""
KILL_AFTER: Final = 0.35
"""The kill comes within so many seconds of the request; creating takes about 0.15 s, dropping 0.05 s."""
DOWN_SECONDS: Final = 0.8
CALL_SECONDS: Final = 20.0
SETTLE_SECONDS: Final = 60.0
FOUNDED: Final = {META_GROUP: "", DEFAULT_GROUP: "default", ETCD_GROUP: "etcd"}


@dataclass(slots=True)
class Report:
    """What a campaign did and found."""

    rounds: int = 0
    created: int = 0
    dropped: int = 0
    unknown: int = 0
    """Requests that failed or whose outcome the client wasn't told."""
    kills: int = 0
    leader_kills: int = 0
    """Of the meta group's leader."""
    groups: int = 0
    """Shards that existed at some time."""
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)

    def line(self) -> str:
        """One line of key=value pairs."""
        return (
            f"rounds={self.rounds} created={self.created} dropped={self.dropped} unknown={self.unknown} "
            f"kills={self.kills} leader_kills={self.leader_kills} groups={self.groups} "
            f"violations={len(self.violations)} seconds={self.seconds:.1f}"
        )


class Campaign:
    """Rounds over one started cluster; `run` stops at the first violation and stops the cluster at its end."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self._cluster = cluster
        self._rng = random.Random(seed)
        self._exists: dict[str, bool] = dict.fromkeys(NAMES, False)
        self._live: set[int] = set(FOUNDED)
        self._ever: set[int] = set(FOUNDED)
        self.report = Report()

    async def run(self, rounds: int) -> Report:
        """Run `rounds` rounds, then look at the disks."""
        began = time.monotonic()
        report = self.report
        try:
            for _ in range(rounds):
                await self._round()
                say(f"round {report.rounds}/{rounds}: {report.line()}")
                if report.violations:
                    break
            await asyncio.to_thread(self._cluster.stop)
        except ClusterError as error:
            report.violations.append(f"{error}; {self._cluster.log_tails()}")
        else:
            report.violations += self.leftovers()
        report.groups = len(self._ever)
        report.seconds = time.monotonic() - began
        return report

    async def _round(self) -> None:
        name = self._rng.choice(NAMES)
        create = not self._exists[name] or self._rng.random() < 0.2
        request = asyncio.create_task(self._create(name) if create else self._drop(name))
        await asyncio.sleep(self._rng.random() * KILL_AFTER)
        victims = self._rng.sample(list(self._cluster.all), self._rng.randint(1, len(self._cluster.all)))
        leadership = await asyncio.to_thread(self._cluster.leadership, META_GROUP)
        await asyncio.to_thread(self._cluster.kill, *victims)
        self.report.kills += len(victims)
        self.report.leader_kills += leadership is not None and leadership[1] in victims
        await asyncio.sleep(self._rng.random() * DOWN_SECONDS)
        self._cluster.start(*victims)
        done = await request
        await asyncio.to_thread(self._cluster.wait_ready)
        await self._settle(name, create, done)
        self.report.rounds += 1

    async def _create(self, name: str) -> bool:
        """Whether the client was told that it is there."""
        shards = self._rng.randint(*SHARDS)
        async with AsyncClient(self._cluster.endpoints) as client:
            try:
                if self._exists[name]:
                    await client.drop_keyspace(name, timeout=CALL_SECONDS)
                await client.create_keyspace(name, shards=shards, timeout=CALL_SECONDS)
            except NebulaError:
                self.report.unknown += 1
                return False
        self.report.created += 1
        return True

    async def _drop(self, name: str) -> bool:
        async with AsyncClient(self._cluster.endpoints) as client:
            try:
                await client.drop_keyspace(name, timeout=CALL_SECONDS)
            except NebulaError:
                self.report.unknown += 1
                return False
        self.report.dropped += 1
        return True

    async def _settle(self, name: str, create: bool, done: bool) -> None:
        """Until all nodes agree, then whether what was acknowledged is so, and every key can be written and read."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            keyspaces, wrong = await self._compare()
            if not wrong:
                break
            if time.monotonic() > deadline:
                self.report.violations += wrong
                return
            await asyncio.sleep(0.1)
        self._exists = {other: other in keyspaces for other in NAMES}
        self._live = set(FOUNDED) | {shard.group for info in keyspaces.values() for shard in info.shards}
        self._ever |= self._live
        if done and create != self._exists[name]:
            self.report.violations.append(f"{name} was said to be {'created' if create else 'dropped'}, and is not")
        if self._exists[name]:
            await self._use(name)

    async def _compare(self) -> tuple[dict[str, keyspace_pb2.KeyspaceInfo], list[str]]:
        """The keyspaces that users made, and where a node has other replicas than the descriptors say."""
        wrong: list[str] = []
        keyspaces: dict[str, keyspace_pb2.KeyspaceInfo] = {}
        seen: set[bytes] = set()
        for node in self._cluster.all:
            status = await asyncio.to_thread(self._cluster.status, node)
            try:
                async with AsyncClient([self._cluster.endpoints[node]]) as client:
                    infos = await client.keyspaces()
            except NebulaError as error:
                return {}, [f"n{node + 1}: {error}"]
            if status is None:
                return {}, [f"n{node + 1} does not answer"]
            keyspaces = {info.name: info for info in infos if info.name not in FOUNDED.values()}
            seen.add(b"".join(info.SerializeToString(deterministic=True) for info in infos))
            node_id = int(status["node_id"], 16)
            expected = {
                shard.group: replica.replica_id
                for info in keyspaces.values()
                for shard in info.shards
                for replica in shard.replicas
                if replica.node_id == node_id
            }
            found = {entry["group"]: entry["replica"] for entry in status["groups"] if entry["group"] not in FOUNDED}
            if found != expected:
                wrong.append(f"n{node + 1} has the replicas {found}, and should have {expected}")
            leaderless = [entry["group"] for entry in status["groups"] if not entry["leader"]]
            if leaderless:
                wrong.append(f"n{node + 1} knows no leader of {leaderless}")
        if len(seen) > 1:
            wrong.append("the nodes list different keyspaces")
        return keyspaces, wrong

    async def _use(self, name: str) -> None:
        async with AsyncClient(self._cluster.endpoints, keyspace=name) as client:
            keys = [b"%d" % number for number in range(KEYS)]
            try:
                await asyncio.gather(*(client.put(key, name.encode()) for key in keys))
                rows = [row.key async for row in client.scan()]
            except NebulaError as error:
                self.report.violations.append(f"{name} is there and can't be used: {error}")
                return
        if rows != sorted(keys):
            self.report.violations.append(f"{name} shows {len(rows)} keys of {KEYS}")

    def leftovers(self) -> list[str]:
        """What the stopped nodes' disks have that they should not, or lack."""
        wrong = []
        for node in self._cluster.all:
            directory = DataDirectory(self._cluster.data_dir(node))
            budget = memory.plan()
            rocks = RocksMemory(budget.block_cache, budget.data_memtable)
            log, data = directory.open_log(budget, rocks), directory.open_data(budget, rocks)
            registry = {int(group): RegistryRow.decode(row) for group, row in log.registry().items()}
            normal = {group for group, row in registry.items() if row.state == GroupState.NORMAL}
            tombs = {group for group, row in registry.items() if row.state == GroupState.TOMBSTONE}
            parts = {"registry": normal, "raft/": set(map(int, log.groups()))}
            parts["data/"] = {int(group) for group, _ in Store.generations(data)}
            wrong += [
                f"n{node + 1}: {part} has groups {sorted(groups - self._live)} too many, lacks "
                f"{sorted(self._live - groups)}"
                for part, groups in parts.items()
                if groups != self._live
            ]
            if tombs & self._live:
                wrong.append(f"n{node + 1}: groups {sorted(tombs & self._live)} live and have a tombstone")
            log.close()
            data.close()
            directory.close()
        return wrong

    def wipe_one(self) -> None:
        """Break a stopped node: one of its groups loses its log."""
        directory = DataDirectory(self._cluster.data_dir(0))
        budget = memory.plan()
        log = directory.open_log(budget, RocksMemory(budget.block_cache, budget.data_memtable))
        batch = LogBatch(BatchId(log.last_batch + 1))
        batch.drop(GroupId(max(self._live)))
        log.write(batch, log.last_batch)
        log.sync()
        log.close()
        directory.close()


def run(directory: Path, rounds: int, seed: int) -> Campaign:
    """Run the campaign in `directory`; the cluster is stopped afterwards, its disks are there."""
    with Cluster(directory) as cluster:
        cluster.start()
        cluster.wait_ready()

        async def campaign() -> Campaign:
            campaign = Campaign(cluster, seed)
            await campaign.run(rounds)
            return campaign

        return asyncio.run(campaign())


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=None, help="schedule of kills and requests; default: random")
    parser.add_argument("--self-test", action="store_true", help="exit 0 only if a broken replica is found")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    with tempfile.TemporaryDirectory(prefix="nebula-keyspaces-") as scratch:
        campaign = run(Path(scratch), 1 if options.self_test else options.rounds, seed)
        report = campaign.report
        for violation in report.violations:
            say(f"violation: {violation}")
        if options.self_test and not report.violations:
            campaign.wipe_one()
            caught = bool(campaign.leftovers())
            print(f"self_test={'caught' if caught else 'missed'} {report.line()} seed={seed}", flush=True)
            return 0 if caught else 1
    print(f"{report.line()} seed={seed}", flush=True)
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())

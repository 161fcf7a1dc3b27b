"""``nebula-cli snapshot restore``, killed at its phases; see ``phases``."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nebuladb.client import AsyncClient
from nebuladb.errors import IdentityError
from nebuladb.ids import Generation, GroupId
from nebuladb.kv.hashing import HashJob, hash_spans
from nebuladb.kv.rows import Keys
from nebuladb.server.directory import DataDirectory
from nebuladb.server.verify import verify
from nebuladb.storage.rocks import RocksEngine
from tests.integration.cluster import Cluster, ClusterError
from tests.integration.listener import Ear

if TYPE_CHECKING:
    from tests.integration.phases import Order

KEYS: Final = 1_500
VALUE: Final = 1_000
HASHED: Final = (2, 4, 5)
"""`default`, and the shards of a keyspace with two. `etcd` has leases, whose clock goes on while it is saved."""
SECONDS: Final = 60.0
PHASES: Final = (
    "restore: chunk written",
    "restore: shard written",
    "restore: members entered",
    "restore: meta written",
    "restore: log written",
    "restore: data durable",
    "restore: log durable",
    "restore: founding written",
    "restore: identity written",
)
NODE: Final = "n1"
STEP: Final = 1_000


def offline_hash(directory: Path, group: int) -> bytes:
    """Of a group's state as it lies in a directory that nobody runs on. Raises `NebulaError`."""
    engine = RocksEngine.open_data(directory / "data")
    try:
        keys = Keys(GroupId(group), Generation(1))
        job = HashJob(0, engine.snapshot(hash_spans(keys)), keys, lambda row: False)
        while (digest := job.step(STEP)) is None:
            pass
        return digest
    finally:
        engine.close()


class Restore:
    """Of a backup, and of one on top of it, into a new directory each time."""

    name = "restore"
    phases = PHASES

    def __init__(self, home: Path, *, flushes: bool = True) -> None:
        home.mkdir(parents=True)
        self.violations: list[str] = []
        self._home = home
        self._files = (home / "full.snap", home / "more.snap")
        self._target = home / "restored"
        self._ear = Ear(home / "ear", PHASES, flushes=flushes)
        self._wanted: dict[int, bytes] = {}

    async def kill(self, order: Order) -> str:
        """Restore, die, look; then restore again and compare."""
        if not self._wanted:
            await self._save()
        self._ear.forget()
        self._ear.order(*order)
        died = await asyncio.to_thread(self._restore, self._ear.environ) < 0
        hit = self._ear.heard[-1] if died else ""
        self.violations += [f"restore, {order}: {text}" for text in await asyncio.to_thread(self._left)]
        if not (self._target / "identity.json").exists():
            shutil.rmtree(self._target)
            if await asyncio.to_thread(self._restore, {}):
                self.violations.append(f"restore, {order}: a second one fails")
            self.violations += [f"restore, {order}, once more: {text}" for text in await asyncio.to_thread(self._left)]
        shutil.rmtree(self._target)
        return hit

    def _left(self) -> list[str]:
        """What is wrong with the directory: no node starts from half of one, and a whole one has it all."""
        if not (self._target / "identity.json").exists():
            directory = DataDirectory(self._target)
            try:
                directory.identity(NODE)
            except IdentityError:
                return []
            finally:
                directory.close()
            return ["a node would start from half a restored directory"]
        wrong = [f"{finding.part}: {finding.problem}" for finding in verify(self._target) if finding.problem]
        if wrong:
            return wrong
        found = {group: offline_hash(self._target, group) for group in HASHED}
        return [] if found == self._wanted else ["the hashes are not those of the cluster that was saved"]

    def _restore(self, environ: Mapping[str, str]) -> int:
        """Its exit code; negative: it was killed."""
        where = ("--data-dir", self._target, "--name", NODE, "--initial-cluster", f"{NODE}=127.0.0.1:1")
        return self._cli({**environ}, "snapshot", "restore", *self._files, *where)

    def _cli(self, environ: Mapping[str, str], *arguments: str | Path) -> int:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("NEBULA_")}
        done = subprocess.run(
            [sys.executable, "-c", "from nebuladb.cli.main import main; main()", *map(str, arguments)],
            env=inherited | dict(environ),
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
        if done.returncode > 0:
            self.violations.append(f"nebula-cli {arguments[1]}: {done.stderr.decode(errors='replace')}")
        return done.returncode

    async def _save(self) -> None:
        """A cluster's full backup, more data, and a backup of that; what its hashes are then."""
        with Cluster(self._home / "cluster", nodes=1) as cluster:
            cluster.start()
            await asyncio.to_thread(cluster.wait_ready)
            environ = {"NEBULA_ENDPOINTS": cluster.endpoints[0]}
            await asyncio.to_thread(self._cli, environ, "keyspace", "create", "users", "--shards", "2")
            await self._write(cluster, 1)
            await asyncio.to_thread(self._cli, environ, "snapshot", "save", self._files[0])
            await self._write(cluster, 2)
            async with AsyncClient(cluster.endpoints) as client:
                self._wanted = {group: (await client.state_hash(group)).hash for group in HASHED}
            await asyncio.to_thread(self._cli, environ, "snapshot", "save", self._files[1], "--since", self._files[0])
        if self.violations:
            raise ClusterError(self.violations[0])

    @staticmethod
    async def _write(cluster: Cluster, seed: int) -> None:
        rng = random.Random(seed)
        for keyspace in ("default", "users"):
            async with AsyncClient(cluster.endpoints, keyspace=keyspace) as client:
                await client.batch({b"%d" % rng.randrange(10 * KEYS): rng.randbytes(VALUE) for _ in range(KEYS)})

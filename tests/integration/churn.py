"""Churn campaign: nodes die, lose power, come, go and are replaced under load; nothing acknowledged may be missing.

``python -m tests.integration.churn --minutes 10 [--seed S] [--self-test]``. Each step is one of: SIGKILL and restart; a
power cut (SIGKILL, and what was not synced is lost; where there is a C compiler); a node added, removed, or replaced,
dead or alive; a node away until the logs are cut, so that it gets a snapshot, as new nodes do, for the logs are short;
leadership handed over; history compacted. Now and then, and at the end, every key is read through every node, and all
replicas must have equal hashes. The last line of stdout has the numbers; exit code 1 on a violation. With --self-test
one acknowledged write is taken out of what was read, and the exit code is 0 only if the checker found that.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from nebuladb.client import AsyncClient
from nebuladb.errors import NebulaError
from nebuladb.ids import DEFAULT_GROUP
from tests.integration import powerfail
from tests.integration.checker import MAX_VIOLATIONS, Observation, check, drop_acknowledged
from tests.integration.cluster import ClusterError
from tests.integration.crash import say
from tests.integration.load import Load
from tests.integration.members import REMOVED_EXIT, Growing
from tests.integration.test_snapshots import applied, log_start, received

FOUNDERS: Final = 3
PLACES: Final = 6
MAX_MEMBERS: Final = 5
BETWEEN: Final = (30, 120)
"""Acknowledged writes between two steps."""
OUTAGE: Final = 30
"""And while somebody is down."""
AHEAD: Final = 50
"""Entries that a dead node's log may have beyond what it had applied: fewer than the writers have in flight."""
PROGRESS_SECONDS: Final = 60.0
THINK_SECONDS: Final = 0.03
"""Of each writer between two operations: ten minutes of history must fit into memory."""
COMPARE_EVERY: Final = 6
STEPS: Final = {
    "kill": 4,
    "powercut": 2,
    "add": 3,
    "remove": 2,
    "replace": 2,
    "install": 2,
    "transfer": 1,
    "compact": 1,
}
TAIL: Final = {"NEBULA_LOG_KEEP_ENTRIES": "200", "NEBULA_LOG_KEEP_SIZE": "256KiB"}
"""More than an outage of `OUTAGE` writes, less than a new node has missed."""


class Stormy(Growing):
    """Its nodes run under the power-cut library, if there is one."""

    def __init__(self, directory: Path) -> None:
        self.library = powerfail.build(directory)
        self._home = directory
        super().__init__(directory, FOUNDERS, PLACES, node_environ=self._spied)

    def _records(self, place: int) -> Path:
        return self._home / f"n{place + 1}.synced"

    def _spied(self, place: int) -> Mapping[str, str]:
        if self.library is None:
            return TAIL
        return TAIL | powerfail.environ(self.library, self._records(place), self.data_dir(place))

    def cut(self, place: int) -> None:
        """What a dead node had not synced is lost."""
        powerfail.cut(self.data_dir(place), self._records(place))

    def wipe(self, place: int) -> None:
        """Empty its directory; what is in it when it starts counts as durable."""
        super().wipe(place)
        shutil.rmtree(self._records(place), ignore_errors=True)


class Churn:
    """One campaign over a started cluster."""

    def __init__(self, cluster: Stormy, seed: int, *, aloud: bool = False) -> None:
        self.cluster = cluster
        self.violations: list[str] = []
        self.members = 0
        """In the end."""
        self.counts: Counter[str] = Counter()
        self.observations: list[Observation] = []
        self._rng = random.Random(seed)
        self._aloud = aloud
        self.load = Load(cluster.endpoints, random.Random(self._rng.random()), think=THINK_SECONDS)

    async def run(self, seconds: float, first: Sequence[str] = ("kill",)) -> None:
        """The steps `first`, then others for so long, or until there is a violation; then compare."""
        until = time.monotonic() + seconds
        script = list(first)
        self.load.start()
        try:
            while (script or time.monotonic() < until) and not self.violations:
                await self._progress(self._rng.randint(*BETWEEN), "between two steps")
                step = script.pop(0) if script else self._choose()
                await getattr(self, f"_{step}")()
                self.counts[step] += 1
                if self._aloud:
                    running = ",".join(map(self.cluster.name, self.cluster.running))
                    say(f"{step}: {self.load.acknowledged} acknowledged; {running} run")
                if self.counts.total() % COMPARE_EVERY == 0:
                    await self._compare()
            await self._compare()
            self.members = len(self.cluster.running)
        except (ClusterError, NebulaError) as error:
            self.violations.append(f"{error}; {self.cluster.log_tails()}")
        finally:
            await self.load.close()
        del self.violations[MAX_VIOLATIONS:]

    def line(self, seconds: float) -> str:
        """One line of key=value pairs."""
        counts = " ".join(f"{name}={self.counts[name]}" for name in STEPS)
        return (
            f"steps={self.counts.total()} {counts} acknowledged={self.load.acknowledged} "
            f"members={self.members} violations={len(self.violations)} seconds={seconds:.1f}"
        )

    def corrupted_is_found(self) -> bool:
        """Whether the checker finds it when one acknowledged write is taken out of the last observation."""
        dropped = drop_acknowledged(self.load.history, self.observations[-1])
        return dropped is not None and bool(check(self.load.history, [*self.observations[:-1], dropped]))

    async def _progress(self, count: int, when: str) -> None:
        if not await self.load.wait_acknowledged(self.load.acknowledged + count, PROGRESS_SECONDS):
            raise ClusterError(f"{when}, fewer than {count} writes were acknowledged within {PROGRESS_SECONDS:g} s")

    async def _compare(self) -> None:
        """Every key through every node, and all hashes."""
        await self.load.pause()
        self.observations += [await self.load.observe(place) for place in self.cluster.running]
        self.violations += check(self.load.history, self.observations)
        await asyncio.to_thread(self.cluster.same_everywhere)
        self.load.resume()

    def _choose(self) -> str:
        members = len(self.cluster.running)
        possible = dict(STEPS)
        if self.cluster.library is None:
            del possible["powercut"]
        if members >= MAX_MEMBERS:
            del possible["add"]
        if members <= FOUNDERS:
            del possible["remove"]
        return self._rng.choices(list(possible), list(possible.values()))[0]

    def _victim(self) -> int:
        """Half of the time the leader."""
        leadership = self.cluster.leadership() if self._rng.random() < 0.5 else None
        return leadership[1] if leadership else self._rng.choice(self.cluster.running)

    def _free(self) -> int:
        return self._rng.choice([place for place in self.cluster.all if place not in self.cluster.running])

    # --- steps

    async def _kill(self, *, power: bool = False) -> None:
        cluster, victim = self.cluster, await asyncio.to_thread(self._victim)
        await asyncio.to_thread(cluster.kill, victim)
        if power:
            await asyncio.to_thread(cluster.cut, victim)
        await self._progress(OUTAGE, f"without {cluster.name(victim)}")
        cluster.start(victim)
        await asyncio.to_thread(cluster.wait_ready, victim)

    async def _install(self) -> None:
        cluster, victim = self.cluster, await asyncio.to_thread(self._victim)
        had = await asyncio.to_thread(applied, cluster, victim)
        await asyncio.to_thread(cluster.kill, victim)
        await asyncio.to_thread(self._logs_cut, victim, had)
        cluster.start(victim)
        await asyncio.to_thread(cluster.wait_ready, victim)
        if not await asyncio.to_thread(received, cluster, victim):
            raise ClusterError(f"{cluster.name(victim)} came back behind the logs and got no snapshot")

    def _logs_cut(self, victim: int, had: int) -> None:
        """Wait until who had so much needs a snapshot, whoever leads."""
        cluster = self.cluster
        others = list(cluster.running)

        def starts() -> list[float]:
            return [log_start(cluster, node) for node in others]

        try:
            cluster.wait_for(lambda: min(starts()) > had + AHEAD, f"logs are cut without {cluster.name(victim)}")
        except ClusterError as error:
            names = [cluster.name(node) for node in others]
            raise ClusterError(f"{error}: it had {had}, those of {names} start at {starts()}") from error

    async def _powercut(self) -> None:
        await self._kill(power=True)

    async def _add(self) -> None:
        await asyncio.to_thread(self.cluster.add, self._free())

    async def _remove(self) -> None:
        await asyncio.to_thread(self._removed, await asyncio.to_thread(self._victim))

    def _removed(self, victim: int) -> None:
        self.cluster.done("member", "remove", self.cluster.name(victim))
        self._stops(victim)

    def _stops(self, victim: int) -> None:
        code = self.cluster.wait_exit(victim)
        if code != REMOVED_EXIT:
            raise ClusterError(f"{self.cluster.name(victim)} was removed and exits with {code}")

    async def _replace(self) -> None:
        cluster, place = self.cluster, self._free()
        victim = await asyncio.to_thread(self._victim)
        dead = self._rng.random() < 0.5
        if dead:
            await asyncio.to_thread(cluster.kill, victim)
            await self._progress(OUTAGE, f"without {cluster.name(victim)}")
        await asyncio.to_thread(self._replaced, victim, place, dead)

    def _replaced(self, victim: int, place: int, dead: bool) -> None:
        cluster = self.cluster
        door = next(other for other in cluster.running if other != victim)
        address = cluster.members[place].config.peer_addr
        old, new = cluster.name(victim), cluster.name(place)
        cluster.done("member", "replace", old, new, "--peer-address", address, through=door)
        cluster.enter(place, door=door)
        cluster.wait_member(place)
        cluster.wait_for(lambda: cluster.state(victim) == "", f"{old} is replaced")
        if not dead:
            self._stops(victim)

    async def _transfer(self) -> None:
        async with AsyncClient(self._endpoints()) as client:
            target = self._rng.choice(await client.members())
            with contextlib.suppress(NebulaError):  # it leads already, or the answering node doesn't
                await client.transfer_leadership(DEFAULT_GROUP, target.node_id)

    async def _compact(self) -> None:
        async with AsyncClient(self._endpoints()) as client:
            put = await client.put(b"churn", b"compact")
            await client.compact(put.revision)

    def _endpoints(self) -> list[str]:
        return [self.cluster.endpoints[place] for place in self.cluster.running]


def run(directory: Path, seconds: float, seed: int, *, first: Sequence[str] = ("kill",), aloud: bool = False) -> Churn:
    """Run the campaign in `directory`, beginning with the steps `first`."""
    with Stormy(directory) as cluster:
        founders = range(FOUNDERS)
        cluster.start(*founders)
        cluster.wait_ready(*founders)

        async def campaign() -> Churn:
            churn = Churn(cluster, seed, aloud=aloud)
            await churn.run(seconds, first)
            return churn

        return asyncio.run(campaign())


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="schedule of steps and operations; default: random")
    parser.add_argument("--self-test", action="store_true", help="exit 0 only if a lost write is found")
    parser.add_argument("--keep", type=Path, default=None, help="work in this empty directory and keep it")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nebula-churn-") as scratch:
        seconds = 0.0 if options.self_test else options.minutes * 60
        churn = run(options.keep or Path(scratch), seconds, seed, aloud=True)
        line = f"{churn.line(time.monotonic() - began)} seed={seed}"
        if options.self_test:
            found = not churn.violations and churn.corrupted_is_found()
            print(f"self_test={'caught' if found else 'missed'} {line}", flush=True)
            return 0 if found else 1
    for violation in churn.violations:
        say(f"violation: {violation}")
    print(line, flush=True)
    return 1 if churn.violations else 0


if __name__ == "__main__":
    sys.exit(main())

"""One run: nodes, clients and nemeses, recovery, the last look, the verdict, the folder."""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from jepsen import churn, history, nemesis, schedule
from jepsen.clocks import Clocks, preloads
from jepsen.history import TOLD, Op, Outcome
from jepsen.network import Network, members
from jepsen.verdict import MIN_RATE, Findings, Summary
from jepsen.workloads import WORKLOADS
from jepsen.workloads.base import Clients
from nebuladb.client import AsyncClient
from nebuladb.errors import HashNotFound, NebulaError
from nebuladb.sim.linearizability.timeline import draw
from tests.integration import powerfail
from tests.integration.cluster import Cluster, ClusterError
from tests.integration.load import HASHED_GROUPS

NODES: Final = 3
LOOK_SECONDS: Final = 0.3
"""Between two looks at who leads."""
RECOVERY_SECONDS: Final = 90.0
"""After everything healed; patience, for the machine may be busy."""
END_SECONDS: Final = 120.0
"""For the last reads."""
HASH_TRIES: Final = 20
LEASH: Final = (setpriv, "--pdeathsig", "KILL", "--") if (setpriv := shutil.which("setpriv")) else ()
"""A node dies with the runner, even with one that was killed. (So only the main thread may start nodes.)"""
KEPT: Final = 20
"""Violations that the verdict tells."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is to be run."""

    workload: str
    nemeses: tuple[str, ...]
    seconds: float
    rate: float
    """Operations a second, of all clients together."""
    seed: int
    folder: Path
    library: Path | None = None
    """libfaketime, for clocks."""
    broken: bool = False
    """Syncs are swallowed, and power cuts hit everybody: to be found out."""


def say(text: str) -> None:
    """To people, who read stderr."""
    print(text, file=sys.stderr, flush=True)


class Run:
    """Everything that one run has in hand. `violations` is filled as it goes."""

    def __init__(self, options: Options, network: Network, scratch: Path) -> None:
        self.options = options
        self.violations: list[str] = []
        self.terms: set[tuple[int, int]] = set()
        self._network = network
        self._scratch = scratch
        self._rng = random.Random(options.seed)
        self._clocks = Clocks(options.library if "clock" in options.nemeses else None, scratch)
        self._preload = powerfail.build(scratch) if "powercut" in options.nemeses else None
        self._workload = WORKLOADS[options.workload]()
        self._cluster: Cluster
        self._field: nemesis.Field
        self._worked = 0
        """Operations that succeeded while there were faults."""

    async def run(self) -> Summary:
        """Raises only what is no verdict on the product."""
        addresses = await self._network.open()
        self._cluster = Cluster(
            self._scratch,
            environ=churn.ENVIRON if "churn" in self.options.nemeses else None,
            node_environ=self._environ,
            members=members(addresses, self._scratch),
            prefix=lambda node: (*self._network.prefix(node), *LEASH),
        )
        try:
            self._network.watch(lambda node: self._cluster.pid(node) if node in self._cluster.running else None)
            self._field = nemesis.Field(self._cluster, self._network, self._clocks, self._scratch, self._rng)
            self._cluster.start()
            await asyncio.to_thread(self._cluster.wait_ready)
            for node in self._cluster.all if self.options.broken else ():
                powerfail.control(self._field.records(node), drop=1)
            say(f"cluster ready on {self._network.name}, pids {[self._cluster.pid(n) for n in self._cluster.all]}")
            clients = Clients(self._cluster.endpoints, self.options.rate, self._rng)
            lookers = [asyncio.create_task(self._look(node)) for node in self._cluster.all]
            try:
                await self._exercise(clients)
            finally:
                for looker in lookers:
                    looker.cancel()
                await asyncio.gather(*lookers, return_exceptions=True)
            findings = self._judge(clients)
            return self._keep(clients, findings)
        finally:
            self._cluster.close()
            self._save_logs()

    def _environ(self, node: int) -> Mapping[str, str]:
        power = {}
        if self._preload is not None:
            records, data = self._scratch / f"n{node + 1}.synced", self._cluster.data_dir(node)
            power = powerfail.environ(self._preload, records, data)
        return preloads(self._clocks.environ(node), power)

    async def _look(self, node: int) -> None:
        """Note whenever this node says that it leads. A looker a node: one that is paused must not blind the others."""
        newest = (0, 0)
        while True:
            status = await asyncio.to_thread(self._cluster.status, node)
            for group in (status or {"groups": []})["groups"]:
                if group["group"] == HASHED_GROUPS[1] and group["role"] == "leader":
                    self.terms.add((int(group["term"]), node))
            if self.terms and max(self.terms) != newest:
                newest = max(self.terms)
                self._field.leader = newest[1]
            await asyncio.sleep(LOOK_SECONDS)

    async def _exercise(self, clients: Clients) -> None:
        """Work under faults; heal; wait; the last look."""
        options = self.options
        await self._workload.open(clients)
        faults = schedule.plan(options.nemeses, options.seconds, NODES, self._rng)
        if options.broken:
            faults = [replace(fault, count=NODES) for fault in faults]
        first = clients.now + int(faults[0].start * 1e9 if faults else 0)
        work = asyncio.create_task(self._workload.run(clients))
        torment = asyncio.create_task(nemesis.torment(self._field, faults))
        try:
            await asyncio.wait([work, torment], timeout=options.seconds, return_when=asyncio.FIRST_EXCEPTION)
            clients.stop.set()
            await torment
            await work
            self._worked = clients.history.count(Outcome.OK, first)
            await asyncio.to_thread(nemesis.recover, self._cluster)
            await asyncio.to_thread(self._cluster.wait_ready, seconds=RECOVERY_SECONDS)
            done = len(clients.history.ops)
            async with asyncio.timeout(END_SECONDS):
                await self._workload.end(clients)
            self.violations += unanswered(clients.history.ops[done:])
            await self._compare()
        except ClusterError as error:
            self.violations.append(str(error))
        except TimeoutError:
            self.violations.append(f"the last reads took more than {END_SECONDS:g} s on a cluster that is ready")
        finally:
            for task in (work, torment):
                task.cancel()
            await asyncio.gather(work, torment, return_exceptions=True)

    async def _compare(self) -> None:
        """All nodes have the same state (S28)."""
        async with AsyncClient(self._cluster.endpoints) as client:
            for group in HASHED_GROUPS:
                hashes = await self._hashes(client, group)
                if len(set(hashes)) > 1:
                    self.violations.append(f"group {group}: states differ: {', '.join(h.hex() for h in hashes)}")

    async def _hashes(self, client: AsyncClient, group: int) -> list[bytes]:
        index = 0
        for left in reversed(range(HASH_TRIES)):
            try:
                index = index or await client.order_hash(group)
                return [(await client.state_hash(group, index, one)).hash for one in self._cluster.endpoints]
            except NebulaError as error:
                if not left:
                    raise ClusterError(f"no state hash of group {group} on a quiet cluster: {error.message}") from error
                if isinstance(error, HashNotFound):
                    index = 0
                await asyncio.sleep(LOOK_SECONDS)
        raise AssertionError

    def _judge(self, clients: Clients) -> Findings:
        self.violations += [f"n{node + 1} ended by itself" for node in sorted(self._field.deaths)]
        say("checking the history")
        findings = self._workload.check(clients.history.ops, clocks_run_true="clock" not in self.options.nemeses)
        self.violations += findings.violations
        return findings

    def _keep(self, clients: Clients, findings: Findings) -> Summary:
        options, recorded = self.options, clients.history
        summary = Summary(
            workload=options.workload,
            nemesis=",".join(options.nemeses),
            network=self._network.name,
            seed=options.seed,
            seconds=options.seconds,
            ok=self._worked,
            failed=recorded.count(Outcome.FAILED),
            unknown=recorded.count(Outcome.UNKNOWN),
            leader_changes=max(0, len(self.terms) - 1),
            faults=dict(self._field.done),
            violations=self.violations,
            undecided=findings.undecided,
        )
        folder = options.folder
        history.write(recorded.ops, folder / "history.jsonl")
        title = f"{options.workload} under {summary.nemesis}"
        (folder / "timeline.html").write_text(draw(title, findings.report, findings.model), encoding="utf-8")
        (folder / "faults.txt").write_text("".join(f"{line}\n" for line in self._field.log))
        (folder / "verdict.txt").write_text("".join(f"{line}\n" for line in report(summary)))
        return summary

    def _save_logs(self) -> None:
        for node in self._cluster.all:
            with suppress(OSError):
                shutil.copy(self._cluster.log_file(node), self.options.folder)


def unanswered(ops: Iterable[Op]) -> list[str]:
    """What is wrong with the last operations, of a cluster that serves again: those that didn't succeed."""
    wrong = (op for op in ops if op.f not in TOLD and op.outcome is not Outcome.OK)
    return [f"{op.f} {op.key} on a cluster that is ready: {op.error}" for op in wrong]


def report(summary: Summary) -> list[str]:
    """The verdict with its reasons."""
    lines = [f"violation: {violation}" for violation in summary.violations[:KEPT]]
    lines += [f"nemesis {kind}: hurt {count} times" for kind, count in sorted(summary.faults.items())]
    lines += [f"nemesis {kind}: never hurt anything" for kind in summary.idle]
    if summary.undecided:
        lines.append(f"{summary.undecided} keys could not be decided")
    if summary.verdict == "too-little-done":
        lines.append(f"{summary.ok} operations succeeded, less than {MIN_RATE} a second")
    return [*lines, summary.line()]


async def run(options: Options, network: Network) -> Summary:
    """Do it, and leave nothing but the folder."""
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="jepsen-") as scratch:
        try:
            return await Run(options, network, Path(scratch)).run()
        finally:
            await network.close()

"""SIGKILL by phase: a process dies at named points of a snapshot install, of a compaction, of a restore.

``python -m tests.integration.phases --kills 200 [--only install] [--seed S] [--self-test]``: so many of each kind.
Where each is to hit is chosen among the kind's phases, the least hit first; the process is killed in the very call, or
some milliseconds later, and what its probes said last is the phase that was hit (``listener``).

- *install*: a node comes back too late for the log and gets a snapshot; it is killed, or the leader that sends it.
- *compaction*: logs are cut, the data store is flushed, history is compacted and deleted, on any node.
- *restore*: ``nebula-cli snapshot restore`` of a backup and one on top of it.

Nodes serve a load meanwhile. After each kill the directory passes ``nebulad verify``, the node comes back, every
acknowledged write is there, all hashes are equal, and no replica has found its data lost or damaged: SIGKILL leaves the
page cache alone. A half restored directory is refused by ``nebulad``; a whole one has the hash of the cluster that was
saved. The last line of stdout has the numbers; exit code 1 on a violation, or if a phase was hit too rarely. With
--self-test flushing and closing a data store do nothing, and the exit code is 0 only if that was found in each kind.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from tests.integration.crash import say
from tests.integration.phases_nodes import Compaction, Install, Nodes
from tests.integration.phases_restore import Restore

LEAST: Final = 10
"""Times that every phase has to be hit in a whole run..."""
SHARE: Final = 2
"""...and in a short one the part of an even share that it has to get."""
LATER_MS: Final = 6.0
"""A kill that isn't in the very call comes up to so much later."""
MANY: Final = {"chunk of a snapshot written": 10, "chunk of a snapshot read": 10, "restore: chunk written": 10}
"""Phases that come often: the kill is at any of so many passes."""
MAX_MISSES: Final = 10
"""In a row: then something is wrong with the phase, not with luck."""


class Order(NamedTuple):
    """A kill."""

    phase: str
    nth: int
    milliseconds: float


class Kind(Protocol):
    """What is interrupted."""

    violations: list[str]

    @property
    def name(self) -> str: ...

    @property
    def phases(self) -> Sequence[str]: ...

    async def kill(self, order: Order) -> str:
        """Carry out one kill, and check what is left; the phase that it hit, or empty: it didn't come to it."""
        ...


class Campaign:
    """Kills of one kind."""

    def __init__(self, kind: Kind, rng: random.Random, *, aloud: bool = False) -> None:
        self.kind = kind
        self.hits: Counter[str] = Counter()
        self.misses = 0
        self._rng = rng
        self._aloud = aloud

    async def run(self, kills: int) -> None:
        """So many, or until there is a violation."""
        kind, missed = self.kind, 0
        while self.hits.total() < kills and not kind.violations:
            order = self._choose()
            hit = await kind.kill(order)
            if hit:
                self.hits[hit] += 1
                missed = 0
            else:
                self.misses += 1
                missed += 1
                if missed >= MAX_MISSES:
                    kind.violations.append(f"{kind.name}: {order.phase!r} is not reached")
            if self._aloud:
                say(f"{kind.name} {self.hits.total()}/{kills}: {order} hit {hit or 'nothing'}")
        wanted = min(LEAST, kills // (SHARE * len(kind.phases)))
        rare = [phase for phase in kind.phases if self.hits[phase] < wanted]
        if rare and not kind.violations:
            kind.violations.append(f"{kind.name}: hit fewer than {wanted} times: {', '.join(rare)}")

    def _choose(self) -> Order:
        rng = self._rng
        least = min(self.hits[phase] for phase in self.kind.phases)
        phase = rng.choice([phase for phase in self.kind.phases if self.hits[phase] == least])
        later = rng.random() * LATER_MS if rng.random() < 0.5 else 0.0
        return Order(phase, rng.randint(1, MANY.get(phase, 1)), later)

    def line(self) -> str:
        """key=value pairs."""
        name = self.kind.name
        each = " ".join(
            f"{name}.{phase.removeprefix(f'{name}: ').replace(' ', '_')}={self.hits[phase]}"
            for phase in self.kind.phases
        )
        return f"{name}={self.hits.total()} {name}.missed={self.misses} {each}"


class Result(NamedTuple):
    """Of a whole run."""

    campaigns: list[Campaign]
    acknowledged: int
    corrupted_is_found: bool
    """Whether the checker objects when one acknowledged write is taken out of what was read last."""

    @property
    def violations(self) -> list[str]:
        """Of all kinds."""
        return [violation for campaign in self.campaigns for violation in campaign.kind.violations]

    def line(self) -> str:
        """key=value pairs."""
        kills = sum(campaign.hits.total() for campaign in self.campaigns)
        each = " ".join(campaign.line() for campaign in self.campaigns)
        return f"kills={kills} {each} acknowledged={self.acknowledged} violations={len(self.violations)}"


KINDS: Final = ("install", "compaction", "restore")


def run(
    directory: Path,
    kills: int,
    seed: int,
    only: Sequence[str] = KINDS,
    *,
    flushes: bool = True,
    aloud: bool = False,
) -> Result:
    """The campaigns `only` in `directory`."""
    rng = random.Random(seed)
    campaigns: list[Campaign] = []

    async def carry_out(kind: Kind) -> None:
        campaign = Campaign(kind, rng, aloud=aloud)
        campaigns.append(campaign)
        await campaign.run(kills)

    async def over_nodes(nodes: Nodes) -> tuple[int, bool]:
        async with nodes.serving(random.Random(rng.random())):
            for kind in (Install, Compaction):
                if kind.name in only:
                    await carry_out(kind(nodes, rng))
            return nodes.load.acknowledged, nodes.corrupted_is_found()

    acknowledged, found = 0, True
    if set(only) - {Restore.name}:
        with Nodes(directory / "nodes", flushes=flushes) as nodes:
            acknowledged, found = asyncio.run(over_nodes(nodes))
    if Restore.name in only:
        asyncio.run(carry_out(Restore(directory / "restore", flushes=flushes)))
    return Result(campaigns, acknowledged, found)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="of each kind")
    parser.add_argument("--only", choices=KINDS, default=None, help="one kind")
    parser.add_argument("--seed", type=int, default=None, help="of kills and operations; default: random")
    parser.add_argument("--self-test", action="store_true", help="exit 0 only if a broken variant is found")
    parser.add_argument("--keep", type=Path, default=None, help="work in this empty directory and keep it")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    kinds = [options.only] if options.only else KINDS
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nebula-phases-") as scratch:
        directory = options.keep or Path(scratch)
        if options.self_test:
            # Each kind by itself: a cluster that is broken can't show the next one.
            results = [run(directory / kind, options.kills, seed, [kind], flushes=False, aloud=True) for kind in kinds]
            caught = all(result.violations for result in results)
            for result in results:
                say(f"found: {(result.violations or ['nothing'])[0]}")
            lines = " ".join(result.line() for result in results)
            print(f"self_test={'caught' if caught else 'missed'} {lines} seed={seed}", flush=True)
            return 0 if caught else 1
        result = run(directory, options.kills, seed, kinds, aloud=True)
    for violation in result.violations:
        say(f"violation: {violation}")
    print(f"{result.line()} seconds={time.monotonic() - began:.1f} seed={seed}", flush=True)
    return 1 if result.violations else 0


if __name__ == "__main__":
    sys.exit(main())

"""Puts known bugs back, one at a time, and lets the simulator find them: ``make sim-mutants`` (``docs/testing.md``).

    python -m tools.mutants [NAME…] [--seeds 500] [--jobs 2] [--seconds 600] [--keep FILE] [--markdown]

A mutant is a file of ``tests/mutants`` (``tools.mutant`` has the format). It is applied to a copy of the package, which
runs in a process of its own (``tools.hunt``) with seeds 1, 2, 3… until an oracle reports it. Where that oracle looks at
what no client sees, a second hunt goes on with clients' oracles alone (``tools.mutants_clients``), from the same seed.
What is in ``FILE`` already isn't hunted again, what is found is added to it.

One line a mutant, then one of ``key=value`` pairs; exit 1 if any was not found, or if fewer than half of them by an
oracle that a client would see.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from tools.mutant import DIRECTORY, ROOT, Mutant, load

SEEDS: Final = 500
CLIENT_SEEDS: Final = 300
"""For the second hunt, if nobody says how many."""
SECONDS: Final = 600.0
"""Of processor time, for one hunt: then it is given up."""
HUNT: Final = "tools.hunt"


@dataclass(frozen=True, slots=True)
class Find:
    """What a hunt has found; `seed` 0: nothing."""

    seed: int
    oracle: str
    client: bool
    """Whether a client would have seen it."""
    steps: int
    seconds: float
    """Of processor time, for the whole hunt."""
    tried: int
    """Seeds that found nothing."""
    violation: str


@dataclass(frozen=True, slots=True)
class Hunted:
    """A mutant with what all oracles found, and what clients alone did, if that was asked."""

    mutant: Mutant
    first: Find
    clients: Find | None

    @property
    def found(self) -> bool:
        """Whether any oracle reported it."""
        return self.first.seed > 0

    @property
    def seen(self) -> Find | None:
        """The find of an oracle that a client would see."""
        return next((find for find in (self.first, self.clients) if find and find.seed and find.client), None)

    def line(self) -> str:
        """For the terminal."""
        first, seen, mutant = self.first, self.seen, self.mutant
        if not self.found:
            return f"{mutant.name} ({mutant.rule}): NOT FOUND, {first.tried} seeds in {first.seconds:.1f} s"
        text = (
            f"{mutant.name} ({mutant.rule}): seed {first.seed}, {first.oracle}, {first.steps} steps, "
            f"{first.seconds:.1f} s"
        )
        if seen is self.first:
            return text + "; a client saw it"
        if seen is not None:
            return text + f"; a client: seed {seen.seed}, {seen.oracle}, {seen.steps} steps, {seen.seconds:.1f} s"
        return text


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tools.mutants", description="Let the simulator find known bugs.")
    parser.add_argument("names", nargs="*", help="mutants (default: all)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"for each mutant (default: {SEEDS})")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time (default: 2)")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help=f"processor time for a hunt (default: {SECONDS:g})"
    )
    parser.add_argument("--client-seeds", type=int, help=f"for each second hunt (default: {CLIENT_SEEDS})")
    parser.add_argument("--clients", action="store_true", help="clients' oracles alone, from seed 1 on")
    parser.add_argument("--first", action="store_true", help="no second hunt with clients' oracles alone")
    parser.add_argument("--show", action="store_true", help="print the violations")
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/testing.md instead")
    parser.add_argument("--keep", type=Path, help="a file of results, to go on from and to add to")
    parser.add_argument("--root", type=Path, default=ROOT, help="the tree to take the package from")
    options = parser.parse_args(arguments)
    mutants = [load(DIRECTORY / f"{name}.patch") for name in options.names] or all_mutants()
    begun = time.monotonic()
    hunted = []
    for result in kept_or_hunted(mutants, options):
        hunted.append(result)
        if not options.markdown:
            print(result.line(), flush=True)
            if options.show and result.found:
                print(*(f"    {line}" for line in result.first.violation.splitlines()[-12:]), sep="\n", flush=True)
    if options.markdown:
        print(table(hunted))
    missed = sum(not result.found for result in hunted)
    seen = sum(result.seen is not None for result in hunted)
    line = f"mutants={len(hunted)} missed={missed} client_seen={seen} wall_seconds={time.monotonic() - begun:.1f}"
    print(line, file=sys.stderr if options.markdown else sys.stdout)
    return 1 if missed or (2 * seen < len(hunted) and not options.first) else 0


def all_mutants() -> list[Mutant]:
    """Every one, by name."""
    return [load(path) for path in sorted(DIRECTORY.glob("*.patch"))]


def kept_or_hunted(mutants: Sequence[Mutant], options: argparse.Namespace) -> Iterator[Hunted]:
    """First those that ``--keep`` has."""
    kept = _kept(options.keep) if options.keep and options.keep.exists() else {}
    for mutant in mutants:
        if mutant.name in kept:
            yield Hunted(mutant, *kept[mutant.name])
    for result in hunt_all([mutant for mutant in mutants if mutant.name not in kept], options):
        if options.keep:
            with options.keep.open("a") as file:
                finds = {"first": asdict(result.first), "clients": result.clients and asdict(result.clients)}
                file.write(json.dumps({"mutant": result.mutant.name} | finds) + "\n")
        yield result


def _kept(path: Path) -> dict[str, tuple[Find, Find | None]]:
    kept = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        kept[row["mutant"]] = Find(**row["first"]), Find(**row["clients"]) if row["clients"] else None
    return kept


def hunt_all(mutants: Sequence[Mutant], options: argparse.Namespace) -> Iterator[Hunted]:
    """As they are done, `options.jobs` at a time."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as name, ThreadPoolExecutor(options.jobs) as pool:
        whole = Path(name) / "whole"
        _copy(options.root, whole)
        hunts = [pool.submit(hunt, mutant, whole, options) for mutant in mutants]
        for done in as_completed(hunts):
            yield done.result()


def _copy(root: Path, copy: Path) -> None:
    shutil.copytree(root / "nebuladb", copy / "nebuladb")
    shutil.copytree(ROOT / "tools", copy / "tools", dirs_exist_ok=True)


def hunt(mutant: Mutant, whole: Path, options: argparse.Namespace) -> Hunted:
    """Both hunts for one mutant; `whole` is the package without a bug."""
    copy = whole.parent / mutant.name
    _copy(whole, copy)
    mutant.apply(copy)
    first = _run(copy, whole, 1, options.seeds, options.seconds, clients=options.clients)
    clients = None
    if first.seed and not first.client and not options.first:
        seeds = options.client_seeds or CLIENT_SEEDS
        clients = _run(copy, whole, first.seed, seeds, options.seconds, clients=True)
    shutil.rmtree(copy)
    return Hunted(mutant, first, clients)


def _run(copy: Path, whole: Path, first: int, seeds: int, seconds: float, *, clients: bool) -> Find:
    """Seeds from `first` on until one fails that doesn't without the bug: else what it found isn't the mutant."""
    tried, spent = 0, 0.0
    while True:
        find = _hunt(copy, first + tried, seeds - tried, seconds - spent, clients=clients)
        tried, spent = tried + find.tried, spent + find.seconds
        if not find.seed or not _hunt(whole, find.seed, 1, seconds, clients=False).seed:
            return replace(find, tried=tried, seconds=spent)
        tried += 1
        if tried >= seeds or spent >= seconds:
            return replace(find, seed=0, tried=tried, seconds=spent)


def _hunt(copy: Path, first: int, seeds: int, seconds: float, *, clients: bool) -> Find:
    command = [sys.executable, "-m", HUNT, str(first), str(seeds), f"{seconds:g}", "clients" if clients else "all"]
    # The working directory comes first on the path of `python -m`: the copy is what is imported.
    run = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    if run.returncode:  # an error of the mutant's Python, or somebody killed it: nothing was found
        print(f"the hunt in {copy.name} broke off ({run.returncode}):\n{run.stderr}", file=sys.stderr, flush=True)
        return Find(0, "", client=False, steps=0, seconds=seconds, tried=seeds, violation="")
    fields: dict[str, Any] = json.loads(run.stdout)
    return Find(**fields)


def table(hunted: Sequence[Hunted]) -> str:
    """As Markdown: by all oracles, and by those that a client would see."""
    lines = [
        "| mutant | rule | seed | oracle | steps | a client sees it: seed, oracle, steps |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for result in sorted(hunted, key=lambda result: result.mutant.name):
        first, seen, mutant = result.first, result.seen, result.mutant
        where = f"{first.seed} | {first.oracle} | {first.steps}" if result.found else "none | | "
        if seen is not None:
            client = "the same" if seen is first else f"{seen.seed}, {seen.oracle}, {seen.steps}"
        else:
            client = f"not in {result.clients.tried} seeds" if result.clients else "not hunted"
        lines.append(f"| {mutant.name} | {mutant.rule} | {where} | {client} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

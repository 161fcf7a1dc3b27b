"""``python -m nebuladb.sim``: run seeds; the last line on stdout says what happened (DESIGN §9)."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence

from nebuladb.ids import DEFAULT_GROUP, ETCD_GROUP
from nebuladb.sim.population import WORKLOADS
from nebuladb.sim.probes import all_probes
from nebuladb.sim.report import Report
from nebuladb.sim.runner import run_seed, run_seeds
from nebuladb.sim.shrink import names, shrink_seed
from nebuladb.sim.world import Result, Variant

DEFAULT_SECONDS = 5.0
SELF_TEST_SEEDS = 100
MAX_SHOWN = 10
"""Violations that are described."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    if options.self_test:
        return _self_test(options)
    if options.shrink is not None:
        return _shrink(options)
    begun = time.monotonic()
    report = Report()
    failed: list[Result] = []
    if options.seed is not None:
        show = print if options.trace else None
        results = iter(
            [run_seed(options.seed, nodes=options.nodes, seconds=options.seconds, without=options.without, show=show)]
        )
    else:
        results = run_seeds(
            options.first_seed, options.seeds, nodes=options.nodes, seconds=options.seconds, jobs=options.jobs
        )
    for result in results:
        report.add(result.report)
        if result.report.undecided:
            count = result.report.undecided
            print(f"seed {result.seed}: {count} histories were not decided", file=sys.stderr, flush=True)
        if result.violation:
            failed.append(result)
            if len(failed) <= MAX_SHOWN:
                _describe(result, options)
    report.wall_seconds = time.monotonic() - begun
    for line in report.table(all_probes()):
        print(line)
    trace = f" trace={result.trace}" if options.seed is not None else ""
    print(report.line() + trace)
    return 1 if failed or report.undecided else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nebuladb.sim", description="Simulate clusters under faults.")
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds (default: 100)")
    parser.add_argument("--first-seed", type=int, default=1, help="the first of them (default: 1)")
    parser.add_argument("--seconds", type=float, default=DEFAULT_SECONDS, help="virtual seconds under faults")
    parser.add_argument("--nodes", type=int, default=0, help="nodes of a cluster (default: as the seed draws, 3 or 5)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--seed", type=int, help="run this seed only")
    parser.add_argument("--without", default="", help="with --seed: faults and clients to leave out, with commas")
    parser.add_argument("--shrink", type=int, metavar="SEED", help="leave out of a failing seed what isn't needed")
    parser.add_argument("--trace", action="store_true", help="with --seed: print every event")
    parser.add_argument("--self-test", action="store_true", help="break the world; exit 0 only if that is found")
    options = parser.parse_args(arguments)
    options.without = tuple(filter(None, options.without.split(",")))
    if options.without and options.seed is None:
        parser.error("--without goes with --seed")
    if unknown := _unknown(options):
        known = ", ".join(names(options.seed, options.nodes, options.seconds))
        parser.error(f"--without: seed {options.seed} has no {', '.join(unknown)}; it has {known}")
    return options


def _unknown(options: argparse.Namespace) -> list[str]:
    """What `--without` names and the seed doesn't have. Who uses keyspaces that users make is not known beforehand."""
    if not options.without:
        return []
    known = names(options.seed, options.nodes, options.seconds)
    founded = (DEFAULT_GROUP, ETCD_GROUP)

    def made_later(name: str) -> bool:
        found = re.fullmatch(r"([a-z]+)[0-9]@([0-9]{1,9})", name)
        return "keyspaces" in known and bool(found and found[1] in WORKLOADS and int(found[2]) > max(founded))

    return [name for name in options.without if name not in known and not made_later(name)]


def _describe(result: Result, options: argparse.Namespace) -> None:
    chosen = f"--seed {result.seed} --seconds {result.seconds:g}"
    chosen += f" --nodes {options.nodes}" if options.nodes else ""
    chosen += f" --without {','.join(result.without)}" if result.without else ""
    replay = f"python -m nebuladb.sim {chosen} --trace"
    print(f"seed {result.seed}: {result.violation}\nreplay: {replay}", file=sys.stderr, flush=True)


def _shrink(options: argparse.Namespace) -> int:
    def say(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    result = shrink_seed(options.shrink, options.nodes, options.seconds, say)
    if result.violation:
        _describe(result, options)
    print(f"seed={options.shrink} violations={result.report.violations} left_out={len(result.without)}")
    return 1 if result.violation else 0


def _self_test(options: argparse.Namespace) -> int:
    """Every broken variant must be found within `SELF_TEST_SEEDS` seeds."""
    missed = 0
    for variant in Variant:
        if variant is Variant.NONE:
            continue
        for seed in range(options.first_seed, options.first_seed + SELF_TEST_SEEDS):
            result = run_seed(seed, nodes=options.nodes, seconds=options.seconds, variant=variant)
            if result.violation:
                what = result.violation.splitlines()[0]
                print(f"{variant.value}: found by seed {seed} after {result.report.steps} steps: {what}")
                break
        else:
            missed += 1
            print(f"{variant.value}: not found in {SELF_TEST_SEEDS} seeds")
    print(f"variants={len(Variant) - 1} missed={missed}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

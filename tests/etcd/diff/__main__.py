"""``python -m tests.etcd.diff``: the campaign."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tests.etcd.diff.mutant import MUTANTS
from tests.etcd.diff.run import Difference, Run, Tally
from tests.etcd.diff.shrink import shrink
from tests.etcd.diff.target import Target
from tests.etcd.servers import ETCD, Nebula, RealEtcd


def attempt(seed: int, numbers: Sequence[int], options: argparse.Namespace) -> tuple[Tally, Difference | None]:
    """These operations of a seed against fresh servers."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.directory)))
        reference = stack.enter_context(RealEtcd(directory / "etcd"))
        if options.etcd_twice:
            endpoint = stack.enter_context(RealEtcd(directory / "other")).endpoints[0]
        else:
            prefix = [sys.executable, "-m", "tests.etcd.diff.mutant", options.mutant] if options.mutant else []
            other = stack.enter_context(Nebula(directory / "nebula", options.nodes, prefix=lambda _: prefix))
            endpoint = other.endpoints[other.leader(other.etcd_group)]
        one, two = Target(reference.endpoints[0]), Target(endpoint)
        stack.callback(one.close)
        stack.callback(two.close)
        run = Run(seed, one, two, options.families.split(",") if options.families else ())
        try:
            run.run(numbers)
        except Difference as difference:
            if isinstance(difference.reference, str):
                difference.panic = reference.panic()
            if difference.panic:
                return run.tally, difference
            if not options.etcd_twice:
                print(other.log_tails(), file=sys.stderr)
            return run.tally, difference
        return run.tally, None


def _again(seed: int, options: argparse.Namespace, numbers: Sequence[int]) -> Difference | None:
    return attempt(seed, numbers, options)[1]


def self_test(options: argparse.Namespace) -> int:
    """Each mutant must be found."""
    missed = []
    for options.mutant in MUTANTS:
        difference = attempt(options.seed, range(options.ops), options)[1]
        if difference is None:
            missed.append(options.mutant)
        print(
            f"{options.mutant}: {'missed' if difference is None else f'operation {difference.operation}'}",
            file=sys.stderr,
        )
    print(f"mutants={len(MUTANTS)} missed={len(missed)}")
    return 1 if missed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run seeds; 1 if there was a difference. A seed of which etcd dies ends there, and is counted apart."""
    parser = argparse.ArgumentParser(prog="python -m tests.etcd.diff", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--ops", type=int, default=5000, help="operations of each")
    parser.add_argument("--only", default="", help="numbers of the operations to run: 3,17,99")
    parser.add_argument("--families", default="", help="kinds of operations alone: kv_ops,txn_ops,lease_ops,…")
    parser.add_argument("--nodes", type=int, default=1, help="nodes of ours")
    parser.add_argument("--etcd-twice", action="store_true", help="etcd against etcd: there must be no difference")
    parser.add_argument("--attempts", type=int, default=30, help="runs to make a failing sequence smaller; 0: don't")
    parser.add_argument("--directory", type=Path, help="where the servers' data go for the time of the run")
    parser.add_argument("--mutant", default="", choices=["", *MUTANTS], help="spoil one of our answers")
    parser.add_argument("--self-test", action="store_true", help="spoil each; 0 if each is found")
    options = parser.parse_args(arguments)
    if ETCD is None:
        print("etcd isn't installed here; Debian has it in etcd-server", file=sys.stderr)
        return 1
    if options.self_test:
        return self_test(options)
    total, wrong, operations, differences, panics = Counter[str](), Counter[str](), 0, 0, 0
    for seed in range(options.seed, options.seed + options.seeds):
        numbers = [int(number) for number in options.only.split(",")] if options.only else list(range(options.ops))
        tally, difference = attempt(seed, numbers, options)
        total, wrong, operations = total + tally.requests, wrong + tally.wrong, operations + tally.operations
        if difference is None:
            print(f"seed {seed}: {tally.operations} operations, {tally.share_wrong:.0%} wrong", file=sys.stderr)
            continue
        if difference.panic:
            panics += 1
            print(f"seed {seed}: etcd died at {difference}\n{difference.panic}\n", file=sys.stderr)
            continue
        differences += 1
        numbers = [number for number in numbers if number <= difference.operation]
        print(f"seed {seed}: {difference}\n", file=sys.stderr)
        replay = f"{sys.executable} -m tests.etcd.diff --seed {seed} --nodes {options.nodes}"
        print(f"again: {replay} --ops {difference.operation + 1}", file=sys.stderr)
        if options.attempts:
            few, last = shrink(numbers, difference, partial(_again, seed, options), options.attempts)
            print(f"smaller: {replay} --only {','.join(map(str, few))}\n{last}", file=sys.stderr)
    for method, number in sorted(total.items()):
        print(f"  {method:<28}{number:>8}", file=sys.stderr)
    for text, number in wrong.most_common():
        print(f"  {number:>8}  {text}", file=sys.stderr)
    share = wrong.total() / max(1, total.total())
    print(
        f"seeds={options.seeds} operations={operations} requests={total.total()} wrong={share:.3f} "
        f"differences={differences} etcd_panics={panics}"
    )
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())

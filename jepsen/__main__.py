"""``python -m jepsen``: nodes, clients, faults, and a verdict (`jepsen`)."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from jepsen import clocks, namespaces
from jepsen.loopback import Loopback
from jepsen.namespaces import Namespaces
from jepsen.network import Network, NetworkError
from jepsen.run import NODES, Options, report, run, say
from jepsen.schedule import TIMINGS
from jepsen.verdict import Summary
from jepsen.workloads import WORKLOADS
from tests.integration import powerfail
from tests.integration.cluster import ClusterError

MAX_RATE: Final = 200.0
INTERRUPTED: Final = 130
SELF_TEST: Final = "powercut"
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Flags, valid ones."""
    parser = argparse.ArgumentParser(prog="python -m jepsen", description=__doc__)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="register")
    parser.add_argument("--nemesis", default="partition,kill", help=f"some of {','.join(TIMINGS)}")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=100.0, help="operations a second (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=None, help="of faults and clients; threads and sockets have none")
    parser.add_argument("--network", choices=("auto", "namespaces", "proxies"), default="auto")
    parser.add_argument(
        "--self-test", action="store_true", help="power cuts with the syncs swallowed; exits 0 only if that is found"
    )
    parser.add_argument("--folder", type=Path, default=None, help="default: jepsen-results/<time>-<workload>-<nemesis>")
    options = parser.parse_args(arguments)
    if options.self_test:
        options.nemesis = SELF_TEST
    options.nemeses = tuple(dict.fromkeys(name for name in options.nemesis.split(",") if name))
    for name in options.nemeses:
        if name not in TIMINGS:
            parser.error(f"no nemesis {name!r}; there are {', '.join(TIMINGS)}")
    if not options.nemeses:
        parser.error("name a nemesis; without faults nothing is proved")
    if not 0 < options.rate <= MAX_RATE:
        parser.error(f"--rate is a number up to {MAX_RATE:g}")
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 32)
    return options


def available(nemeses: Sequence[str]) -> tuple[str, ...]:
    """Those that this machine can do; says which it can't."""
    kept = []
    for name in nemeses:
        if name == "clock" and clocks.find() is None:
            say("skipped: nemesis clock, for libfaketime is not installed (Debian: libfaketime)")
        elif name == "powercut" and not powerfail.compiler():
            say("skipped: nemesis powercut, for there is no C compiler")
        else:
            kept.append(name)
    return tuple(kept)


def choose(options: argparse.Namespace, arguments: Sequence[str]) -> Network:
    """The network; may begin this program anew inside its namespaces, and not return."""
    rng = random.Random(options.seed)
    if namespaces.INSIDE in os.environ:
        return Namespaces(NODES)
    if options.network == "proxies":
        return Loopback(NODES, rng)
    why = namespaces.unavailable(netem="latency" in options.nemeses)
    if why is None:
        say("network: a namespace for each node")
        namespaces.enter([*arguments, f"--seed={options.seed}", f"--folder={options.folder}"])
    if options.network == "namespaces":
        raise NetworkError(str(why))
    say(f"network: loopback with a proxy before each node; {why}")
    return Loopback(NODES, rng)


def main(arguments: Sequence[str]) -> int:
    """0: nothing was violated and faults bit. 1: not so. 2: wrong usage. 130: interrupted."""
    options = parse(arguments)
    options.nemeses = available(options.nemeses)
    if not options.nemeses:
        say("skipped: no nemesis is left")
        return 0 if options.self_test else 1
    if options.folder is None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        options.folder = Path("jepsen-results", f"{stamp}-{options.workload}-{'-'.join(options.nemeses)}")
    try:
        network = choose(options, arguments)
        plan = Options(
            options.workload,
            options.nemeses,
            options.seconds,
            options.rate,
            options.seed,
            options.folder,
            clocks.find(),
            options.self_test,
        )
        summary = asyncio.run(_run(plan, network))
    except (asyncio.CancelledError, KeyboardInterrupt):
        say("interrupted; everything was taken down")
        return INTERRUPTED
    except (NetworkError, ClusterError) as error:
        say(f"jepsen: {error}")
        return 1
    for line in report(summary)[:-1]:
        say(line)
    say(f"results: {options.folder}")
    if options.self_test:
        caught = summary.verdict == "violated"
        print(f"self_test={'caught' if caught else 'missed'} {summary.line()}", flush=True)
        return 0 if caught else 1
    print(summary.line(), flush=True)
    return summary.exit_code


async def _run(plan: Options, network: Network) -> Summary:
    """Ctrl-C and SIGTERM cancel it, so that it takes everything down; a second one can't disturb that."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None

    def stop() -> None:
        for number in SIGNALS:
            loop.add_signal_handler(number, lambda: None)
        task.cancel()

    for number in SIGNALS:
        loop.add_signal_handler(number, stop)
    return await run(plan, network)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

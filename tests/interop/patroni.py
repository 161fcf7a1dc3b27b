"""``make interop-patroni``: two of Patroni's candidates for two minutes, over two killed leaders of ours.

The leader key is taken, kept, lost and watched: a candidate is stopped for longer than its lease and another takes
over; later one resigns. A candidate leads from when it took the key until it says that it lost it, or until the lease
of its last renewal is over, counted from before it asked; two such times must not meet. Ends with a line of
``key=value``.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, Final, TypeVar

from tests.etcd.servers import Nebula
from tests.interop.environment import INSTALLED, MISSING, PYTHON

SECONDS: Final = 120.0
PATIENCE: Final = 60.0
MOST_LEADERLESS: Final = 40.0
"""Seconds in a row: a lease's time (20 s), an election of ours and some rounds of Patroni's loop on a busy machine."""
Found = TypeVar("Found")


@dataclass
class Candidate:
    """A process and what it said."""

    name: str
    process: subprocess.Popen[str]
    said: list[dict[str, Any]] = field(default_factory=list)

    def read(self) -> None:
        """Until it ends."""
        assert self.process.stdout is not None
        self.said.extend(json.loads(line) for line in self.process.stdout)

    def leads(self) -> bool:
        """By what it said last about it."""
        last = [one["event"] for one in list(self.said) if one["event"] in {"took", "kept", "lost"}]
        return bool(last) and last[-1] != "lost"

    def times(self) -> list[tuple[float, float]]:
        """From when to when it led."""
        found: list[tuple[float, float]] = []
        began: float | None = None
        until = 0.0
        for one in self.said:
            if one["event"] in {"took", "kept"}:
                if began is not None and one["at"] > until and one["event"] == "took":
                    found.append((began, until))
                    began = None
                began = one["at"] if began is None else began
                until = one["until"]
            elif one["event"] == "lost" and began is not None:
                found.append((began, min(one["at"], until)))
                began = None
        if began is not None:
            found.append((began, until))
        return found


class Violation(Exception):
    """What must not be."""


def overlaps(candidates: Sequence[Candidate]) -> list[str]:
    """Times at which two led."""
    return [
        f"{one.name} led {a:.2f} to {b:.2f} and {other.name} {c:.2f} to {d:.2f}"
        for one, other in combinations(candidates, 2)
        for a, b in one.times()
        for c, d in other.times()
        if max(a, c) < min(b, d)
    ]


def leaderless(candidates: Sequence[Candidate]) -> float:
    """The longest time, in seconds, between one's end and another's beginning."""
    times = sorted(time_ for candidate in candidates for time_ in candidate.times())
    return max((later[0] - earlier[1] for earlier, later in pairwise(times)), default=0.0)


def wait_for(find: Callable[[], Found | None], what: str) -> Found:
    """What `find` gives at last."""
    deadline = time.monotonic() + PATIENCE
    while (found := find()) is None:
        if time.monotonic() > deadline:
            raise Violation(f"not within {PATIENCE:g} s: {what}")
        time.sleep(0.1)
    return found


def start(name: str, endpoints: Sequence[str], log: Path) -> Candidate:
    """A candidate's process."""
    script = Path(__file__).parent / "clients" / "with_patroni.py"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [str(PYTHON), str(script), name, ",".join(endpoints)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    candidate = Candidate(name, process)
    threading.Thread(target=candidate.read, daemon=True).start()
    return candidate


def story(cluster: Nebula, candidates: Sequence[Candidate], seconds: float) -> None:
    """What happens to them in `seconds`. Raises `Violation` where a change of leaders does not come."""
    end = time.monotonic() + seconds

    def leader(but: Candidate | None = None) -> Candidate:
        return wait_for(lambda: next((c for c in candidates if c is not but and c.leads()), None), "somebody leads")

    def kill_leader() -> None:
        """And it comes back when Patroni's leader has been kept without it."""
        holder, node = leader(), cluster.leader(cluster.etcd_group)
        kept = sum(one["event"] == "kept" for one in holder.said)
        cluster.kill(node)
        wait_for(
            lambda: sum(one["event"] == "kept" for one in holder.said) > kept + 2 or None, "the leader key is kept"
        )
        cluster.start(node)
        cluster.wait_ready(node)

    kill_leader()
    stopped = leader()
    stopped.process.send_signal(signal.SIGSTOP)
    try:
        leader(but=stopped)
    finally:
        stopped.process.send_signal(signal.SIGCONT)
    wait_for(lambda: None if stopped.leads() else True, "who was stopped for too long sees that it lost")
    kill_leader()
    resigning = leader()
    assert resigning.process.stdin is not None
    resigning.process.stdin.write("resign\n")
    resigning.process.stdin.flush()
    leader(but=resigning)
    while time.monotonic() < end:
        time.sleep(0.1)


def run(directory: Path, seconds: float) -> tuple[list[str], str]:
    """Violations, and the line to print."""
    with ExitStack() as stack:
        cluster = stack.enter_context(Nebula(directory / "nodes", 3))
        candidates = [start(name, cluster.endpoints, directory / f"{name}.log") for name in ("one", "two")]
        violations = []
        try:
            story(cluster, candidates, seconds)
        except Violation as violation:
            violations.append(str(violation))
        finally:
            for candidate in candidates:
                candidate.process.kill()
                candidate.process.wait()
    violations += overlaps(candidates)
    if leaderless(candidates) > MOST_LEADERLESS:
        violations.append(f"nobody led for {leaderless(candidates):.1f} s")
    events = Counter(one["event"] for candidate in candidates for one in candidate.said)
    violations += [
        f"nothing was {event}" for event in ("took", "kept", "lost", "woken", "resigned") if not events[event]
    ]
    counts = " ".join(f"{event}={events[event]}" for event in ("took", "kept", "lost", "woken", "resigned", "trouble"))
    reigns = sum(len(candidate.times()) for candidate in candidates)
    line = f"killed=2 {counts} reigns={reigns} leaderless={leaderless(candidates):.1f} violations={len(violations)}"
    return violations, line


def self_test(directory: Path) -> list[str]:
    """Each candidate asks a cluster of its own, so both lead: what is said of that."""
    with ExitStack() as stack:
        clusters = [stack.enter_context(Nebula(directory / name, 1)) for name in ("this", "that")]
        pairs = zip(("one", "two"), clusters, strict=True)
        candidates = [start(name, cluster.endpoints, directory / f"{name}.log") for name, cluster in pairs]
        try:
            wait_for(lambda: all(candidate.leads() for candidate in candidates) or None, "both lead")
        finally:
            for candidate in candidates:
                candidate.process.kill()
                candidate.process.wait()
    return overlaps(candidates)


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.interop.patroni", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long; longer if the story takes longer")
    parser.add_argument("--self-test", action="store_true", help="two leaders at once; 0 if that is seen")
    options = parser.parse_args()
    if not INSTALLED:
        print(f"interop-patroni: skipped: {MISSING}")
        return 0
    if options.self_test:
        with tempfile.TemporaryDirectory() as directory:
            found = self_test(Path(directory))
        print(f"violations={len(found)} self_test={'caught' if found else 'missed'}")
        return 0 if found else 1
    with tempfile.TemporaryDirectory() as directory:
        violations, line = run(Path(directory), options.seconds)
        for violation in violations:
            print(violation, file=sys.stderr)
        if violations:
            for log in sorted(Path(directory).glob("*.log")):
                print(f"{log.name}: {log.read_text(errors='replace')[-2000:]}", file=sys.stderr)
    print(line)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())

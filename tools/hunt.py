"""The process that hunts for one mutant: it runs in the copy that has the bug, with the production simulator.

    python -m tools.hunt FIRST-SEED SEEDS SECONDS all|clients

One JSON object on stdout: the fields of `tools.mutants.Find`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Final

import nebuladb
from nebuladb.sim.invariants.logs import Logs
from nebuladb.sim.invariants.replicas import Replicas
from nebuladb.sim.recovery import Recovery
from nebuladb.sim.runner import run_seed
from nebuladb.sim.violation import Violation
from nebuladb.sim.workloads.operator import Operator

CLIENTS: Final = ("board", "client", "invariants.changes", "register", "session_client", "workloads")
"""Modules of the simulator whose oracles look only at what clients are told, but for `OPERATOR`."""
OPERATOR: Final = "workloads.operator"
"""It reads of a node what its operator may see, and no client does."""
INTERNAL: Final[tuple[tuple[type, str], ...]] = (
    (Logs, "written"),
    (Logs, "committed"),
    (Logs, "elected"),
    (Replicas, "_changed"),
    (Replicas, "_published"),
    (Replicas, "hashes"),
    (Recovery, "_hashes_equal"),
    (Operator, "_check"),
)
"""Oracles that look at what no client sees."""
BROKEN: Final = ("AttributeError", "ImportError", "NameError", "TypeError")
"""A mutant that ends like this proves nothing."""
NODES: Final = 3
VIRTUAL_SECONDS: Final = 5.0
"""As ``python -m nebuladb.sim`` has them, so that the seeds mean the same there."""


def main() -> None:
    """See the module's docstring."""
    first, seeds, limit = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    if not Path(nebuladb.__file__).is_relative_to(Path.cwd()):
        raise SystemExit("the package that runs is not the copy")
    clients = sys.argv[4] == "clients"
    if clients:
        for kind, name in INTERNAL:
            quiet = _deaf(getattr(kind, name))
            setattr(kind, name, staticmethod(quiet) if isinstance(kind.__dict__[name], staticmethod) else quiet)
    begun = time.process_time()
    found: dict[str, Any] = {"seed": 0, "oracle": "", "client": False, "steps": 0, "violation": ""}
    tried = 0
    for seed in range(first, first + seeds):
        result = run_seed(seed, nodes=NODES, seconds=VIRTUAL_SECONDS)
        client = result.oracle.startswith(CLIENTS) and result.oracle != OPERATOR
        if result.oracle.startswith(BROKEN):
            raise SystemExit(f"the mutant isn't Python that runs: {result.violation}")
        if result.violation and (client or not clients):
            found = {
                "seed": seed, "oracle": result.oracle, "client": client, "steps": result.report.steps,
                "violation": result.violation,
            }  # fmt: skip
            break
        tried += 1
        if time.process_time() - begun > limit:
            break
    print(json.dumps(found | {"tried": tried, "seconds": time.process_time() - begun}))


def _deaf(check: Callable[..., Any]) -> Callable[..., Any]:
    """`check` that reports nothing; what it returns instead is what it would have had nothing been wrong."""

    @wraps(check)
    def quiet(*args: Any) -> Any:
        try:
            return check(*args)
        except Violation:
            return args[2].raft.commit if check is COMMITTED else True

    return quiet


COMMITTED: Final = Logs.committed

if __name__ == "__main__":
    main()

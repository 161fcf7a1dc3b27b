"""The process that hunts for one mutant: it runs in the copy that has the bug, with the production simulator.

    python -m tools.hunt FIRST-SEED SEEDS SECONDS all|clients

One JSON object on stdout: the fields of `tools.mutants.Find`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import nebuladb
from nebuladb.sim.runner import run_seed
from tools.mutants_clients import begin_run, listen_to_clients_alone, seen_by_a_client

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
        listen_to_clients_alone()
    begun = time.process_time()
    found: dict[str, Any] = {"seed": 0, "oracle": "", "client": False, "steps": 0, "violation": ""}
    tried = 0
    for seed in range(first, first + seeds):
        begin_run()
        result = run_seed(seed, nodes=NODES, seconds=VIRTUAL_SECONDS)
        client = seen_by_a_client(result)
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


if __name__ == "__main__":
    main()

"""Which probes the product has: the swarm's report names those that no seed reached (house rule 9)."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

import nebuladb

ROOT: Final = Path(nebuladb.__file__).parent
SIMULATED: Final = ("raft", "storage", "kv", "shard", "node")
"""Packages whose code runs here; others' probes can't be reached."""
UNREACHABLE: Final = (
    "node/pump.py",
    "node/flusher.py",
    "node/fetcher.py",
    "storage/kernel_sync.py",
    "storage/rocks.py",
    "storage/wal.py",
)
"""Files of theirs that only the daemon runs: threads, the event loop, real disks."""


def all_probes() -> dict[str, str]:
    """Name → the file that has it. Names that are made up at run time are left out: they have no list."""
    found: dict[str, str] = {}
    for package in SIMULATED:
        for path in sorted((ROOT / package).rglob("*.py")):
            file = path.relative_to(ROOT).as_posix()
            if file in UNREACHABLE:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "probe":
                    name = node.args[0]
                    if isinstance(name, ast.Constant) and isinstance(name.value, str):
                        found[name.value] = file
    return found

"""The simulator is the world and nothing else: it has no state machine and no log of its own (DESIGN §10)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import nebuladb
from nebuladb.storage.log import LogStore

SIM: Final = Path(nebuladb.__file__).parent / "sim"
FILES: Final = sorted(SIM.rglob("*.py"))
PRODUCT: Final = ("nebuladb.raft", "nebuladb.storage", "nebuladb.kv", "nebuladb.shard", "nebuladb.node")
MAY_EXTEND: Final = {"WatchedLog": "LogStore"}
"""Only to look at what is written."""
FORBIDDEN_NAMES: Final = {
    "Store", "StateMachine", "LogStore", "Log", "Raft", "Host", "Node", "Replica", "Session", "Sessions", "WatchHub",
    "Lessor",
}  # fmt: skip
DAEMON: Final = ("nebuladb.node.pump", "nebuladb.node.fetcher", "nebuladb.node.flusher", "nebuladb.storage.rocks")
OUTSIDE: Final = ("asyncio", "threading", "socket", "secrets", "uuid")
MAY_IMPORT: Final = {"loop.py": "asyncio", "workloads/compactor.py": "asyncio"}
"""Its futures and tasks, which run on a loop of virtual time."""


def _classes() -> Iterator[tuple[str, ast.ClassDef, dict[str, str]]]:
    """File, class, and where each imported name comes from."""
    for path in FILES:
        tree = ast.parse(path.read_text())
        imported = {
            name.asname or name.name: node.module or ""
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for name in node.names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                yield path.relative_to(SIM).as_posix(), node, imported


def broken(classes: Iterator[tuple[str, ast.ClassDef, dict[str, str]]]) -> list[str]:
    """What defines or extends a piece of the product."""
    found = []
    for file, node, imported in classes:
        if node.name in FORBIDDEN_NAMES:
            found.append(f"{file}: {node.name} is the product's")
        for base in node.bases:
            name = base.id if isinstance(base, ast.Name) else ast.unparse(base)
            if imported.get(name, "").startswith(PRODUCT) and MAY_EXTEND.get(node.name) != name:
                found.append(f"{file}: {node.name} extends the product's {name}")
    return found


def test_no_state_machine_and_no_log_of_its_own() -> None:
    assert broken(_classes()) == []


def test_that_rule_can_fail() -> None:
    tree = ast.parse("class Mine(Store): ...\nclass Raft: ...")
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert len(broken(iter([("x.py", node, {"Store": "nebuladb.kv.store"}) for node in classes]))) == 2


def test_the_watched_log_only_looks() -> None:
    (watched,) = [node for _, node, _ in _classes() if node.name == "WatchedLog"]
    methods = {node.name for node in watched.body if isinstance(node, ast.FunctionDef)}
    assert methods & set(vars(LogStore)) == {"__init__", "write"}
    (write,) = [node for node in watched.body if isinstance(node, ast.FunctionDef) and node.name == "write"]
    assert "super().write(batch, flushed)" in map(ast.unparse, write.body)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SIM).as_posix())
def test_no_daemon_no_threads_and_no_global_randomness(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.Import):
            modules = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
            assert node.module != "random" or {name.name for name in node.names} == {"Random"}
        allowed = MAY_IMPORT.get(path.relative_to(SIM).as_posix())
        roots = [module.split(".")[0] for module in modules if module != allowed]
        assert not [module for module in modules if module.startswith(DAEMON)]
        assert not [root for root in roots if root in OUTSIDE]
        assert "random" not in modules or isinstance(node, ast.ImportFrom)
        if "time" in modules:
            assert path.name in ("__main__.py", "runner.py")

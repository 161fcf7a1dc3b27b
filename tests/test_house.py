"""The house rules that a linter does not know: lengths as a ratchet, dependencies declared and explained, true docs."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Final

import click
import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

from nebuladb.cli.main import main as nebula_cli
from nebuladb.server.main import nebulad
from tools import lock

ROOT: Final = Path(__file__).resolve().parent.parent
GENERATED: Final = ROOT / "nebuladb" / "pb" / "nebula"
FILES: Final = sorted(
    path
    for folder in ("nebuladb", "tools", "tests", "jepsen")
    for path in (ROOT / folder).rglob("*.py")
    if not path.is_relative_to(GENERATED)
)
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWNERS: Final = packages_distributions()
"""Name of a package → distributions that have it."""

MAX_FILE: Final = 500
MAX_FUNCTION: Final = 70

LONG_FILES: Final[dict[str, int]] = {}
"""Path → lines that it may have. A ratchet: entries shrink and go; none is added."""
LONG_FUNCTIONS: Final[dict[str, int]] = {}
"""path::function → lines, likewise."""


def functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(name, lines from `def` to the end) of every function; a decorator is not its body."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def over_file_limit(path: Path) -> int:
    """Its lines if they are too many, else 0."""
    lines = len(path.read_text(encoding="utf-8").splitlines())
    return lines if lines >= MAX_FILE else 0


def over_function_limit(source: str) -> dict[str, int]:
    """Functions that are too long, with their lines."""
    return {name: lines for name, lines in functions(ast.parse(source)) if lines >= MAX_FUNCTION}


def test_files_stay_short() -> None:
    assert {str(path.relative_to(ROOT)): lines for path in FILES if (lines := over_file_limit(path))} == LONG_FILES


def test_functions_stay_short() -> None:
    found = {
        f"{path.relative_to(ROOT)}::{name}": lines
        for path in FILES
        for name, lines in over_function_limit(path.read_text(encoding="utf-8")).items()
    }
    assert found == LONG_FUNCTIONS


def test_the_ratchet_sees_what_is_too_long(tmp_path: Path) -> None:
    body = "def long():\n" + "    pass\n" * (MAX_FUNCTION - 1)
    assert over_function_limit(body) == {"long": MAX_FUNCTION}
    assert over_function_limit(body.removesuffix("    pass\n")) == {}
    file = tmp_path / "long.py"
    file.write_text("pass\n" * MAX_FILE)
    assert over_file_limit(file) == MAX_FILE
    file.write_text("pass\n" * (MAX_FILE - 1))
    assert over_file_limit(file) == 0


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, relative ones left out."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def normal(name: str) -> str:
    """A distribution's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement(line: str) -> str:
    """The name in ``name>=1,<2``."""
    match = re.match(r"[A-Za-z0-9._-]+", line)
    assert match is not None
    return normal(match[0])


def third_party(path: Path) -> set[str]:
    """Distributions that a file of the package imports."""
    found = set()
    for name in imports(path):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top != "nebuladb":
            # Several distributions share the name google; ours is protobuf.
            found.add("protobuf" if name.startswith("google.protobuf.") else normal(OWNERS.get(top, [top])[0]))
    return found


def declared() -> set[str]:
    """The run-time dependencies of pyproject.toml."""
    return {requirement(line) for line in PROJECT["dependencies"]}


def test_imports_are_declared_and_declarations_are_imported() -> None:
    used: set[str] = set()
    for path in (ROOT / "nebuladb").rglob("*.py"):
        used |= third_party(path)
    assert used == declared()


def readme_rows() -> dict[str, str]:
    """Dependency → reason, of the tables in the README."""
    rows = re.findall(r"^\| `([\w.-]+)` \| (.+?) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    return {normal(name): reason for name, reason in rows}


def test_every_dependency_has_its_reason_in_the_readme() -> None:
    extras = {requirement(line) for lines in PROJECT["optional-dependencies"].values() for line in lines}
    rows = readme_rows()
    assert set(rows) == declared() | extras
    assert all(len(reason) > 20 for reason in rows.values())


def locked(name: str) -> dict[str, tuple[str, str]]:
    """The pins of a lock file."""
    return lock.pins((ROOT / name).read_text())


def test_the_locks_pin_every_dependency_to_a_version_that_is_allowed() -> None:
    runtime, development = locked("requirements.lock"), locked("requirements-dev.lock")
    assert not set(runtime) & set(development)
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    for lines, pins in (([*build, *PROJECT["dependencies"]], runtime), (extras, development)):
        for wanted in map(Requirement, lines):
            assert normal(wanted.name) in pins, "make lock"
            assert wanted.specifier.contains(pins[normal(wanted.name)][0]), f"{wanted}: make lock"


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_every_pin_has_hashes_and_no_file_says_where_it_came_from(name: str) -> None:
    text = (ROOT / name).read_text()
    parts = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(parts) == len(locked(name)) > 10
    assert [part.split()[0] for part in parts if not re.search(r"--hash=sha256:[0-9a-f]{64}", part)] == []
    assert "://" not in text


def test_what_is_installed_here_is_what_the_locks_say() -> None:
    pins = {**locked("requirements.lock"), **locked("requirements-dev.lock")}
    here = {name: pin for name, (pin, marker) in pins.items() if not marker or Marker(marker).evaluate()}
    assert {name: version(name) for name in here} == here


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """A command and all beneath it, each with the words that call it."""
    yield name, command
    if isinstance(command, click.Group):
        for word, child in command.commands.items():
            yield from commands(child, f"{name} {word}")


ALL_COMMANDS: Final = {**dict(commands(nebula_cli, "nebula-cli")), **dict(commands(nebulad, "nebulad"))}


def unknown_in(line: str) -> str | None:
    """What a command line of an example or a document names that doesn't exist: a subcommand or an option."""
    found = re.search(r"\b(nebula-cli|nebulad)(?![\w.])(.*)", line)
    if found is None:
        return None
    words = re.split(r"\s+[|<>&;#]|`", found[2])[0].split()
    name = found[1]
    while words:
        command, word = ALL_COMMANDS[name], words.pop(0)
        options = {flag: option for option in command.params for flag in (*option.opts, *option.secondary_opts)}
        if word.startswith("-") and len(word) > 1:
            flag = word.partition("=")[0]
            if flag not in {*options, "-h", "--help", "--version"}:
                return f"{name} {flag}"
            option = options.get(flag)
            if isinstance(option, click.Option) and not option.is_flag and "=" not in word and words:
                words.pop(0)
        elif isinstance(command, click.Group):
            name = f"{name} {word}"
            if name not in ALL_COMMANDS:
                return name
        elif command.context_settings.get("allow_interspersed_args") is False:
            return None  # what follows is another program's
    return None


@pytest.mark.parametrize("name", sorted(ALL_COMMANDS))
def test_examples_in_help_exist(name: str) -> None:
    text = ALL_COMMANDS[name].help or ""
    assert text, "a command says what it does"
    assert [unknown for line in text.splitlines() if (unknown := unknown_in(line))] == []


ENDS: Final = (".py", "/__main__.py")
"""Of a module that can be run."""
DOCUMENTS: Final = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")])


TARGETS: Final = frozenset(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def shell_lines(text: str) -> list[str]:
    """The lines of a document's shell samples, each whole."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def unknown_targets(text: str) -> set[str]:
    """What a document would have one make that can't be made, in samples and in code spans of its prose."""
    sampled = {word for line in shell_lines(text) for word in re.findall(r"^make ([a-z-]+)", line)}
    return (sampled | set(re.findall(r"`make ([a-z-]+)", text))) - TARGETS


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_documents_exist(path: Path) -> None:
    text = path.read_text()
    assert [unknown for line in shell_lines(text) if (unknown := unknown_in(line))] == []
    assert unknown_targets(text) == set()
    modules = set(re.findall(r"python3? -m ((?:nebuladb|tests|tools|bench|jepsen)[\w.]*)", text))
    missing = {name for name in modules if not any((ROOT / f"{name.replace('.', '/')}{end}").exists() for end in ENDS)}
    assert missing == set()


def test_the_reader_of_examples_sees_what_does_not_exist() -> None:
    assert unknown_targets("As `make check`, and `make nothing SEEDS=1`.\n```sh\nmake test\nmake nil\n```\n") == {
        "nothing",
        "nil",
    }
    assert unknown_in("  nebula-cli --endpoints a:1 put --lease 3 k v") is None
    assert unknown_in("  nebula-cli frobnicate") == "nebula-cli frobnicate"
    assert unknown_in("  date | nebula-cli put --colour k -") == "nebula-cli put --colour"
    assert unknown_in("  nebulad dev --nodes 3 --base-prot 1") == "nebulad dev --base-prot"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_in_documents_lead_somewhere(path: Path) -> None:
    text = path.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link]
    missing = [link for link in links if not (path.parent / link).exists()]
    named = re.findall(r"`((?:nebuladb|tests|tools|docs|proto|cmd|deploy)/[\w./-]+)`", text)
    missing += [name for name in named if not (ROOT / name).exists()]
    assert missing == []


def test_every_safety_rule_that_is_named_is_in_the_document() -> None:
    rules = set(re.findall(r"^- \*\*(S\d+)\*\*", (ROOT / "docs" / "safety.md").read_text(), re.MULTILINE))
    texts = [path.read_text() for path in [*FILES, *DOCUMENTS]]
    named = {rule for text in texts for rule in re.findall(r"\bS\d{1,2}\b", text)}
    assert named <= rules
    assert rules == {f"S{number}" for number in range(1, 36)}

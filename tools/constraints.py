"""Writes ``constraints.txt`` from what is installed: ``make constraints``."""

from __future__ import annotations

import re
from importlib.metadata import distributions
from pathlib import Path
from typing import Final

FILE: Final = Path(__file__).resolve().parent.parent / "constraints.txt"
HEAD: Final = """\
# The versions that CI runs with. Constraints: nothing is installed because it stands here. `make constraints` renews
# them from .venv; for newer ones, `.venv/bin/pip install -U -e '.[dev]'` before it.
"""
OURS: Final = "nebuladb"
NOT_OURS: Final = "pip"
"""Comes with Python, whichever it is."""


def installed() -> dict[str, str]:
    """Normalised name → version of every distribution here but ourselves and pip."""
    found = {re.sub(r"[-_.]+", "-", dist.name).lower(): dist.version for dist in distributions()}
    return {name: found[name] for name in sorted(found) if name not in (OURS, NOT_OURS)}


def main() -> None:
    """See the module's docstring."""
    FILE.write_text(HEAD + "".join(f"{name}=={version}\n" for name, version in installed().items()))


if __name__ == "__main__":
    main()

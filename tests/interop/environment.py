"""Where other people's Python clients are installed, and how a script runs there."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
HOME: Final = ROOT / ".venv" / "interop"
"""``make interop-setup`` makes it."""
PYTHON: Final = HOME / "bin" / "python"
INSTALLED: Final = (HOME / ".complete").exists()
"""Whether all of it is there: an index that can't be reached leaves half an environment."""
MISSING: Final = "the clients of others aren't installed here: make interop-setup"
SECONDS: Final = 120.0


def run_client(name: str, *arguments: str) -> None:
    """Run ``clients/NAME.py``. It says nothing and exits 0, or the test fails with what it said."""
    script = Path(__file__).parent / "clients" / f"{name}.py"
    done = subprocess.run(
        [str(PYTHON), str(script), *arguments], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]

"""The least versions that ``pyproject.toml`` allows, and whether they do: ``make floors``.

Nobody else would see a floor that is too low: this project's own environments have what the lock files say. So the
package is installed beside the least versions in an environment of its own, every module of it is imported, and both
programs print their help. Needs the package index.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
UV: Final = Path(sys.executable).with_name("uv")
IMPORTS: Final = """
import importlib, pkgutil, nebuladb
names = [module.name for module in pkgutil.walk_packages(nebuladb.__path__, "nebuladb.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(f"modules={len(names)}")
"""


def main() -> int:
    """0 if all of it works."""
    with tempfile.TemporaryDirectory() as place:
        source, environment = Path(place) / "source", Path(place) / "venv"
        # Not from here: a build leaves a folder, and the next one takes what it finds there.
        shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__"))
        programs = environment / "bin"
        python = programs / "python"
        for command in (
            [UV, "venv", "-q", "--python", sys.executable, environment],
            [UV, "pip", "install", "-q", "--python", python, "--resolution", "lowest-direct", source],
            [UV, "pip", "list", "--python", python],
            [python, "-c", IMPORTS],
            [programs / "nebulad", "--help"],
            [programs / "nebula-cli", "--help"],
        ):
            done = subprocess.run([str(part) for part in command], check=False, cwd=place)
            if done.returncode:
                return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

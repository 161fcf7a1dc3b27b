"""Clocks of nodes that jump, by libfaketime where it is installed (Debian: libfaketime)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

PLACES: Final = (
    *Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"),
    Path("/usr/lib/faketime/libfaketimeMT.so.1"),
    Path("/usr/local/lib/faketime/libfaketimeMT.so.1"),
)


def find() -> Path | None:
    """The library."""
    return next((path for path in PLACES if path.exists()), None)


class Clocks:
    """Node i's offset, in a file that its library reads again with each look at a clock.

    Monotonic clocks jump as well, as after a suspended machine. They never go back, for no kernel does that.
    """

    def __init__(self, library: Path | None, directory: Path) -> None:
        self._library = library
        self._directory = directory
        self._offsets: dict[int, int] = {}

    def environ(self, node: int) -> Mapping[str, str]:
        """For a node's start."""
        if self._library is None:
            return {}
        self.jump(node, 0)
        return {
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file(node)),
            "FAKETIME_NO_CACHE": "1",
            # Waits by absolute time would otherwise end at once, or in years.
            "FAKETIME_DONT_RESET": "1",
        }

    def jump(self, node: int, seconds: int) -> None:
        """Ahead."""
        self._offsets[node] = self._offsets.get(node, 0) + seconds
        draft = self._file(node).with_suffix(".new")
        draft.write_text(f"+{self._offsets[node]}s\n")
        draft.replace(self._file(node))

    def moves(self, pid: int) -> bool:
        """Whether the library is in that process. Where the loader refuses it, the process runs on without it."""
        try:
            return self._library is not None and str(self._library.resolve()) in Path(f"/proc/{pid}/maps").read_text()
        except OSError:
            return False

    def _file(self, node: int) -> Path:
        return self._directory / f"n{node + 1}.clock"


def preloads(*environments: Mapping[str, str]) -> dict[str, str]:
    """One environment of several, each of which may want a library preloaded."""
    merged: dict[str, str] = {}
    libraries = []
    for environment in environments:
        merged.update(environment)
        if "LD_PRELOAD" in environment:
            libraries.append(environment["LD_PRELOAD"])
    return merged | ({"LD_PRELOAD": ":".join(libraries)} if libraries else {})

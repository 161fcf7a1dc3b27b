"""What a power cut leaves, for processes that ran under ``preload/syncspy.c``.

The model is the strictest that POSIX allows: nothing survives but what was synced. A file keeps its length as of the
start of its last fsync or fdatasync; a directory keeps the names it had at the start of its last fsync, so that files
created since are gone, and files renamed or removed since are back under their old names. (A real file system often
keeps more.) What was overwritten in place, as the zeros ahead in a WAL are, is again what it was when the last sync
began, or, with `pages`, by a throw for each page of memory, what it is now: the kernel writes them in any order. A file
that was truncated is taken to have lost its end at once.

    library = build(directory)                       # None: no C compiler
    environment = environ(library, records, data)    # for each start; then SIGKILL, and when the process is gone:
    report = cut(data, records)
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).parent / "preload" / "syncspy.c"
COMPILERS: Final = ("cc", "gcc", "clang")
PAGE: Final = 4096
"""Bytes that reach the disk together, or not."""

Inode = tuple[int, int]
"""(device, inode)."""


@dataclass(slots=True)
class Report:
    """What a cut took away, by path relative to the data directory."""

    shortened: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Path -> (length before, length after)."""
    reverted: int = 0
    """Bytes that are what they were before they were overwritten."""
    removed: list[str] = field(default_factory=list)
    """Names that had not been made durable."""
    restored: list[str] = field(default_factory=list)
    """Names whose removal had not."""

    @property
    def lost(self) -> int:
        """Bytes cut off the ends of files that stayed, or reverted."""
        return sum(before - after for before, after in self.shortened.values()) + self.reverted


@dataclass(slots=True)
class _Record:
    lengths: dict[Inode, int] = field(default_factory=dict)
    names: dict[Inode, dict[str, tuple[bool, Inode]]] = field(default_factory=dict)
    """Directory -> name -> (is a directory, inode)."""
    overwritten: dict[Inode, list[tuple[int, bytes]]] = field(default_factory=dict)
    """(Offset, what was there) of each write since the last sync, oldest first."""


def compiler() -> str | None:
    """A C compiler, if there is one and the platform has LD_PRELOAD."""
    return next(filter(None, map(shutil.which, COMPILERS)), None) if sys.platform.startswith("linux") else None


def build(directory: Path) -> Path | None:
    """Compile the library into `directory`. None where there is no C compiler, or no LD_PRELOAD."""
    command_name = compiler()
    if command_name is None:
        return None
    library = directory / "syncspy.so"
    command = [command_name, "-shared", "-fPIC", "-O1", "-Wall", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return library


def environ(library: Path, records: Path, data: Path, *, drop: bool = False) -> dict[str, str]:
    """The environment variables under which a process that keeps its data in `data` is to be started.

    `records` must lie on the same file system as `data`. What `data` holds before the first call is taken as durable.
    `drop`: syncs do nothing and say that they succeeded. For other faults see the library's source, or `control`.
    """
    data.mkdir(parents=True, exist_ok=True)
    if not (records / "records").exists():
        _begin(data, records)
    variables = {"LD_PRELOAD": str(library), "SYNCSPY_DIR": str(records), "SYNCSPY_ROOT": str(data)}
    return variables | ({"SYNCSPY_DROP": "1"} if drop else {})


def control(records: Path, **faults: int | str) -> None:
    """Order faults of a running process: ``hang=1, match=".log"``, ``delay_ms=500``, ``error=5``, ``drop=1``. These
    replace all earlier ones; none at all is none."""
    text = "".join(f"SYNCSPY_{name.upper()}={value}\n" for name, value in sorted(faults.items()))
    draft = records / "control.tmp"
    draft.write_text(text)
    draft.replace(records / "control")


def cut(data: Path, records: Path, pages: random.Random | None = None) -> Report:
    """Cut the directory `data` of dead processes to what is durable, and begin the record anew.

    `pages` chooses which overwritten pages had reached the disk nevertheless; without it none had.
    """
    record = _read(records / "records")
    stash = records / "stash"
    stash.mkdir()
    # Every file's bytes under a name of their own, whatever names they had, have, or are to have again.
    for path in [*_files(data), *_files(records / "keep")]:
        status = path.lstat()
        target = stash / f"{status.st_dev}.{status.st_ino}"
        if not target.exists():
            os.link(path, target)
    report = Report()
    for inode, writes in record.overwritten.items():
        report.reverted += _revert(stash / f"{inode[0]}.{inode[1]}", writes, pages)
    _rebuild(data, data, record, stash, report)
    shutil.rmtree(stash)
    _begin(data, records)
    return report


def _rebuild(directory: Path, data: Path, record: _Record, stash: Path, report: Report) -> None:
    """Give `directory` its durable names and each file its durable length."""
    wanted = record.names.get(_inode(directory), {})
    present = {path.name: (path.is_dir(), _inode(path)) for path in directory.iterdir()}
    for name, (is_directory, inode) in sorted(present.items()):
        path = directory / name
        if name not in wanted:
            report.removed.append(str(path.relative_to(data)))
        if not is_directory:
            path.unlink()
        elif wanted.get(name) != (True, inode):
            shutil.rmtree(path)
    for name, (is_directory, inode) in sorted(wanted.items()):
        path = directory / name
        shown = str(path.relative_to(data))
        if present.get(name) != (is_directory, inode):
            report.restored.append(shown)
        if is_directory:
            if not path.is_dir():
                raise NotImplementedError(f"the directory {path} lost its name; that is not modelled")
            _rebuild(path, data, record, stash, report)
            continue
        os.link(stash / f"{inode[0]}.{inode[1]}", path)
        before, after = path.stat().st_size, record.lengths.get(inode, 0)
        if after < before:
            report.shortened[shown] = (before, after)
            os.truncate(path, after)


def _revert(path: Path, writes: list[tuple[int, bytes]], pages: random.Random | None) -> int:
    """Undo `writes`, but for those that go to pages that had reached the disk; returns how many bytes it undid."""
    if not path.exists():  # it lies elsewhere
        return 0
    reached: dict[int, bool] = {}
    undone = 0
    with path.open("r+b") as file:
        for at, old in reversed(writes):
            for page in range(at // PAGE, (at + len(old) - 1) // PAGE + 1):
                if pages is not None and page not in reached:
                    reached[page] = pages.random() < 0.5
                if not reached.get(page):
                    begin, end = max(at, page * PAGE), min(at + len(old), (page + 1) * PAGE)
                    file.seek(begin)
                    file.write(old[begin - at : end - at])
                    undone += end - begin
    return undone


def _begin(data: Path, records: Path) -> None:
    """Start a record in which everything that there is in `data` is durable."""
    shutil.rmtree(records / "keep", ignore_errors=True)
    (records / "keep").mkdir(parents=True)
    lines = []
    for directory, subdirectories, files in os.walk(data):
        listing = "".join(
            f"{kind}{_inode(Path(directory, name))[1]} {name}/"
            for kind, names in (("d", subdirectories), ("f", files))
            for name in names
        )
        lines.append(f"D {_at(_inode(Path(directory)))} {listing}.\n")
        paths = [Path(directory, name) for name in files]
        lines.extend(f"F {_at(_inode(path))} {path.stat().st_size} .\n" for path in paths)
    (records / "records").write_text("".join(lines))


def _read(path: Path) -> _Record:
    record = _Record()
    syncs: dict[str, list[tuple[int, bytes]]] = {}
    """Token of a sync under way -> the file's writes that it covers."""
    for line in path.read_bytes().decode(errors="surrogateescape").split("\n"):
        if not line.endswith("."):
            continue  # empty, or cut by a SIGKILL before its call returned
        kind, device, number, rest = line[:-1].split(" ", 3)
        if kind == "X":
            raise RuntimeError(f"the record is void, a file could not be kept (is it on another file system?): {line}")
        inode = int(device), int(number)
        if kind == "W":
            offset, old = rest.split()
            record.overwritten.setdefault(inode, []).append((int(offset), bytes.fromhex(old)))
        elif kind == "S":
            syncs[rest.split()[1]] = record.overwritten.get(inode, [])[:]
        elif kind == "F":
            size, *token = rest.split()
            record.lengths[inode] = int(size)
            _covered(record.overwritten.get(inode, []), syncs.pop(token[0], []) if token else [])
        elif kind == "T":
            length = int(rest)
            record.lengths[inode] = min(length, record.lengths.get(inode, 0))
            record.overwritten[inode] = _clipped(record.overwritten.get(inode, []), length)
        else:
            entries = [entry.split(" ", 1) for entry in rest.split("/")[:-1]]
            record.names[inode] = {name: (at[0] == "d", (inode[0], int(at[1:]))) for at, name in entries}
    return record


def _covered(pending: list[tuple[int, bytes]], synced: list[tuple[int, bytes]]) -> None:
    """Drop those of `pending` that are in `synced`: the very same ones."""
    ids = set(map(id, synced))
    pending[:] = [write for write in pending if id(write) not in ids]


def _clipped(writes: list[tuple[int, bytes]], length: int) -> list[tuple[int, bytes]]:
    """What of `writes` a file of `length` bytes still has; the very same ones where that is all of them."""
    clipped = []
    for write in writes:
        at, old = write
        if at + len(old) <= length:
            clipped.append(write)
        elif at < length:
            clipped.append((at, old[: length - at]))
    return clipped


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())


def _inode(path: Path) -> Inode:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _at(inode: Inode) -> str:
    return f"{inode[0]} {inode[1]}"

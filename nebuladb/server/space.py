"""The room on the data directory's disk: a watermark, and a ballast file that is given up at need (S33)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

import structlog

from nebuladb.errors import ConfigurationError, StoreError
from nebuladb.node.disk import Space

LOOK_SECONDS: Final = 0.25
"""A disk of 200 MB/s fills up by 50 MB in between; the watermark is far above, or `hurry` is called more often: with
the data store's flushes, the more often the less memory, and so probably disk, there is."""
SHORT_SECONDS: Final = 60.0
"""A life that met the end of its disk sooner than this has not helped: the next one is waited for twice as long."""
MAX_DOUBLINGS: Final = 8
"""Of `LOOK_SECONDS`, to a minute."""
LIVES: Final = "NEBULAD_SHORT_LIVES"
"""The variable that tells a process how many short lives there were before it."""
BALLAST_SECONDS: Final = 60.0
"""Between two tries to lay in a ballast that can't be."""
BALLAST_FILE: Final = "ballast"
SIZES: Final[Mapping[str, int]] = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_AMOUNT: Final = re.compile(r"(\d{1,15}) ?([KMG]iB|B)|(\d{1,2}(?:\.\d{1,3})?)%|0")


class Amount(NamedTuple):
    """A part of a whole, and at most or (`part` 0) exactly so many bytes."""

    part: float
    size: int

    def of(self, whole: int) -> int:
        """Bytes."""
        return min(int(whole * self.part), self.size) if self.part else self.size


AUTO_LOW: Final = Amount(0.05, 1 << 30)
AUTO_BALLAST: Final = Amount(0.25, 64 << 20)
"""Of the watermark."""
LOW_INODES: Final = Amount(0.05, 1_000)
"""The watermark of what a file system has for files, where it has a fixed number: each takes one, empty or not."""
START_ROOM: Final = Amount(0.01, 16 << 20)
START_INODES: Final = Amount(0.01, 100)
"""Without which a node isn't started again after a full disk, whatever the watermark is."""
_BEGUN: Final = time.monotonic()


def amount(text: str, auto: Amount) -> Amount:
    """``2GiB``, ``5%``, ``0`` or ``auto``. Raises `ConfigurationError`."""
    if text == "auto":
        return auto
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"{text!r} is no amount of space; write a size like 2GiB, a part like 5%, 0 or auto")
    if match[3]:
        return Amount(float(match[3]) / 100, 1 << 62)
    return Amount(0, int(match[1] or 0) * SIZES[match[2] or "B"])


class Reserves(NamedTuple):
    """What is kept free. `low`: of the disk; `ballast`: of that."""

    low: Amount
    ballast: Amount


class Room(NamedTuple):
    """Bytes of the disk, and those that are free for us; inodes likewise, 0 and 0 where there is no such bound."""

    total: int
    free: int
    inodes: int = 0
    inodes_free: int = 0


def room_of(directory: Path) -> Room:
    """Ask the operating system; blocks on a disk that hangs. Raises `OSError`."""
    found = os.statvfs(directory)
    files = (found.f_files, found.f_favail) if found.f_files else (0, 0)
    return Room(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, *files)


class SpaceWatch:
    """Looks at the room there is, and tells when that has come to mean something else.

    Down at `low` and at half of it, up again a quarter of `low` above `low`: a node that deletes and compacts around
    the mark must not change its mind all the time. The ballast goes before it is critical, and is made again only where
    that leaves plenty. Inodes have a mark of their own, `LOW_INODES`; whichever there is less of counts. A `low` of 0
    bytes means that neither is looked at.
    """

    def __init__(
        self,
        directory: Path,
        reserves: Reserves,
        tell: Callable[[Space, str], None],
        room: Callable[[Path], Room] = room_of,
        gone: Callable[[StoreError], None] = lambda error: None,
    ) -> None:
        """`gone` is told, once, when there is no such directory any more; nothing is looked at then."""
        self._directory = directory
        self._reserves = reserves
        self._tell = tell
        self._room = room
        self._gone = gone
        self._ballast = directory / BALLAST_FILE
        self._log = structlog.get_logger("space")
        self.space = Space.PLENTY
        self._bytes = self._inodes = Space.PLENTY
        """What each of them was at the last look."""
        self._failed = False
        """The last look did, which is said once."""
        self._bare_until = 0.0
        """Not 0: a ballast couldn't be laid in, which was said, and is tried again then."""
        self._hurry = asyncio.Event()
        self.seen: tuple[Room, int] | None = None
        """At the last look: the room there was, and the free bytes below which the node is read-only."""

    async def run(self) -> None:
        """Look for ever, whatever a look meets; `tell` is called in the loop."""
        while True:
            try:
                space, text = await asyncio.to_thread(self.look)
            except FileNotFoundError:
                path = self._directory
                self._gone(StoreError(f"data-dir: {path} is gone: somebody removed it, or its disk, under the node"))
                return
            except (OSError, RuntimeError) as error:  # the latter: there was no thread to look in
                if not self._failed:
                    self._failed = True
                    self._log.warning("can't look at the room on the disk", error=str(error))
                await self._rest()
                continue
            self._failed = False
            if space is not self.space:
                self.space = space
                if space is Space.PLENTY:  # the alarm says the rest
                    self._log.info("there is room on the disk again")
                self._tell(space, text)
            await self._rest()

    def hurry(self) -> None:
        """Much is being written: look now."""
        self._hurry.set()

    async def _rest(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await self._hurry.wait()
        self._hurry.clear()

    def look(self) -> tuple[Space, str]:
        """One look, with what that demands of the ballast. Blocks. Raises `OSError`."""
        room = self._room(self._directory)
        low = self._reserves.low.of(room.total)
        ballast = self._reserves.ballast.of(low)
        if room.free < low // 2 + ballast // 2 and self._ballast.exists():
            self._log.warning("ballast given up", free=room.free)
            with contextlib.suppress(FileNotFoundError):
                self._ballast.unlink()
            room = self._room(self._directory)
        elif ballast and room.free - ballast >= low + low // 4 and not self._ballast.exists():
            if time.monotonic() >= self._bare_until:
                self._lay_in(ballast)
            room = self._room(self._directory)
        files = LOW_INODES.of(room.inodes) if low else 0
        self._bytes = _judge(self._bytes, room.free, low)
        self._inodes = _judge(self._inodes, room.inodes_free, files)
        self.seen = room, low
        if self._inodes > self._bytes:
            return self._inodes, (
                f"{room.inodes_free} of {room.inodes} inodes are free on the disk of {self._directory}, fewer than "
                f"{files}: read-only; each file takes one: delete files there"
            )
        return self._bytes, (
            f"{room.free >> 20} MiB of {room.total >> 20} MiB are free on the disk of {self._directory}, less than "
            f"{low >> 20} MiB: read-only; make room there, delete keys and run `nebula-cli compact`, or drop a keyspace"
        )

    def _lay_in(self, size: int) -> None:
        """Make the ballast, really on the disk; without room for it, do without."""
        draft = self._ballast.with_suffix(".tmp")
        try:
            with draft.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
            draft.replace(self._ballast)
            self._bare_until = 0.0
        except OSError as error:
            if not self._bare_until:
                self._log.warning("no ballast", error=str(error), again_every=BALLAST_SECONDS)
            self._bare_until = time.monotonic() + BALLAST_SECONDS
            with contextlib.suppress(OSError):
                draft.unlink()


def _enough(low: int) -> int:
    """With this much free it isn't critical any more."""
    return low // 2 + low // 8


def _judge(was: Space, free: int, low: int) -> Space:
    """What so much free space is, after what it was."""
    calm = low // 4
    if free < low // 2 or (was is Space.CRITICAL and free < _enough(low)):
        return Space.CRITICAL
    if free < low or (was is not Space.PLENTY and free < low + calm):
        return Space.LOW
    return Space.PLENTY


def wait_and_restart(directory: Path, reserves: Reserves, why: str) -> NoReturn:
    """Wait until there is room again, and become a new process of the same command line: after a failed append
    RocksDB's writer stays broken, whatever room comes. `why`: the error's text. A signal ends the waiting, and the
    process. What fills a disk may be what nobody sees here, a quota say: then each life ends soon, and the waits grow.
    """
    log = structlog.get_logger("space")
    before = os.environ.get(LIVES, "")
    lives = 1 + int(before if before.isdecimal() else 0) if time.monotonic() - _BEGUN < SHORT_SECONDS else 0
    pause = LOOK_SECONDS * 2 ** min(lives, MAX_DOUBLINGS)
    with contextlib.suppress(OSError):
        (directory / BALLAST_FILE).unlink()
    room = _room_at(directory)
    needed = needed_room(room, reserves)
    log.error(
        "the disk is full: waiting for room, then starting again", directory=str(directory), error=why,
        free=room.free, needed=needed.free, inodes_free=room.inodes_free, inodes_needed=needed.inodes_free,
    )  # fmt: skip
    while not has_room(directory, reserves):
        time.sleep(LOOK_SECONDS)
    log.warning("there is room, as far as can be seen: starting again", seconds=pause)
    time.sleep(pause)  # a look at least: the log's writer is a thread, which the new process doesn't inherit
    os.environ[LIVES] = str(lives)
    os.execv(sys.executable, sys.orig_argv)


def _room_at(directory: Path) -> Room:
    """Of a directory that there may not be yet: it was to be made, and there was no room."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return room_of(directory)


def has_room(directory: Path, reserves: Reserves) -> bool:
    """Whether a node that met the end of its disk may start again."""
    room = _room_at(directory)
    needed = needed_room(room, reserves)
    return room.free >= needed.free and room.inodes_free >= needed.inodes_free


def needed_room(room: Room, reserves: Reserves) -> Room:
    """What must be free on a disk like `room` for it: what is not critical for a node that runs, or no longer is, and
    enough to open its databases."""
    low = reserves.low.of(room.total)
    inodes = _enough(LOW_INODES.of(room.inodes)) if low else START_INODES.of(room.inodes)
    return Room(room.total, max(_enough(low), START_ROOM.of(room.total)), room.inodes, inodes)

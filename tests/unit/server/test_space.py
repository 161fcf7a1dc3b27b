"""The watermark and the ballast, over a disk that says what it is told to."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from nebuladb.errors import ConfigurationError, StoreError
from nebuladb.node.disk import Space
from nebuladb.server import space
from nebuladb.server.options import DEFAULTS, reserves
from nebuladb.server.space import (
    AUTO_LOW,
    BALLAST_FILE,
    BALLAST_SECONDS,
    LIVES,
    LOOK_SECONDS,
    MAX_DOUBLINGS,
    SHORT_SECONDS,
    START_ROOM,
    Amount,
    Reserves,
    Room,
    SpaceWatch,
    amount,
    has_room,
    room_of,
    wait_and_restart,
)

KIB = 1 << 10
MIB = 1 << 20
TOTAL = 1_000 * KIB
LOW = 100 * KIB
BALLAST = 16 * KIB


class Disk:
    """`used` by others; the ballast is really written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.used = 0
        self.told: list[Space] = []
        fixed = Reserves(Amount(0, LOW), Amount(0, BALLAST))
        self.watch = SpaceWatch(directory, fixed, lambda space, text: self.told.append(space), self.room)

    @property
    def ballast(self) -> bool:
        return (self.directory / BALLAST_FILE).exists()

    def room(self, directory: Path) -> Room:
        return Room(TOTAL, TOTAL - self.used - (BALLAST if self.ballast else 0))

    def look(self, free: int) -> Space:
        """With so much free, not counting the ballast."""
        self.used = TOTAL - free
        self.watch.space = self.watch.look()[0]
        return self.watch.space


def test_down_at_the_mark_and_at_half_of_it_and_up_again_a_good_deal_above(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    assert disk.look(TOTAL) is Space.PLENTY
    assert disk.ballast
    assert (tmp_path / BALLAST_FILE).stat().st_size == BALLAST
    assert disk.look(LOW + BALLAST) is Space.PLENTY
    assert disk.look(LOW + BALLAST - 1) is Space.LOW
    assert disk.look(LOW + BALLAST + 20 * KIB) is Space.LOW
    assert disk.look(LOW // 2 + BALLAST + 9 * KIB) is Space.LOW
    assert disk.ballast
    assert disk.look(LOW // 2 + BALLAST) is Space.LOW, "the ballast makes room"
    assert not (tmp_path / BALLAST_FILE).exists()
    assert disk.look(LOW // 2 - 1) is Space.CRITICAL
    assert disk.look(LOW // 2 + 10 * KIB) is Space.CRITICAL
    assert disk.look(LOW) is Space.LOW
    assert disk.look(LOW + 25 * KIB) is Space.PLENTY
    assert not (tmp_path / BALLAST_FILE).exists()
    assert disk.look(LOW + 25 * KIB + BALLAST) is Space.PLENTY
    assert (tmp_path / BALLAST_FILE).exists()


def test_the_text_says_every_size_in_mib(tmp_path: Path) -> None:
    fixed = Reserves(Amount(0, 300 * MIB), Amount(0, 0))
    watch = SpaceWatch(tmp_path, fixed, lambda space, text: None, lambda _: Room(1_000 * MIB, 200 * MIB))
    assert watch.look()[1] == (
        f"200 MiB of 1000 MiB are free on the disk of {tmp_path}, less than 300 MiB: read-only; make room there, "
        "delete keys and run `nebula-cli compact`, or drop a keyspace"
    )


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), RuntimeError("can't start new thread")], ids=["disk", "thread"]
)
async def test_the_watch_outlives_what_a_look_meets(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that has an error for a moment must not be one that nobody looks at any more. Nor must one that couldn't
    be looked at for want of a thread."""
    monkeypatch.setattr("nebuladb.server.space.LOOK_SECONDS", 0)
    disk, looks, told = Disk(tmp_path), 0, asyncio.Event()

    def room(directory: Path) -> Room:
        nonlocal looks
        looks += 1
        if looks < 4:
            raise error
        return Room(TOTAL, LOW - 1)

    watch = SpaceWatch(tmp_path, Reserves(Amount(0, LOW), Amount(0, 0)), lambda *_: told.set(), room)
    with capture_logs() as logs:
        running = asyncio.create_task(watch.run())
        async with asyncio.timeout(10):
            await told.wait()
        running.cancel()
    assert watch.space is Space.LOW
    assert len([line for line in logs if line["log_level"] == "warning"]) == 1, "it says so once"
    assert not disk.told


async def test_where_much_is_written_the_next_look_comes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nebuladb.server.space.LOOK_SECONDS", 3_600)
    looks: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def room(directory: Path) -> Room:
        loop.call_soon_threadsafe(looks.put_nowait, 1)
        return Room(TOTAL, TOTAL)

    watch = SpaceWatch(tmp_path, Reserves(Amount(0, LOW), Amount(0, 0)), lambda *_: None, room)
    running = asyncio.create_task(watch.run())
    async with asyncio.timeout(10):
        await looks.get()
        for _ in range(3):
            watch.hurry()
            await looks.get()
        while watch._hurry.is_set():  # noqa: ASYNC110 - until it has nothing to hurry for any more
            await asyncio.sleep(0)
    running.cancel()


def test_a_ballast_that_cannot_be_laid_in_is_said_once_and_tried_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a quota is all but used up; it was said four times a second."""
    disk, tries, now = Disk(tmp_path), 0, 1_000.0

    def refused(*_: int) -> None:
        nonlocal tries
        tries += 1
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr("os.posix_fallocate", refused)
    monkeypatch.setattr("time.monotonic", lambda: now)
    with capture_logs() as logs:
        for _ in range(10):
            assert disk.look(TOTAL) is Space.PLENTY
        assert tries == 1
        for _ in range(3):
            now += BALLAST_SECONDS
            disk.look(TOTAL)
        assert tries == 4
    assert [line["event"] for line in logs] == ["no ballast"]
    monkeypatch.undo()
    monkeypatch.setattr("time.monotonic", lambda: now + BALLAST_SECONDS)
    disk.look(TOTAL)
    assert (tmp_path / BALLAST_FILE).exists()


async def test_a_directory_that_is_gone_ends_the_watch_and_the_node(tmp_path: Path) -> None:
    """An idle node went on without one, with a warning: nothing that it is told would be kept."""
    failures: list[StoreError] = []
    path = tmp_path / "gone"
    watch = SpaceWatch(path, Reserves(Amount(0, LOW), Amount(0, BALLAST)), lambda *_: None, gone=failures.append)
    async with asyncio.timeout(10):
        await watch.run()
    assert [error.message for error in failures] == [
        f"data-dir: {path} is gone: somebody removed it, or its disk, under the node"
    ]


def test_a_ballast_that_went_by_itself_is_no_error(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.look(TOTAL)
    room = disk.room

    def gone(directory: Path) -> Room:
        (tmp_path / BALLAST_FILE).unlink(missing_ok=True)
        return room(directory)

    disk.watch._room = gone
    assert disk.look(LOW // 2 - 1) is Space.CRITICAL


@pytest.mark.parametrize(
    ("text", "whole", "size"),
    [("2MiB", TOTAL, 2 * MIB), ("5%", 1_000, 50), ("0.5%", 1_000, 5), ("0", TOTAL, 0), ("auto", 1 << 40, 1 << 30)],
)
def test_amounts(text: str, whole: int, size: int) -> None:
    assert amount(text, AUTO_LOW).of(whole) == size


@pytest.mark.parametrize("text", ["", "5", "-1MiB", "100 %", "5%%", "1TB"])
def test_what_is_no_amount_is_refused_with_the_settings_name(text: str) -> None:
    with pytest.raises(ConfigurationError, match="min-free-space: "):
        reserves({**DEFAULTS, "min-free-space": text})


NOTHING_KEPT = Reserves(Amount(0, 0), Amount(0, 0))


def test_inodes_that_are_used_up_are_a_full_disk_however_many_bytes_are_free(tmp_path: Path) -> None:
    left, kept = 400, Reserves(Amount(0, LOW), Amount(0, 0))
    watch = SpaceWatch(tmp_path, kept, lambda *_: None, lambda _: Room(TOTAL, TOTAL, 400, left))

    def look(free: int) -> Space:
        nonlocal left
        left = free
        watch.space = watch.look()[0]
        return watch.space

    assert look(20) is Space.PLENTY
    assert look(19) is Space.LOW
    assert watch.look()[1] == (
        f"19 of 400 inodes are free on the disk of {tmp_path}, fewer than 20: read-only; each file takes one: delete "
        "files there"
    )
    assert look(9) is Space.CRITICAL
    assert look(24) is Space.LOW
    assert look(25) is Space.PLENTY
    unwatched = SpaceWatch(tmp_path, NOTHING_KEPT, lambda *_: None, lambda _: Room(TOTAL, 0, 400, 0))
    assert unwatched.look()[0] is Space.PLENTY
    unbounded = SpaceWatch(tmp_path, kept, lambda *_: None, lambda _: Room(TOTAL, TOTAL))
    assert unbounded.look()[0] is Space.PLENTY


def test_a_file_system_with_a_number_of_inodes_says_it(tmp_path: Path) -> None:
    room = room_of(tmp_path)
    assert 0 <= room.inodes_free <= room.inodes


@pytest.mark.parametrize(
    ("room", "enough"),
    [
        (Room(TOTAL, TOTAL), True),
        (Room(TOTAL, 0), False),
        (Room(TOTAL, TOTAL, 400, 0), False),
        (Room(TOTAL, TOTAL, 400, 20), True),
        (Room(TOTAL, TOTAL, 20_000, 900), True),
    ],
    ids=["room", "no bytes", "no inodes", "inodes", "fewer inodes than would raise an alarm"],
)
def test_a_node_is_not_started_again_on_a_full_disk_that_has_no_watermark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: Room, enough: bool
) -> None:
    monkeypatch.setattr(space, "room_of", lambda directory: room)
    assert has_room(tmp_path, NOTHING_KEPT) is enough


@pytest.mark.parametrize(("free", "enough"), [(LOW // 2 + LOW // 8 - 1, False), (LOW // 2 + LOW // 8, True)])
def test_what_a_running_node_would_not_call_critical_is_enough_to_start_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, *, enough: bool
) -> None:
    """Its operator may have no more: a node that runs can delete and compact, and one that waits can't."""
    monkeypatch.setattr(space, "room_of", lambda directory: Room(TOTAL, free))
    kept = Reserves(Amount(0, LOW), Amount(0, 0))
    assert has_room(tmp_path, kept) is enough
    running = SpaceWatch(tmp_path, kept, lambda *_: None, lambda _: Room(TOTAL, free))
    running._bytes = Space.CRITICAL
    assert (running.look()[0] is not Space.CRITICAL) is enough


class Started(Exception):
    """In place of a new process."""


def test_short_lives_are_further_and_further_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fills a disk may be a quota, of which nobody is told: the node was started every 2.5 s for ever."""
    slept: list[float] = []

    def start(path: str, arguments: list[str]) -> None:
        raise Started

    def live(seconds: float) -> float:
        slept.clear()
        monkeypatch.setattr(space, "_BEGUN", 0.0)
        monkeypatch.setattr("time.monotonic", lambda: seconds)
        with capture_logs() as logs, pytest.raises(Started):
            wait_and_restart(tmp_path, NOTHING_KEPT, "IO error: No space left on device")
        assert logs[0]["error"] == "IO error: No space left on device"
        assert (logs[0]["free"], logs[0]["needed"]) == (TOTAL, START_ROOM.of(TOTAL))
        return sum(slept)

    monkeypatch.setattr("os.execv", start)
    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setattr(space, "room_of", lambda directory: Room(TOTAL, TOTAL))
    monkeypatch.setenv(LIVES, "what is no number")
    waits = [live(1.0) for _ in range(MAX_DOUBLINGS + 2)]
    assert waits == [LOOK_SECONDS * 2 ** min(life, MAX_DOUBLINGS) for life in range(1, MAX_DOUBLINGS + 3)]
    assert live(SHORT_SECONDS) == LOOK_SECONDS
    assert live(1.0) == 2 * LOOK_SECONDS

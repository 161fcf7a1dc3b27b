from __future__ import annotations

import io

from nebuladb.cli.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_come_once_a_second() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, "loaded", clock=clock)
    for step in range(1, 31):
        clock.now = step / 10
        progress.update(step, step * 1024 * 1024, 30)
    progress.note("a: gone")
    progress.close()
    assert stream.getvalue() == (
        "loaded 10 of 30 files, 10.0 MiB, 10.0 MiB/s\n"
        "loaded 20 of 30 files, 20.0 MiB, 10.0 MiB/s\n"
        "loaded 30 of 30 files, 30.0 MiB, 10.0 MiB/s\n"
        "nebula-cli: a: gone\n"
    )


def test_a_bar_on_a_terminal_makes_way_for_notes() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress(stream, "loaded", clock=clock)
    clock.now = 1.0
    progress.update(15, 0, 30)
    progress.note("a: gone")
    progress.close()
    wipe = "\r\033[K"
    assert stream.getvalue() == (
        f"{wipe}[{'#' * 15}{'.' * 15}] 15 of 30 files, 0.0 MiB, 0.0 MiB/s{wipe}nebula-cli: a: gone\n"
    )

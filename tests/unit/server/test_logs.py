from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from nebuladb.server import logs
from nebuladb.server.logs import LineWriter, setup


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def logged(file: Path, log_format: str, level: str = "info") -> list[str]:
    with file.open("wb") as target:
        writer = setup("n7", log_format, level, target.fileno())
        structlog.get_logger("x").info("hello", group=2)
        structlog.get_logger("x").debug("hidden")
        logging.getLogger("some.library").warning("foreign %s", "words")
        logging.getLogger("uvicorn.error").info("hidden")
        try:
            password = "hunter2"  # noqa: F841 - must not be printed
            raise ValueError("broken")
        except ValueError as error:
            structlog.get_logger("x").error("oops", exc_info=error)
        writer.close()
    return file.read_text().splitlines()


def test_json_for_machines(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in logged(tmp_path / "log", "json")]
    assert [line["event"] for line in lines] == ["hello", "foreign words", "oops"]
    assert {line["node"] for line in lines} == {"n7"}
    assert (lines[0]["group"], lines[0]["level"]) == (2, "info")
    assert "ValueError: broken" in lines[2]["exception"]
    assert "hunter2" not in json.dumps(lines)


def test_console_for_people(tmp_path: Path) -> None:
    text = "\n".join(logged(tmp_path / "log", "console"))
    assert "hello" in text
    assert "node=n7" in text
    assert "foreign words" in text
    assert "hunter2" not in text
    assert "\x1b" not in text  # no colours outside a terminal


def test_auto_is_json_outside_a_terminal(tmp_path: Path) -> None:
    assert json.loads(logged(tmp_path / "log", "auto")[0])["event"] == "hello"


def test_a_level_hides_what_is_below(tmp_path: Path) -> None:
    assert [json.loads(line)["event"] for line in logged(tmp_path / "log", "json", "error")] == ["oops"]


def test_a_reader_that_stopped_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_QUEUED_LINES", 10)
    reader, writer_fd = os.pipe()
    writer = LineWriter(writer_fd)
    line = "x" * 1023 + "\n"
    for _ in range(1000):  # far more than a pipe holds
        writer.write(line)
    with os.fdopen(reader, "rb") as pipe:
        lines = 0
        dropped = 0
        while not dropped:
            text = pipe.readline().decode()
            if text.startswith("("):
                dropped = int(text[1:].split()[0])
            else:
                lines += 1
        writer.close()
        os.close(writer_fd)
        lines += len(pipe.readlines())
    assert lines + dropped == 1000


def test_a_reader_that_went_away_stops_nobody() -> None:
    reader, writer_fd = os.pipe()
    os.close(reader)
    writer = LineWriter(writer_fd)
    writer.write("one\n")
    writer.write("two\n")
    writer.close()
    os.close(writer_fd)

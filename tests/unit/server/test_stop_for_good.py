"""A node that was told to stop stays down, whatever it meets in its last flush."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from nebuladb.errors import DataDamaged, DiskFull, NebulaError
from nebuladb.server import assembly, config, space
from nebuladb.server.lifecycle import Shutdown


class Started(Exception):
    """In place of a new process."""


def start(*_: object) -> None:
    raise Started


@pytest.mark.parametrize("error", [DataDamaged("a block"), DiskFull("no room")], ids=["damage", "a full disk"])
@pytest.mark.parametrize("asked", [True, False], ids=["asked to stop", "in use"])
def test_only_who_was_not_asked_to_stop_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: NebulaError, *, asked: bool
) -> None:
    """SIGTERM, then the flush failed: the process started itself anew, or waited for room to do so."""
    (tmp_path / "data").mkdir()

    async def serve(_: object, shutdown: Shutdown) -> int:
        if asked:
            shutdown.request("SIGTERM")
        shutdown.fail(error)
        return shutdown.exit_code()

    monkeypatch.setattr(assembly, "_serve", serve)
    monkeypatch.setattr(assembly, "end_in_time", lambda: None)
    monkeypatch.setattr(space, "wait_and_restart", start)
    monkeypatch.setattr(os, "execv", start)
    monkeypatch.setattr(sys, "orig_argv", [])
    settings = config.load({"data-dir": str(tmp_path), "name": "n1"}, {})
    if asked:
        assert assembly.run(settings) == 1
        assert (tmp_path / "data").exists()
    else:
        with pytest.raises(Started):
            assembly.run(settings)

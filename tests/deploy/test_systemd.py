"""deploy/systemd/nebulad.service: it stops as a node wants to be stopped, and is as closed as its note says."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from nebuladb.server.lifecycle import CLOSE_SECONDS, DRAIN_SECONDS
from nebuladb.server.main import EXIT_USAGE
from nebuladb.server.process import EXIT_REMOVED
from tools.compose_test.image import ROOT

UNIT = ROOT / "deploy" / "systemd" / "nebulad.service"
TEXT = UNIT.read_text()


def setting(key: str) -> str:
    found = re.findall(rf"^{key}=(.*)$", TEXT, re.MULTILINE)
    assert len(found) == 1, key
    return str(found[0])


def test_a_drain_has_its_time_and_a_restart_its_reason() -> None:
    assert setting("KillSignal") == "SIGTERM"
    assert int(setting("TimeoutStopSec")) > DRAIN_SECONDS + CLOSE_SECONDS
    assert setting("Restart") == "on-failure"
    assert setting("StartLimitIntervalSec") == "0", "else five quick ends are the last"
    assert setting("RestartPreventExitStatus").split() == [str(EXIT_USAGE), str(EXIT_REMOVED)]


def test_it_starts_a_node_as_nobody_special_in_a_directory_of_its_own() -> None:
    assert setting("ExecStart").split()[1:] == ["start", "--config", "/etc/nebula/nebulad.toml"]
    assert setting("User") == setting("Group") == setting("StateDirectory") == "nebula"
    assert setting("CapabilityBoundingSet") == ""
    assert setting("ProtectSystem") == "strict"
    # prometheus-client reads /proc/stat: with "pid" there are no metrics of the process.
    assert "ProcSubset" not in re.sub(r"^#.*$", "", TEXT, flags=re.MULTILINE)


def test_systemd_finds_it_as_closed_as_the_note_says() -> None:
    said = re.search(r"exposure ([\d.]+), OK", TEXT)
    assert said is not None
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd here")
    limit = str(int(float(said[1]) * 10) + 2)
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={limit}", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "Overall exposure level" in done.stdout, done.stderr
    # Versions of systemd weigh a little differently.
    assert done.returncode == 0, done.stdout

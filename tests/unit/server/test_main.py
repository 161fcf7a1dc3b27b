"""The command line, as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nebuladb import __version__
from nebuladb.server.dev import _fetch
from tests.integration.cluster import Ports

ADDRESSES = ("client", "peer", "admin")


def nebulad(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nebuladb.server.main", *words],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("start", "--no-such-flag"), "No such option '--no-such-flag'"),
        (("start", "--client-addr", "7379"), "nebulad: client-addr (flag --client-addr): '7379' is not HOST:PORT\n"),
        (("start", "--config", "/no/such.toml"), "nebulad: config file /no/such.toml: No such file or directory\n"),
        (("dev", "--nodes", "many"), "'many' is not a valid integer"),
        (("dev", "--nodes", "0"), "nebulad: --nodes: 0 is not a number from 1 to"),
        (("dev", "--data-dir", ""), "Invalid value for '--data-dir': it must not be empty"),
        (("verify", "--data-dir", ""), "Invalid value for '--data-dir': it must not be empty"),
        (("recover", "--data-dir", "", "--i-accept-data-loss"), "Invalid value for '--data-dir': it must not be empty"),
        (("fly",), "No such command 'fly'"),
    ],
)
def test_a_wrong_flag_is_2_and_said_clearly(words: tuple[str, ...], told: str) -> None:
    done = nebulad(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr


def test_a_wrong_variable_is_2() -> None:
    done = nebulad("start", NEBULA_NAMES="x")
    assert done.returncode == 2
    assert "environment NEBULA_NAMES: no such setting" in done.stderr


def test_too_few_descriptors_are_one_line(tmp_path: Path) -> None:
    start = ["start", "--data-dir", str(tmp_path / "n1")]
    command = ["sh", "-c", 'ulimit -n 16; exec "$@"', "sh", sys.executable, "-m", "nebuladb.server.main", *start]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("nebulad: the limit of open files is 16, too low for a node; raise it to 65536")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "n1").exists()


def test_every_setting_has_a_flag() -> None:
    from nebuladb.server.config import DEFAULTS

    text = nebulad("start", "--help").stdout
    assert all(f"--{key} " in text for key in DEFAULTS)


def test_version_and_launcher() -> None:
    launcher = Path(__file__).parents[3] / "cmd" / "nebulad"
    done = subprocess.run(
        [sys.executable, launcher, "--version"], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == f"nebulad {__version__}\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_report_that_cannot_be_written_is_no_success(tmp_path: Path, unbuffered: str) -> None:
    (tmp_path / "raft").mkdir()
    program = [sys.executable, "-m", "nebuladb.server.main", "verify", "--data-dir", str(tmp_path)]
    environ = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, env=environ, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "nebulad: stdout: No space left on device\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", ["--help", "--version", "start --help", "verify --help"])
def test_help_that_cannot_be_written_is_no_success(words: str) -> None:
    for redirection, told in (
        (">/dev/full", "nebulad: stdout: No space left on device\n"),
        (">&-", "nebulad: stdout is closed\n"),
    ):
        program = f"exec {sys.executable} -m nebuladb.server.main {words} {redirection}"
        done = subprocess.run(["sh", "-c", program], stderr=subprocess.PIPE, text=True, timeout=30, check=False)
        assert (done.returncode, done.stderr) == (1, told)


def test_a_directory_that_cannot_be_one_is_named(tmp_path: Path) -> None:
    """The one was a traceback, the other an error of RocksDB's."""
    file = tmp_path / "nebulad.toml"
    file.write_text('data-dir = "a\\u0000b"\n')
    for words in (["--config", str(file)], ["--data-dir", os.fsdecode(bytes(tmp_path) + b"/\xff")]):
        done = nebulad("start", *words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith("nebulad: data-dir (")
    assert os.listdir(tmp_path) == ["nebulad.toml"]


@pytest.mark.parametrize("closed", ["2>&-", "<&- 2>&-"])
def test_a_closed_stderr_is_a_log_that_goes_nowhere(tmp_path: Path, closed: str) -> None:
    """It was an AttributeError that nobody heard. And no file of the node's gets the log into it."""
    ports = Ports(1)
    toml = "".join(f'{key}-addr = "127.0.0.1:{ports.base + place}"\n' for place, key in enumerate(ADDRESSES))
    (tmp_path / "nebulad.toml").write_text(f'data-dir = "data"\n{toml}')
    program = f'exec {sys.executable} -m nebuladb.server.main start --config "$0" {closed}'
    process = subprocess.Popen(["sh", "-c", program, tmp_path / "nebulad.toml"], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while _fetch(f"http://127.0.0.1:{ports.base + 2}/readyz") is None:
            assert process.poll() is None
            assert time.monotonic() < deadline
        assert os.readlink(f"/proc/{process.pid}/fd/2") == os.devnull
    finally:
        process.terminate()
        process.wait(30)
        ports.close()
    assert process.returncode == 0


INTERRUPTED = """
import os, signal, sys
amid = "nebuladb.server." + sys.argv.pop(1)
class Meanwhile:
    def find_spec(self, name, path=None, target=None):
        if name == amid:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Meanwhile())
from nebuladb.server.start import main
main()
"""


@pytest.mark.parametrize(
    ("amid", "words"), [("main", "--version"), ("assembly", "start --data-dir n"), ("dev", "dev --data-dir d")]
)
def test_who_is_interrupted_before_a_node_hears_it_shows_no_traceback(tmp_path: Path, amid: str, words: str) -> None:
    """It was a traceback; and sometimes an import made nothing of it, and the cluster started all the same."""
    begin = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program = [sys.executable, "-c", begin + INTERRUPTED, amid, *words.split()]
    ran = subprocess.run(program, cwd=tmp_path, capture_output=True, timeout=30, check=False, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (-signal.SIGINT, "", "")

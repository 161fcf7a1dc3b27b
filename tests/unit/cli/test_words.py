"""Whatever the words of a command line are: one line on stderr, and no traceback."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from nebuladb.cli.main import main
from tests.unit.cli.conftest import Cli
from tests.unit.client.fake import Node

HUGE = "99999999999999999999"
NO_TEXT = os.fsdecode(b"\xff")


@pytest.mark.parametrize(
    "words",
    [
        ("put", "k", "v", "--lease", HUGE),
        ("get", "k", "--revision", HUGE),
        ("get", "k", "--revision", "-1"),
        ("get", "k", "--max-staleness", "inf"),
        ("get", "k", "--max-staleness", "nan"),
        ("get", "k", "--max-staleness", "1e30"),
        ("lease", "grant", HUGE),
        ("lease", "ttl", HUGE),
        ("lease", "revoke", HUGE),
        ("lease", "keep-alive", HUGE),
        ("--timeout", "nan", "get", "k"),
        ("--timeout", "inf", "get", "k"),
        ("--endpoints", NO_TEXT, "get", "k"),
        ("--keyspace", NO_TEXT, "get", "k"),
        ("--keyspace", "", "del", "k"),
        ("member", "add", NO_TEXT, "--peer-address", "127.0.0.1:1"),
        ("member", "add", "n4", "--peer-address", NO_TEXT),
        ("member", "remove", NO_TEXT),
        ("keyspace", "create", NO_TEXT),
        ("--endpoints", "http://127.0.0.1:7379", "get", "k"),
        ("--endpoints", "127.0.0.1:99999", "get", "k"),
        ("--endpoints", "host name:7379", "get", "k"),
        ("etcd", "import", "--from", "127.0.0.1:99999"),
        ("etcd", "import", "--from", "ftp://127.0.0.1:1"),
    ],
    ids=ascii,
)
def test_what_cannot_be_meant_exits_2(cli: Cli, words: tuple[str, ...]) -> None:
    answer = cli(*words)
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert answer.stderr


def test_an_empty_end_is_no_end(cli: Cli) -> None:
    """No key is before it; and KEY was deleted, where a variable of a script was empty."""
    cli("put", "k", "v")
    for words in (("del", "k", "--end", ""), ("watch", "k", "--end", "")):
        answer = cli(*words)
        assert (answer.exit_code, answer.stdout) == (2, "")
        assert "--end is empty" in answer.stderr
    for line in ('del k ""', 'get k ""'):
        answer = cli("txn", stdin=line.encode())
        assert (answer.exit_code, answer.stdout) == (2, "")
        assert "line 1: END is empty" in answer.stderr
    assert cli("get", "k").stdout == "v\n"
    assert cli("scan", "a", "--end", "").stdout == "k\tv\n", "to the last one, as without it"


def test_a_scheme_is_named_as_what_is_wrong(cli: Cli) -> None:
    answer = cli("--endpoints", "http://127.0.0.1:7379", "get", "k")
    assert answer.stderr.count("\n") == 1
    assert "without http://, like 127.0.0.1:7379" in answer.stderr


@pytest.mark.parametrize("option", ["--cacert", "--cert"])
def test_a_certificate_that_is_none_is_named(cli: Cli, tmp_path: Path, option: str) -> None:
    file = tmp_path / "file"
    file.write_text("no certificate")
    more = ["--key", str(file)] if option == "--cert" else []
    answer = cli("etcd", "import", "--from", "127.0.0.1:1", option, str(file), *more)
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert str(file) in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_a_value_goes_into_a_file_as_it_is(cli: Cli, tmp_path: Path) -> None:
    raw, file = bytes(range(256)), tmp_path / "out"
    cli("put", "k", "-", stdin=raw)
    cli("put", "empty", "")
    answer = cli("get", "k", "--file", str(file))
    assert (answer.exit_code, answer.stdout_bytes, file.read_bytes()) == (0, b"", raw)
    assert cli("get", "k", "--file", "-").stdout_bytes == raw
    assert cli("get", "empty", "--file", str(tmp_path / "empty")).exit_code == 0
    assert (tmp_path / "empty").read_bytes() == b""
    assert cli("get", "missing", "--file", str(tmp_path / "none")).exit_code == 1
    assert not (tmp_path / "none").exists()
    nowhere = cli("get", "k", "--file", str(tmp_path / "none" / "out"))
    assert nowhere.exit_code == 1
    assert nowhere.stderr == f"nebula-cli: {tmp_path}/none/out: No such file or directory\n"


def test_a_file_is_replaced_by_a_whole_one_only(cli: Cli, nodes: list[Node], tmp_path: Path) -> None:
    """It was emptied before the first byte was written."""
    file, link, pipe, new = (tmp_path / name for name in ("file", "link", "pipe", "new"))
    file.write_bytes(b"before")
    file.chmod(0o640)
    link.symlink_to("file")
    cli("put", "k", "-", stdin=bytes(100_000))
    for place in (file, link, new):
        assert _run(nodes, f"get k --file {place}", "", "ulimit -f 8;") == (1, f"nebula-cli: {place}: File too large\n")
    assert file.read_bytes() == b"before"
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]
    for place in (link, new):
        assert _run(nodes, f"get k --file {place}", "", "umask 027;") == (0, "")
        assert place.read_bytes() == bytes(100_000)
    assert link.is_symlink()
    assert {stat.S_IMODE(place.stat().st_mode) for place in (file, new)} == {0o640}
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        assert cli("get", "k", "--file", str(pipe)).exit_code == 0
        assert reader.communicate()[0] == bytes(100_000)
    assert pipe.is_fifo()


def test_dump_into_what_is_no_directory(cli: Cli) -> None:
    answer = cli("dump", "/proc/nothing")
    assert (answer.exit_code, answer.stderr) == (1, "nebula-cli: /proc/nothing: No such file or directory\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", ["scan", "get k", "get k --file /dev/full", "-o table scan", "-o json scan"])
def test_output_that_cannot_be_written(cli: Cli, nodes: list[Node], words: str) -> None:
    cli("put", "k", "v" * 20_000)
    place = "/dev/full" if "--file" in words else "stdout"
    assert _run(nodes, words, ">/dev/full") == (1, f"nebula-cli: {place}: No space left on device\n")


def test_nothing_is_done_without_stdout(cli: Cli, nodes: list[Node]) -> None:
    assert _run(nodes, "put k v", ">&-") == (1, "nebula-cli: stdout is closed; nothing was done\n")
    assert cli("get", "k").exit_code == 1
    for words in ("--help", "--version", "put --help", "snapshot --help", "snapshot save --help"):
        assert _run(nodes, words, ">&-") == (1, "nebula-cli: stdout is closed; nothing was done\n")


@pytest.mark.parametrize("words", ["put k -", "put k --file -", "txn"])
def test_without_stdin_nothing_is_read_from_it(cli: Cli, nodes: list[Node], words: str) -> None:
    assert _run(nodes, words, "<&-") == (1, "nebula-cli: stdin: it is closed\n")
    assert cli("get", "k").exit_code == 1


@pytest.mark.parametrize(
    ("words", "name"), [("put k -", "stdin"), ("put k --file /dev/zero", "/dev/zero"), ("txn", "stdin")]
)
def test_no_more_is_read_than_a_request_may_have(cli: Cli, nodes: list[Node], words: str, name: str) -> None:
    """It read until there was no memory left."""
    code, error = _run(nodes, words, "</dev/zero", "ulimit -v 2000000;")
    assert (code, error.count("\n")) == (1, 1)
    assert error.startswith(f"nebula-cli: {name} has more than ")
    assert error.endswith("at most 1,572,864 (1.5 MiB) go in a request\n")
    assert cli("get", "k").exit_code == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", ["--help", "--version", "put --help", "snapshot --help", "snapshot save --help"])
def test_help_that_cannot_be_written(nodes: list[Node], words: str) -> None:
    assert _run(nodes, words, ">/dev/full") == (1, "nebula-cli: input or output: No space left on device\n")


def _run(nodes: list[Node], words: str, redirection: str, before: str = "") -> tuple[int, str]:
    """Exit code and stderr of a process of its own."""
    program = f"{before} exec {sys.executable} -c 'from nebuladb.cli.main import main; main()' {words} {redirection}"
    environ = {**os.environ, "NEBULA_ENDPOINTS": nodes[0].address}
    ran = subprocess.run(["sh", "-c", program], env=environ, stderr=subprocess.PIPE, check=False, text=True)
    return ran.returncode, ran.stderr


def test_the_help_says_every_exit_status() -> None:
    for words in (["--help"], ["check", "--help"]):
        text = CliRunner().invoke(main, words).output
        assert all(f"{status} " in text.partition("Exit status: ")[2].partition("\n\n")[0] for status in range(4))


def test_the_help_says_what_is_added_to_a_value() -> None:
    assert "a newline" in CliRunner().invoke(main, ["get", "--help"]).output


INTERRUPTED = """
import os, signal, sys
class Meanwhile:
    def find_spec(self, name, path=None, target=None):
        if name == "nebuladb.cli.main":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Meanwhile())
from nebuladb.cli.start import main
sys.argv[1:] = ["--version"]
main()
"""


@pytest.mark.parametrize("ignored", [False, True])
def test_who_is_interrupted_before_there_are_commands_shows_no_traceback(*, ignored: bool) -> None:
    handler = "SIG_IGN" if ignored else "default_int_handler"
    begin = f"import signal; signal.signal(signal.SIGINT, signal.{handler})\n"
    ran = subprocess.run([sys.executable, "-c", begin + INTERRUPTED], capture_output=True, check=False, text=True)
    assert (ran.returncode, ran.stderr) == (0 if ignored else -signal.SIGINT, "")
    assert ("version" in ran.stdout) == ignored

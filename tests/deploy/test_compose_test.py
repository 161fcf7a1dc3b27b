"""The parts of `make compose-test` that need no engine: what it skips, what it hands to a build, that it cleans up."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tools.compose_test import __main__ as command
from tools.compose_test import engine, image, keeper
from tools.compose_test.puts import SIZE, key, value
from tools.compose_test.shell import Failure, Unavailable, run, wait
from tools.compose_test.story import Story, ended_in_order, part_of
from tools.tree import manifest


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none")


@pytest.mark.usefixtures("no_engine")
def test_without_an_engine_it_says_so_and_is_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--engine", "running"]) == 0
    said = capsys.readouterr()
    assert said.out == "verdict=skipped\n"
    assert said.err == "SKIPPED: no container was run. no engine answers\n"
    assert command.main(["--engine", "running", "--require"]) == 1


@pytest.mark.usefixtures("no_engine")
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert command.main([]) == 0
    told = capsys.readouterr().err
    assert "to start one docker, dockerd, containerd" in told
    assert f"apt-get install {engine.PACKAGES}" in told


def test_an_engine_of_ours_leaves_the_machine_s_network_alone() -> None:
    words = engine.command(Path("/scratch"))
    assert {"--iptables=false", "--ip6tables=false", "--ip-forward=false", "--bridge=none"} <= set(words)
    for option in ("--host", "--data-root", "--exec-root", "--pidfile"):
        assert "/scratch/" in words[words.index(option) + 1]


def test_an_engine_that_does_not_come_up_is_a_skip_and_is_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine, "command", lambda _: [sys.executable, "-c", "import sys; sys.exit('no cgroups')"])
    monkeypatch.setattr(engine, "_missing", list)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with (
        pytest.raises(Unavailable, match=r"(?s)it ended with 1 and said:.*no cgroups"),
        engine.engine(tmp_path, "own", "nebulatest-0-", print),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


FAKE_DOCKER = """#!/bin/sh
[ -e {log}.down ] && exit 1
echo "$@" >> {log}
case "$2" in
    ls) cat {left}/$1 2>/dev/null;;
    rm) rm {left}/$1;;
esac
exit 0
"""


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@pytest.mark.parametrize("broken", [False, True])
def test_a_test_that_did_not_end_well_leaves_the_rest_to_its_keeper(
    broken: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A second Ctrl-C, in the middle of the removal."""
    log = tmp_path / "log"
    docker = tmp_path / "docker"
    docker.write_text(FAKE_DOCKER.format(log=log, left=tmp_path))
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with contextlib.suppress(KeyboardInterrupt), engine.engine(scratch, "running", "nebulatest-7-", print):
        log.unlink()
        if broken:
            raise KeyboardInterrupt
    assert log.exists() == broken
    assert scratch.exists() == (not broken)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_removes_everything(number: signal.Signals, tmp_path: Path) -> None:
    """As a process: an engine that never answers, and a person who has waited long enough."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, runpy, sys\n"
        "from tools.compose_test import engine\n"
        "engine.command = lambda _: ['sleep', '600']\n"
        "engine._missing = lambda: []\n"
        "os.geteuid = lambda: 0\n"
        "engine.Engine.answers = lambda self: print('waiting', flush=True) or False\n"
        "sys.argv = ['compose_test', '--engine', 'own']\n"
        "runpy.run_module('tools.compose_test', run_name='__main__')\n"
    )
    docker = tmp_path / "docker"  # which has nothing to remove: without one it is asked again, for ten seconds
    docker.write_text("#!/bin/sh\n")
    docker.chmod(0o755)
    # Not below tmp_path: a socket's path is short.
    scratch = Path(tempfile.mkdtemp(prefix="nebula-"))
    process = subprocess.Popen(
        [sys.executable, program],
        env={
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "TMPDIR": str(scratch),
            "PYTHONPATH": str(image.ROOT),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"waiting\n"
    (keeping,) = children(process.pid)
    wait(lambda: bool(children(keeping)), "the engine is started", 60)
    (sleeping,) = children(keeping)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    wait(lambda: not Path("/proc", str(keeping)).exists(), "the keeper has ended", 60)
    assert not Path("/proc", str(sleeping)).exists()
    scratch.rmdir()  # it is empty


def test_what_a_dead_test_left_at_somebody_s_engine_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "left").mkdir()
    for what, text in (
        ("container", "c1 c2"),
        ("volume", "nebulatest-7-good_n1"),
        ("image", "nebuladb:nebulatest-7-good"),
    ):
        (tmp_path / "left" / what).write_text(text)
    log = tmp_path / "log"
    docker = tmp_path / "docker"
    docker.write_text(FAKE_DOCKER.format(log=log, left=tmp_path / "left"))
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(keeper, "PAUSE_SECONDS", 0)
    keeper.remove("nebulatest-7-")
    asked = log.read_text().splitlines()
    assert list((tmp_path / "left").iterdir()) == []
    assert "container rm --force --volumes c1 c2" in asked
    assert "volume rm --force nebulatest-7-good_n1" in asked
    assert "image rm --force nebuladb:nebulatest-7-good" in asked
    listings = [line for line in asked if " ls " in line]
    assert len(listings) == 8, "until there was nothing any more"
    assert all("nebulatest-7-" in line for line in listings)
    log.with_name("log.down").touch()
    keeper.remove("nebulatest-7-")  # an engine that is gone has nothing


def test_a_build_is_told_where_packages_come_from_and_no_path_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = (
        ":env:.cert='/some/ca.crt'\n:env:.find-links='/some/wheels'\nglobal.constraint='/some/constraints.txt'\n"
        "global.index-url='https://index.example/simple'\n:env:.default-timeout='180'\n"
    )
    monkeypatch.setattr(image, "run", lambda _: listed)
    text, authority = image._pip_configuration()
    assert authority == Path("/some/ca.crt")
    assert text == "[global]\nindex-url = https://index.example/simple\ntimeout = 180\ncert = /run/secrets/ca.pem\n"
    monkeypatch.setattr(image, "run", lambda _: "")
    assert image._pip_configuration() == ("[global]\n", None)


def test_debian_s_packages_come_from_where_this_machine_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = "|file:/usr/share/own/\ntrixie-updates|http://a.example/debian/\ntrixie|http://a.example/debian/\n"
    monkeypatch.setattr(image, "run", lambda _: listed)
    assert image._mirror("trixie") == ["http://a.example/debian/"]
    assert image._mirror("forky") == []


def test_every_broken_image_has_its_chapter() -> None:
    assert set(command.CAUGHT_IN) == set(image.BROKEN)
    assert all(callable(getattr(Story, chapter)) for chapter in command.CAUGHT_IN.values())


def test_a_part_of_a_tree_is_whole_files_up_to_a_size(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / "tree" / name).mkdir(parents=True)
        (tmp_path / "tree" / name / "file").write_bytes(name.encode() * 100)
    part = part_of(tmp_path / "tree", 250, tmp_path / "part")
    assert sorted(manifest(part)) == [b"a/file", b"b/file"]
    assert manifest(part)[b"b/file"] == manifest(tmp_path / "tree")[b"b/file"]


def test_a_node_that_drained_and_ran_out_of_time_to_close_is_told_from_one_that_did_not_drain() -> None:
    drained = 'n1-1  | {"why": "SIGTERM", "event": "stopping"}\nn1-1  | {"event": "stopped", "level": "info"}\n'
    assert ended_in_order(0, drained)
    assert ended_in_order(1, drained)
    assert not ended_in_order(1, drained.partition("\n")[0])
    assert not ended_in_order(0, "")
    assert not ended_in_order(137, drained)


def test_puts_are_told_apart() -> None:
    assert len({value(number) for number in range(100)}) == 100
    assert len(value(1)) == SIZE == 1024
    assert sorted(map(key, (1000, 2, 10))) == [key(2), key(10), key(1000)]


def test_a_program_that_fails_says_what_it_said() -> None:
    with pytest.raises(Failure, match=r"(?s)exited with 3:.*oh no"):
        run([sys.executable, "-c", "import sys; print('oh no', file=sys.stderr); sys.exit(3)"])
    with pytest.raises(Failure, match=r"longer than 0\.01 s"):
        run([sys.executable, "-c", "input()"], seconds=0.01)
    with pytest.raises(Failure, match="not within 0 s: pigs fly"):
        wait(lambda: False, "pigs fly", 0)
    assert run(["cat"], said=b"x") == "x"

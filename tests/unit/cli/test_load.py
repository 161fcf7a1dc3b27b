from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nebuladb import errors
from nebuladb.cli import tree
from nebuladb.cli.files import CHUNK, Meta
from nebuladb.cli.settings import Settings
from tests.unit.cli.conftest import Cli
from tests.unit.client.fake import LOST, PASS, Fault, Node

BIG = os.urandom(1024) * 2560  # 2.5 MiB
TREE = {
    b"plain.txt": b"hello",
    b"empty": b"",
    b"sub/dir/raw": bytes(range(256)),
    b"sub.txt": b"sorts between sub and sub/",
    b"sub/big": BIG,
    b"exact": b"x" * CHUNK,
    b"one more": b"x" * (CHUNK + 1),
    "ünïcödé 😀".encode(): b"name",
    b"not\xffutf8\nnewline": b"name",
    b"-o": b"looks like an option",
}


@pytest.fixture(name="tree")
def make_tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name, content in TREE.items():
        place = os.path.join(os.fsencode(root), name)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "wb") as file:
            file.write(content)
    os.chmod(root / "plain.txt", 0o751)
    return root


def _files(root: Path) -> dict[bytes, tuple[bytes, int]]:
    found = {}
    top = os.fsencode(root)
    for directory, _, names in os.walk(top):
        for name in names:
            place = os.path.join(directory, name)
            with open(place, "rb") as file:
                found[os.path.relpath(place, top)] = (file.read(), os.stat(place).st_mode)
    return found


def _counts(line: str) -> dict[str, int]:
    return {name: int(value) for name, value in (part.split("=") for part in line.split())}


def test_there_and_back_again(cli: Cli, nodes: list[Node], tree: Path, tmp_path: Path) -> None:
    first = cli("load", str(tree), "--prefix", "p/")
    assert first.exit_code == 0, first.stderr
    size = sum(map(len, TREE.values()))
    assert _counts(first.stdout) == {
        "files": len(TREE),
        "loaded": len(TREE),
        "skipped": 0,
        "left_out": 0,
        "failed": 0,
        "bytes": size,
    }
    assert nodes[0].store.read(b"p/sub/big\0chunk\x0000000002") is not None
    again = _counts(cli("load", str(tree), "--prefix", "p/").stdout)
    assert (again["loaded"], again["skipped"], again["bytes"]) == (0, len(TREE), 0)
    verified = cli("load", "--verify", str(tree), "--prefix", "p/")
    assert verified.exit_code == 0
    assert _counts(verified.stdout)["same"] == len(TREE)
    out = tmp_path / "out"
    dumped = cli("dump", str(out), "--prefix", "p/")
    assert dumped.exit_code == 0, dumped.stderr
    assert _counts(dumped.stdout) == {"files": len(TREE), "failed": 0, "bytes": size}
    assert _files(out) == _files(tree)
    assert cli("-o", "json", "dump", str(out), "--prefix", "p/").stdout.startswith('{"files": ')


def test_the_meta_row_is_what_is_documented(cli: Cli, nodes: list[Node], tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"hello")
    (tmp_path / "f").chmod(0o640)
    cli("load", str(tmp_path))
    row = nodes[0].store.read(b"f\0meta")
    assert row is not None
    assert row.value == (
        b'{"chunk_size":1048576,"chunks":1,"mode":416,'
        b'"sha256":"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824","size":5}'
    )
    assert Meta.from_bytes(row.value).mode == 0o640


def test_an_interrupted_load_counts_for_nothing_and_is_resumed(cli: Cli, nodes: list[Node], tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "big").write_bytes(BIG)
    (root / "small").write_bytes(b"s")
    broken = errors.Corruption("the disk is damaged: replace node n1")
    nodes[0].faults = [Fault("Delete", errors.NoLeader()), Fault("Put", LOST, after=True)]
    nodes[0].faults += [Fault("Put", PASS), Fault("Put", broken)]
    stopped = cli("--endpoints", nodes[0].address, "load", str(root))
    assert stopped.exit_code == 1
    assert "the disk is damaged" in stopped.stderr
    assert "run the same command again" in stopped.stderr
    assert nodes[0].store.read(b"big\0meta") is None
    out = tmp_path / "out"
    dumped = cli("dump", str(out))
    assert dumped.exit_code == 1
    assert "big: it has no meta row" in dumped.stderr
    assert b"big" not in _files(out)
    resumed = cli("load", str(root))
    assert resumed.exit_code == 0
    assert _counts(resumed.stdout)["failed"] == 0
    assert cli("dump", str(out)).exit_code == 0
    assert _files(out) == _files(root)


def test_a_load_goes_on_over_a_dying_node_and_writes_everything_once(
    cli: Cli, nodes: list[Node], tmp_path: Path
) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    for number in range(40):
        (root / f"f{number}").write_bytes(b"%d" % number)
    nodes[0].die_after = 60
    nodes[1].faults += [Fault("Txn", LOST, after=True) for _ in range(5)]
    answer = cli("load", str(root))
    assert answer.exit_code == 0, answer.stderr
    assert _counts(answer.stdout)["loaded"] == 40
    assert nodes[0].store.executed.count("txn") == 40
    assert nodes[1].count("Txn") + nodes[0].count("Txn") + nodes[2].count("Txn") > 40
    for node in nodes[1:]:
        verified = cli("--endpoints", node.address, "load", "--verify", str(root))
        assert _counts(verified.stdout)["same"] == 40


def test_replacing_a_large_file_leaves_nothing_of_it(cli: Cli, nodes: list[Node], tmp_path: Path) -> None:
    file = tmp_path / "f"
    for content in (BIG, b"small", BIG[::-1], BIG[: CHUNK + 5]):
        file.write_bytes(content)
        assert cli("load", str(tmp_path)).exit_code == 0
        rows = cli("scan", "--prefix", "f", "--keys-only").stdout_bytes.splitlines()
        assert len(rows) == 1 + max(1, -(-len(content) // CHUNK))
        assert _counts(cli("load", "--verify", str(tmp_path)).stdout)["same"] == 1


@pytest.mark.parametrize("words", [("del", "f"), ("put", "f", "other")], ids=" ".join)
@pytest.mark.parametrize("content", [b"small", BIG], ids=["small", "large"])
def test_a_file_whose_key_was_changed_since_is_loaded_again(
    cli: Cli, tmp_path: Path, content: bytes, words: tuple[str, ...]
) -> None:
    """It was skipped for its meta row, which was still there; --verify said what was wrong, and nothing mended it."""
    (tmp_path / "f").write_bytes(content)
    assert cli("load", str(tmp_path)).exit_code == 0
    assert cli(*words).exit_code == 0
    assert cli("load", "--verify", str(tmp_path)).exit_code == 1
    again = cli("load", str(tmp_path))
    assert (again.exit_code, _counts(again.stdout)["loaded"]) == (0, 1)
    assert cli("load", "--verify", str(tmp_path)).exit_code == 0
    assert _counts(cli("load", str(tmp_path)).stdout)["skipped"] == 1


def test_a_small_file_takes_the_place_of_one_too_large_for_a_transaction(
    cli: Cli, nodes: list[Node], tmp_path: Path
) -> None:
    """Nothing behind it was loaded either, however often."""
    (tmp_path / "f").write_bytes(BIG)
    assert cli("load", str(tmp_path)).exit_code == 0
    nodes[0].faults = [Fault("Txn", errors.ResultTooLarge())]
    (tmp_path / "f").write_bytes(b"small")
    assert _counts(cli("load", str(tmp_path)).stdout)["loaded"] == 1
    assert _counts(cli("load", "--verify", str(tmp_path)).stdout)["same"] == 1
    assert len(cli("scan", "--prefix", "f", "--keys-only").stdout_bytes.splitlines()) == 2, "content and meta row"


def test_what_cannot_be_loaded_is_named_and_the_rest_is(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"g")
    (tmp_path / "link").symlink_to("good")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    answer = cli("load", str(tmp_path))
    assert answer.exit_code == 0
    assert _counts(answer.stdout)["left_out"] == 3
    for line in ("link: a symbolic link", "loop: a symbolic link", "pipe: not a regular file"):
        assert line in answer.stderr


def test_a_file_that_vanishes_is_counted(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good").write_bytes(b"g")
    (tmp_path / "grows").write_bytes(b"g")
    (tmp_path / "vanishes").write_bytes(b"g")

    def open_file(place: bytes) -> tuple[int, os.stat_result]:
        if place.endswith(b"vanishes"):
            os.unlink(place)
        opened = tree.open_file(place)
        if place.endswith(b"grows"):
            with open(place, "ab") as file:
                file.write(b"more")
        return opened

    monkeypatch.setattr("nebuladb.cli.load.open_file", open_file)
    answer = cli("load", str(tmp_path))
    assert answer.exit_code == 1
    counts = _counts(answer.stdout)
    assert (counts["loaded"], counts["failed"]) == (1, 2)
    assert "vanishes: No such file" in answer.stderr
    assert "grows: it was changed" in answer.stderr


def test_exclude(cli: Cli, tree: Path) -> None:
    answer = cli("load", str(tree), "--exclude", "sub", "--exclude", "*.txt")
    assert _counts(answer.stdout)["loaded"] == len(TREE) - 4


def test_verify_finds_one_altered_byte(cli: Cli, nodes: list[Node], tree: Path) -> None:
    cli("load", str(tree))
    row = nodes[0].store.history[b"sub/big\0chunk\x0000000001"][-1].kv
    assert row is not None
    row.value = row.value[:-1] + bytes((row.value[-1] ^ 1,))
    cli("del", "empty", "--end", "emptz")
    (tree / "exact").write_bytes(b"other")
    answer = cli("load", "--verify", str(tree))
    assert answer.exit_code == 1
    counts = _counts(answer.stdout)
    assert (counts["different"], counts["missing"], counts["same"]) == (2, 1, len(TREE) - 3)
    assert "sub/big: what is stored DIFFERS" in answer.stderr
    assert "exact: the file differs" in answer.stderr
    assert "empty: it isn't in the database" in answer.stderr


@pytest.mark.parametrize("path", ["../up", "/abs", "a/../../up", "a//b", ".", "a/./b", "link/in"])
def test_dump_never_leaves_its_directory(cli: Cli, tmp_path: Path, path: str) -> None:
    out = tmp_path / "in" / "out"
    out.mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (out / "link").symlink_to(outside)
    cli("put", f"p/{path}", "evil")
    cli("put", "--hex", f"p/{path}\0meta".encode().hex(), Meta.of(b"evil", 0o644).to_bytes().decode())
    cli("put", "p/zz", "good")
    cli("put", "--hex", b"p/zz\0meta".hex(), Meta.of(b"good", 0o644).to_bytes().decode())
    answer = cli("dump", str(out), "--prefix", "p/")
    assert answer.exit_code == 1
    assert _counts(answer.stdout) == {"files": 1, "failed": 1, "bytes": 4}
    assert _files(out) == {b"zz": (b"good", 0o100644)}
    assert not list(outside.iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "outside"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (b"not json", "not a meta row"),
        (b"{}", "not a meta row"),
        (b'{"size":1e999,"sha256":"0","mode":0,"chunks":1,"chunk_size":1048576}', "not a meta row"),
        (b"[" * 100_000, "not a meta row"),
        (json.dumps({"size": 4, "sha256": "0", "mode": 0, "chunks": 1, "chunk_size": 9}).encode(), "another layout"),
        (Meta.of(b"evil", 0o644)._replace(sha256="00").to_bytes(), "DIFFERS"),
        (Meta.of(b"e" * CHUNK * 2, 0o644).to_bytes(), "DIFFERS"),
    ],
)
def test_dump_refuses_what_is_not_whole(cli: Cli, tmp_path: Path, row: bytes, says: str) -> None:
    cli("put", "f", "evil")
    cli("put", "--hex", b"f\0meta".hex(), "-", stdin=row)
    answer = cli("dump", str(tmp_path / "out"))
    assert answer.exit_code == 1
    assert says in answer.stderr
    assert not list((tmp_path / "out").iterdir())


def test_dump_leaves_nothing_of_rows_that_no_load_wrote(cli: Cli, tmp_path: Path) -> None:
    """A first chunk under a key of a further one began the file anew, and its beginning stayed as a draft."""
    cli("put", "f", "evil")
    cli("put", "--hex", b"f\0chunk\x0000000000".hex(), "evil")
    assert cli("dump", str(tmp_path / "out")).exit_code == 1
    assert os.listdir(tmp_path / "out") == []


def test_dump_takes_the_place_of_files_only(cli: Cli, tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    os.mkfifo(target / "empty")
    (target / "exact").symlink_to(tree / "plain.txt")
    assert cli("load", str(tree)).exit_code == 0
    dumped = cli("dump", str(target))
    assert dumped.exit_code == 1
    assert "empty: something that is no file has its name" in dumped.stderr
    assert (target / "empty").is_fifo()
    assert (target / "exact").read_bytes() == TREE[b"exact"]
    assert (tree / "plain.txt").read_bytes() == TREE[b"plain.txt"]
    assert _counts(dumped.stdout)["failed"] == 1


def test_load_tells_soon_what_is_wrong(cli: Cli, tmp_path: Path) -> None:
    assert "keyspace list" in cli("--keyspace", "nowhere", "load", str(tmp_path)).stderr
    away = cli("--endpoints", "127.0.0.1:1", "--timeout", "0.1", "load", str(tmp_path))
    assert (away.exit_code, away.stdout) == (1, "")
    assert cli("load", str(tmp_path / "none")).exit_code == 2


def test_a_cluster_without_space_says_so_before_the_long_patience_begins(
    cli: Cli, nodes: list[Node], tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["nebuladb.cli.load"], "PATIENCE", 3.0)
    for node in nodes:
        node.faults = [Fault(write, errors.NoSpace("it is full")) for write in ("Grant", "Open") * 100]
    result = cli("--timeout", "1", "load", str(tree))
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "nebula-cli: it is full\n")
    assert _counts(cli("load", str(tree), "--verify").stdout)["missing"] == len(TREE)  # which takes no space


@pytest.mark.parametrize(("revision", "says"), [("1", "compacted"), ("99", "has not happened yet")])
def test_a_dump_of_a_revision_that_cannot_be_read_is_not_to_be_repeated(
    cli: Cli, tmp_path: Path, revision: str, says: str
) -> None:
    """It was stopped, and "run the same command again" would never help."""
    (tmp_path / "f").write_bytes(b"v")
    assert cli("load", str(tmp_path)).exit_code == 0
    assert cli("compact").exit_code == 0
    answer = cli("dump", str(tmp_path / "out"), "--revision", revision)
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert says in answer.stderr
    assert "stopped" not in answer.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["load", "dump"])
def test_ctrl_c_says_how_to_go_on(
    cli: Cli, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    run = Settings.run

    def pressed(self: Settings, work: Any, timeout: float = 0.0) -> Any:
        if timeout:
            raise KeyboardInterrupt
        return run(self, work, timeout)

    monkeypatch.setattr(Settings, "run", pressed)
    answer = cli(command, str(tree if command == "load" else tmp_path / "out"))
    assert answer.exit_code == 1
    assert answer.stdout.startswith("files=0 ")
    assert "nebula-cli: stopped; what was done stays: run the same command again to go on\n" in answer.stderr
    assert "Aborted!" in answer.stderr


ENDED = """
import os, signal
from nebuladb.cli.draft import Draft
from nebuladb.cli.main import main
write = Draft.write
Draft.write = lambda *given: (write(*given), os.kill(os.getpid(), int(os.environ["NUMBER"])))
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("words", ["dump {}", "get k --file {}/value"])
def test_a_signal_leaves_no_draft_behind(
    cli: Cli, nodes: list[Node], tree: Path, tmp_path: Path, words: str, number: signal.Signals
) -> None:
    cli("load", str(tree / "sub" / "dir"))
    cli("put", "k", "v")
    place = tmp_path / "out"
    place.mkdir()
    environ = {**os.environ, "NEBULA_ENDPOINTS": nodes[0].address, "NUMBER": str(int(number))}
    command = [sys.executable, "-c", ENDED, *words.format(place).split()]
    ran = subprocess.run(command, env=environ, check=False, capture_output=True)
    assert ran.returncode == 128 + number, ran.stderr
    assert os.listdir(place) == []
    assert b"Traceback" not in ran.stderr

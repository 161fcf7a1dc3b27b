"""Recorded histories: the conformance files, what is read from a line, and what the command says and draws."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nebuladb.sim.linearizability.__main__ import main
from nebuladb.sim.linearizability.histories import parse_history
from nebuladb.sim.linearizability.key_value import Append, Get, KeyValue, Put
from nebuladb.sim.linearizability.operation import UNKNOWN, Operation
from nebuladb.sim.linearizability.register import CompareAndSet, Read, Register, Write

SHARED = Path(os.environ.get("NEBULA_SHARED", Path(__file__).parents[4] / "shared"))
DATA = SHARED / "conformance" / "histories"

LOG = """\
INFO  jepsen.util - 0\t:invoke\t:read\tnil
INFO  jepsen.util - :nemesis\t:info\t:start\tnil
INFO  jepsen.util - 1\t:invoke\t:cas\t[3 0]
INFO  jepsen.util - 0\t:ok\t:read\tnil
INFO  jepsen.util - 1\t:fail\t:cas\t[3 0]
INFO  jepsen.util - 2\t:invoke\t:write\t4
INFO  jepsen.util - 3\t:invoke\t:cas\t[0 1]
INFO  jepsen.util - 4\t:invoke\t:read\tnil
INFO  jepsen.util - 2\t:info\t:write\t:timed-out
INFO  jepsen.util - 3\t:fail\t:cas\t:timed-out
INFO  jepsen.util - 5\t:invoke\t:read\tnil
INFO  jepsen.util - 5\t:ok\t:read\t4
"""
MAPS = r"""
{:process 0, :type :invoke, :f :put, :key "k", :value "a \"b\""}
{:process 0, :type :ok, :f :put, :key "k", :value "a \"b\""}
{:process 1, :type :invoke, :f :get, :key "k", :value nil}
{:process 0, :type :invoke, :f :append, :key "k", :value ":x"}
{:process 1, :type :ok, :f :get, :key "k", :value "a \"b\"", :time 17}
{:process 1, :type :invoke, :f :put, :key "k", :value "c"}
{:process 1, :type :fail, :f :put, :key "k", :value "c"}
"""
BAD = """\
{:process 0, :type :invoke, :f :write, :key 1, :value 7}
{:process 0, :type :ok, :f :write, :key 1, :value 7}
{:process 1, :type :invoke, :f :read, :key 1, :value nil}
{:process 1, :type :ok, :f :read, :key 1, :value nil}
{:process 0, :type :invoke, :f :read, :key 1, :value nil}
{:process 0, :type :ok, :f :read, :key 1, :value 7}
"""


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no conformance data at {DATA}; set NEBULA_SHARED")
def test_every_conformance_history_gets_its_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    verdicts = json.loads((DATA / "verdicts.json").read_text())
    files = sorted(str(path) for path in DATA.iterdir() if path.suffix in (".log", ".txt"))
    assert main(files) == 0
    told = dict(line.rsplit(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert {Path(name).name: verdict for name, verdict in told.items()} == verdicts


def test_log_lines_are_read() -> None:
    model, operations = parse_history(LOG)
    assert isinstance(model, Register)
    assert sorted(operations, key=lambda operation: operation.call) == [
        Operation(0, 1, 4, Read(), None),
        Operation(1, 3, 5, CompareAndSet(3, 0), output=False),
        Operation(2, 6, None, Write(4), UNKNOWN),
        Operation(4, 8, None, Read(), UNKNOWN),
        Operation(5, 11, 12, Read(), 4),
    ], "a cas that was answered false is an answer; one that failed otherwise did not happen"


def test_maps_are_read() -> None:
    model, operations = parse_history(MAPS)
    assert isinstance(model, KeyValue)
    assert sorted(operations, key=lambda operation: operation.call) == [
        Operation(0, 2, 3, Put("k", 'a "b"'), 'a "b"'),
        Operation(1, 4, 6, Get("k"), 'a "b"'),
        Operation(0, 5, None, Append("k", ":x"), UNKNOWN),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no operations"),
        ("hello\n", "line 1: neither a log line of Jepsen nor a map"),
        (LOG + "INFO  jepsen.util - 5\t:ok\t:read\n", "line 13: a log line is"),
        (LOG + "INFO  jepsen.util - 5\t:ok\t:read\t4\n", "line 13: process 5 ends :read, which it did not begin"),
        (
            LOG + "INFO  jepsen.util - 4\t:invoke\t:read\tnil\n",
            "line 13: process 4 has not ended what it began in line 8",
        ),
        (LOG + "INFO  jepsen.util - 4\t:perhaps\t:read\tnil\n", "unknown type :perhaps"),
        (LOG + MAPS, "no model has all of its functions"),
        ("{:process 0, :type :invoke, :f :cas, :value 7}", "line 1: a cas has two values"),
        ("{:process 0, :type :invoke, :f :put, :key 1, :value 7}", "line 1: :put has no text"),
        ("{:process 0, :type :invoke, :value nil}", "line 1: a map without :f"),
        ("{:process 0, :type :invoke, :f}", "line 1: a map without its last value"),
        ("{:process 0, :type :invoke, :f :read, :value [1 }", "line 1: a vector has no end"),
        ('{:process 0, :type :invoke, :f :read, :value "1}', "line 1: can't be read from"),
    ],
)
def test_what_is_no_history_is_refused_with_its_line(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        parse_history(text)


def test_the_command_names_the_operation_and_the_prefix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad"
    bad.write_text(BAD)
    assert main([str(bad)]) == 0
    told = capsys.readouterr()
    assert told.out == f"{bad}: not linearizable\n"
    assert told.err.splitlines() == [
        f"{bad}: nothing explains process 1: read → None (lines 3 to 4)",
        f"{bad}: it can only have found a value that nobody reads",
        f"{bad}: one order that explains all before it leads to 7",
        f"{bad}: smallest failing prefix of key 1: 2 operations",
        f"{bad}:   process 0: write 7 (lines 1 to 2)",
        f"{bad}:   process 1: read → None (lines 3 to 4)",
    ]


def test_what_can_not_be_decided_is_said_and_is_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, strange = tmp_path / "good", tmp_path / "strange"
    good.write_text(LOG)
    strange.write_bytes(b"\xff\xfe")
    missing = tmp_path / "missing"
    assert main([str(strange), str(missing), str(good)]) == 1
    told = capsys.readouterr()
    assert told.out == f"{strange}: undecided\n{missing}: undecided\n{good}: linearizable\n"
    assert all(str(path) in told.err for path in (strange, missing))
    assert main(["--max-steps", "1", str(good)]) == 1
    assert "is not decided after 1 steps" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--max-steps", "0", "x"], ["--colour", "x"]])
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


class Page(HTMLParser):
    """What a time line holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.groups: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag == "g":
            self.groups.append(dict(attrs)["class"] or "")


def test_time_lines_show_every_operation_and_need_nothing_else(tmp_path: Path) -> None:
    for folder, text in (("a", BAD), ("b", LOG)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "history").write_text(text)
    main([str(tmp_path / "a" / "history"), str(tmp_path / "b" / "history"), "--html", str(tmp_path / "html")])
    assert sorted(path.name for path in (tmp_path / "html").iterdir()) == ["history.2.html", "history.html"]
    text = (tmp_path / "html" / "history.html").read_text()
    page = Page(text)
    assert page.groups == ["known", "known failed", "known after"]
    assert "not linearizable" in text
    assert "It can only have found: a value that nobody reads." in text
    assert not [name for name, _ in page.attributes if name in ("src", "href")]
    assert Page((tmp_path / "html" / "history.2.html").read_text()).groups.count("unknown") == 2


def test_texts_are_escaped_in_the_page(tmp_path: Path) -> None:
    history = tmp_path / "<i>"
    history.write_text(MAPS.replace(":x", "<script>"))
    main([str(history), "--html", str(tmp_path)])
    text = (tmp_path / "<i>.html").read_text()
    assert "<script>" not in text
    assert "<i>" not in text

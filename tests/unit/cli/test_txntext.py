from __future__ import annotations

import pytest

from nebuladb.cli.txntext import parse
from tests.unit.cli.conftest import Cli


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("put a b#c", b"b#c"),
        ("put a http://x/y#frag  # comment", b"http://x/y#frag"),
        ('put a "b # c"  #"', b"b # c"),
        ("put a b\r", b"b"),
        ("put a b\u2028c\u00a0d", "b\u2028c\u00a0d".encode()),
        ('put a "\\xffé"', b"\xff\xc3\xa9"),
        ('put a ""', b""),
    ],
)
def test_a_value_is_taken_as_it_is_written(line: str, value: bytes) -> None:
    assert [(op.put.key, op.put.value) for op in parse(line).success] == [(b"a", value)]


@pytest.mark.parametrize("line", ['del a"b"', 'del "a"b', 'del "a""b"', 'put k it"s', 'del "a"#'])
def test_a_quote_inside_a_word_is_an_error(line: str) -> None:
    with pytest.raises(ValueError, match="line 2: a quote inside a word"):
        parse(f"# first\n{line}")


def test_a_quote_without_an_end_is_an_error() -> None:
    with pytest.raises(ValueError, match="line 1: a quote has no end"):
        parse('del "a')


def test_bytes_that_are_not_utf_8_have_an_escape(cli: Cli) -> None:
    answer = cli("txn", stdin=b"put a \xff")
    assert answer.exit_code == 2
    assert "at byte 6; write such bytes as \\xHH" in answer.stderr

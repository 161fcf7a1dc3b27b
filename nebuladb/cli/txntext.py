"""The text in which a transaction is written for ``nebula-cli txn``. Pure."""

from __future__ import annotations

import re
from typing import Final, cast

from nebuladb.client.txn import RELATIONS, TARGETS, Branch, Relation, Target, Txn, compare
from nebuladb.client.types import TxnResult
from nebuladb.errors import NebulaError
from nebuladb.pb.nebula.v1 import kv_pb2

_BLANKS: Final = " \t\r\f\v"
_WORD: Final = re.compile(rf'[{_BLANKS}]*(?:(#.*)|"((?:[^"\\]|\\.)*)"|([^{_BLANKS}"]+))')
_ESCAPE: Final = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_NAMED: Final = {b"n": b"\n", b"t": b"\t", b'"': b'"', b"\\": b"\\"}


def parse(text: str) -> kv_pb2.TxnRequest:
    """The request. Raises ValueError that names the line and what was expected there."""
    txn = Txn(_never)
    section = "then"
    # Not splitlines: it cuts at other characters, too, which may be part of a word.
    for number, line in enumerate(text.split("\n"), 1):
        try:
            words = _words(line)
            if len(words) == 1 and words[0] in (b"when", b"then", b"else"):
                section = words[0].decode()
            elif words and section == "when":
                txn.request.compare.append(_condition(words))
            elif words:
                _operation(txn, cast(Branch, section), words)
        except (ValueError, NebulaError) as error:
            raise ValueError(f"line {number}: {error}") from None
    request = txn.request
    if not (request.compare or request.success or request.failure):
        raise ValueError("the transaction is empty; `nebula-cli txn --help` shows one")
    return request


def _words(line: str) -> list[bytes]:
    """A # begins a comment, and a " a quoted word, at a word's start only: `http://x/y#z` is one word."""
    words, place = [], 0
    line = line.rstrip(_BLANKS)
    while place < len(line):
        match = _WORD.match(line, place)
        if match is None:
            raise ValueError('a quote has no end; write "…" with \\" for a quote inside')
        comment, quoted, bare = match.groups()
        place = match.end()
        if comment is None and place < len(line) and line[place] not in _BLANKS:
            raise ValueError(
                f'a quote inside a word, at {match[0].strip(_BLANKS)}; write all of it as "…", with \\" for the quote'
            )
        if quoted is not None:
            words.append(_ESCAPE.sub(_unescape, quoted.encode()))
        elif bare is not None:
            words.append(bare.encode())
    return words


def _unescape(match: re.Match[bytes]) -> bytes:
    code, name = match.groups()
    if code is not None:
        return bytes.fromhex(code.decode())
    if name not in _NAMED:
        raise ValueError(f'\\{name.decode(errors="replace")} is no escape; there are \\n \\t \\" \\\\ \\xHH')
    return _NAMED[name]


def _condition(words: list[bytes]) -> kv_pb2.Compare:
    if len(words) != 4:
        raise ValueError("a condition is: version|create|mod|value|lease KEY =|!=|>|< X")
    target, key, relation, to = words[0].decode(errors="replace"), words[1], words[2].decode(errors="replace"), words[3]
    if target not in TARGETS or relation not in RELATIONS:
        raise ValueError(f"a condition compares {', '.join(TARGETS)} by one of {' '.join(RELATIONS)}")
    value = to if target == "value" else _number(to)
    return compare(cast(Target, target), key, cast(Relation, relation), value)


def _operation(txn: Txn, branch: Branch, words: list[bytes]) -> None:
    match words:
        case [b"get" | b"del", _, b""]:
            raise ValueError("END is empty: leave it out for KEY alone, or name the key to stop before")
        case [b"put", key, value]:
            txn.put(key, value, branch=branch)
        case [b"put", key, value, lease]:
            txn.put(key, value, lease=_number(lease), branch=branch)
        case [b"get", key, *end] if len(end) < 2:
            txn.get(key, *end, branch=branch)
        case [b"del", key, *end] if len(end) < 2:
            txn.delete(key, *end, branch=branch)
        case _:
            raise ValueError("an operation is: put KEY VALUE [LEASE], get KEY [END] or del KEY [END]")


def _number(word: bytes) -> int:
    try:
        return int(word)
    except ValueError:
        raise ValueError(f"{word.decode(errors='replace')!r} is not a number") from None


async def _never(_: kv_pb2.TxnRequest) -> TxnResult:
    raise AssertionError

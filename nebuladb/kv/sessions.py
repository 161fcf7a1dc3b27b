"""Sessions: the first answer to every numbered request, until the client has seen it (S20).

The table of sessions is in memory as well as in S rows, because opening one at the bound needs the least recently
used; the answers are in W rows only. `Sessions` is changed while an apply call runs and is therefore ahead of the
engine until its batch is written; the store never drops a batch, so it needs no way back.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from nebuladb.env import probe
from nebuladb.errors import Corruption, SessionExpired, SessionWindow
from nebuladb.kv import answer_codec
from nebuladb.kv.answer import Answer
from nebuladb.kv.command import Command
from nebuladb.kv.draft import Draft
from nebuladb.kv.limits import MAX_SESSIONS, SESSION_BYTES, SESSION_WINDOW
from nebuladb.kv.rows import FORMAT, SESSION_ROW, U64, Keys
from nebuladb.kv.source import Source

LAST_NAME: Final = (1 << 64) - 1
"""A name is a u64, and none is 0."""
REPEAT: Final = 4
"""So many times the bytes of an answer count that is given again: to take it apart, of 20,000 keys, takes 20 ms."""


@dataclass(slots=True)
class Session:
    """`used` names the command that used it last, by index and place; `lowest` is the client's lowest unanswered."""

    used: int
    lowest: int
    sizes: dict[int, int] | None = None
    """Sequence number → bytes of its answer; None until it is needed, then read from the W rows."""
    total: int = 0


class Sessions:
    """All sessions of a shard, least recently used first."""

    def __init__(self, source: Source) -> None:
        self.keys: Keys = source.keys
        found: list[tuple[int, int, int]] = []
        for row, data in source.scan(self.keys.session, self.keys.session + b"\xff" * 9):
            if len(data) != SESSION_ROW.size or data[0] != FORMAT or len(row) != len(self.keys.session) + 8:
                raise Corruption("a session row is damaged")
            _, used, lowest = SESSION_ROW.unpack(data)
            found.append((used, int.from_bytes(row[-8:]), lowest))
        found.sort()
        self._sessions = OrderedDict((name, Session(used, lowest)) for used, name, lowest in found)

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, draft: Draft, stamp: int, chosen: int = 0) -> int:
        """A new session. Its name is `chosen`, which the leader drew, so that no other shard, no keyspace made anew and
        no other life of the cluster has a session of that name: its client would get this one's answers, or leave its
        own here. 0: an entry of an older build, which names it by `stamp`."""
        name = chosen or stamp
        while name in self._sessions:
            name = name % LAST_NAME + 1
        while len(self._sessions) >= MAX_SESSIONS:
            probe("session evicted")
            self._remove(draft, next(iter(self._sessions)))
        self._sessions[name] = Session(stamp, 1, {})
        self._write(draft, name)
        return name

    def close(self, draft: Draft, name: int) -> None:
        """End a session. Raises `SessionExpired` if there is none."""
        if name not in self._sessions:
            raise SessionExpired
        self._remove(draft, name)

    def first_answer(self, draft: Draft, command: Command) -> Answer | None:
        """What the request was answered the first time; None = it is new and may run. Changes nothing.

        Raises `SessionExpired` or `SessionWindow`.
        """
        session = self._sessions.get(command.session)
        if session is None:
            raise SessionExpired
        lowest = max(session.lowest, command.lowest)
        if not lowest <= command.sequence < lowest + SESSION_WINDOW:
            raise SessionWindow(f"sequence {command.sequence} is not in [{lowest}, {lowest + SESSION_WINDOW})")
        sizes = self._sizes(draft, command.session, session)
        if command.sequence in sizes:
            data = draft.get(self._answer_row(command.session, command.sequence))
            if data is None:
                raise Corruption("a session's answer is missing")
            draft.held += REPEAT * len(data)
            return answer_codec.decode(data)
        if session.total >= SESSION_BYTES and _after(sizes, lowest) >= SESSION_BYTES:
            raise SessionWindow("too many bytes of answers wait for the client to say that it has them")
        return None

    def record(self, draft: Draft, command: Command, stamp: int, answer: Answer | None) -> None:
        """The request was answered with `answer` (None: with its first answer, again)."""
        session = self._sessions[command.session]
        sizes = self._sizes(draft, command.session, session)
        if command.lowest > session.lowest:
            # No answer lies outside the window that was open so far.
            for sequence in range(session.lowest, min(command.lowest, session.lowest + SESSION_WINDOW)):
                size = sizes.pop(sequence, None)
                if size is not None:
                    session.total -= size
                    draft.remove(self._answer_row(command.session, sequence))
            session.lowest = command.lowest
        if answer is not None:
            data = answer_codec.encode(answer)
            sizes[command.sequence] = len(data)
            session.total += len(data)
            draft.write(self._answer_row(command.session, command.sequence), data)
        session.used = stamp
        self._sessions.move_to_end(command.session)
        self._write(draft, command.session)

    def _answer_row(self, name: int, sequence: int) -> bytes:
        return self.keys.answer + U64.pack(name) + U64.pack(sequence)

    def _sizes(self, draft: Draft, name: int, session: Session) -> dict[int, int]:
        if session.sizes is None:
            low = self.keys.answer + U64.pack(name)
            session.sizes = {int.from_bytes(row[-8:]): len(data) for row, data in draft.scan(low, low + b"\xff" * 9)}
            session.total = sum(session.sizes.values())
            draft.held += session.total
        return session.sizes

    def _write(self, draft: Draft, name: int) -> None:
        session = self._sessions[name]
        draft.write(self.keys.session + U64.pack(name), SESSION_ROW.pack(FORMAT, session.used, session.lowest))

    def _remove(self, draft: Draft, name: int) -> None:
        for sequence in self._sizes(draft, name, self._sessions[name]):
            draft.remove(self._answer_row(name, sequence))
        draft.remove(self.keys.session + U64.pack(name))
        del self._sessions[name]


def _after(sizes: dict[int, int], lowest: int) -> int:
    """Bytes of the answers that stay when those below `lowest` are forgotten."""
    return sum(size for sequence, size in sizes.items() if sequence >= lowest)

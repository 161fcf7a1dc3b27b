"""Which sessions of a group were used lately: of more than there is room for, those that weren't must end first."""

from __future__ import annotations

from dataclasses import dataclass

from nebuladb.errors import NebulaError, Outcome, Reason
from nebuladb.kv import sessions
from nebuladb.kv.answer import Answer, SessionResult
from nebuladb.kv.command import Command, Kind
from nebuladb.pb.nebula.v1 import session_pb2
from nebuladb.sim.violation import require


@dataclass(slots=True)
class Use:
    """One request: that opens a session, or in one."""

    session: int
    """0: it isn't known which it opened, if any."""
    asked: int
    ended: int | None = None
    """When its client was told what came of it; None: it may take effect at any time."""
    answered: bool = False
    """It was done: the session was there."""


class Uses:
    """Of one group. Moments are those of histories."""

    def __init__(self, group: int) -> None:
        self._group = group
        self._uses: list[Use] = []
        self._closed: set[int] = set()

    def begins(self, command: Command, now: int) -> Use | None:
        """A client sends `command`; None: it has nothing to do with sessions."""
        if command.kind == Kind.SESSION_CLOSE:
            self._closed.add(session_pb2.SessionCloseRequest.FromString(command.body).id)
        if command.kind != Kind.SESSION_OPEN and not command.session:
            return None
        use = Use(command.session, now)
        self._uses.append(use)
        return use

    def ends(self, use: Use, outcome: Answer | NebulaError, now: int, who: str) -> None:
        """Its client is told so. Raises `Violation` if that a session has ended which nobody closed, and which must
        have been used later than others that had no room beside it (S20)."""
        if isinstance(outcome, NebulaError):
            if outcome.outcome is not Outcome.UNKNOWN:
                self._uses.remove(use)  # it certainly was none
            return
        if outcome.reason == Reason.SESSION_EXPIRED:
            self._uses.remove(use)
            if use.session not in self._closed:
                self._had_to_go(use.session, who)
            return
        use.ended, use.answered = now, outcome.reason != Reason.SESSION_WINDOW
        if isinstance(outcome.result, SessionResult):
            use.session = outcome.result.session

    def _had_to_go(self, session: int, who: str) -> None:
        last = max((use.asked for use in self._uses if use.session == session and use.answered), default=None)
        if last is None:
            return  # it never was
        others = {
            use.session or id(use)
            for use in self._uses
            if use.session != session and (use.ended is None or use.ended >= last)
        }
        room = vars(sessions)["MAX_SESSIONS"]  # which is small in some seeds
        require(
            len(others) >= room,
            f"group {self._group}, {who}: session {session} has ended, and only {len(others)} others can have been "
            f"used since it was; {room} have room",
        )

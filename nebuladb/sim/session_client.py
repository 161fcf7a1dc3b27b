"""A client with a session: it repeats a request, anywhere, until it knows the answer; it may run once (S20)."""

from __future__ import annotations

from collections.abc import Sequence

from nebuladb.errors import NebulaError, Reason, UnknownOutcome
from nebuladb.kv.answer import Answer, SessionResult
from nebuladb.kv.command import Command, Kind
from nebuladb.pb.nebula.v1 import session_pb2
from nebuladb.sim.board import Board
from nebuladb.sim.client import Client
from nebuladb.sim.core import Core
from nebuladb.sim.life import Written
from nebuladb.sim.machine import Machine

RETRY_MS = 30


class SessionClient(Client):
    """Invariant: one request at a time bears `_sequence`, whatever number of times it is sent. None waits for room: it
    has all answers but the one that it asks for."""

    refusals = frozenset({Reason.SESSION_EXPIRED})

    def __init__(self, core: Core, machines: Sequence[Machine], board: Board, group: int, name: str) -> None:
        super().__init__(core, machines, board, group, name)
        self._session = 0
        self._sequence = 0
        self._sent = 0
        """How often the request of that number was sent."""

    def _write(self, draw: float) -> None:
        if self._session:
            super()._write(draw)
        else:
            body = session_pb2.SessionOpenRequest().SerializeToString()
            super()._submit(Command(Kind.SESSION_OPEN, body), self._opened)

    def _opened(self, outcome: Answer | NebulaError) -> None:
        answer = self._done(outcome)
        if answer is not None:
            assert isinstance(answer.result, SessionResult)
            self._session, self._sequence = answer.result.session, 0
            self._ok()

    def _submit(self, command: Command, written: Written) -> None:
        self._sequence += 1
        self._sent = 0
        numbered = command._replace(session=self._session, sequence=self._sequence, lowest=self._sequence)
        self._attempt(numbered, written)

    def _attempt(self, command: Command, written: Written) -> None:
        """Send it; also a second time while the first is still under way, now and then."""
        answered = False

        def once(outcome: Answer | NebulaError) -> None:
            nonlocal answered
            if answered:
                return
            answered = True
            if isinstance(outcome, NebulaError) and self.group in self._board.dropped:
                written(UnknownOutcome("the keyspace was dropped"))
            elif isinstance(outcome, NebulaError):
                self._core.scheduler.after(self._rng.randrange(RETRY_MS), self._attempt, command, written)
            elif outcome.reason == Reason.SESSION_EXPIRED:
                self._session = 0
                self._board.session_ended(self.group, self.name)
                # Sent once, it was refused. Else one may have run before the session went, of which the other knows
                # nothing any more.
                written(outcome if self._sent == 1 else UnknownOutcome("the session expired under a repeated request"))
            else:
                written(outcome)

        for _ in range(2 if self._rng.random() < 0.1 else 1):
            self._sent += 1
            self._ask(command, once)

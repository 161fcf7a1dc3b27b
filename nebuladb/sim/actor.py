"""What every client of the simulator has: one operation at a time, on any machine, with a time-out of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import ClassVar

from nebuladb.errors import NebulaError, Outcome, Unavailable, UnknownOutcome
from nebuladb.kv.answer import Answer, KeyValue
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.store import Store
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.sim.board import Board
from nebuladb.sim.calls import Calls
from nebuladb.sim.core import Core
from nebuladb.sim.life import Written
from nebuladb.sim.look import Look, Then
from nebuladb.sim.machine import Machine
from nebuladb.sim.violation import require

BEGIN_MS = 600
"""Within this time of a client's creation, or of `FOUNDED_MS`, it begins."""
FOUNDED_MS = 1_300
"""By then most clusters are founded, if nobody does them harm; some clients don't wait for it."""
EARLY = 0.1
THINK_MS = 40
"""The longest pause between two operations."""
BACK_OFF_MS = 200
"""The longest one after an operation that failed."""
TIMEOUTS_MS = (30, 300, 1_500)
GRACE_MS = 5
"""After its time-out a client waits so long for the answer, then it gives up by itself: the node may stand still."""

Looked = Callable[[Store, Machine], Then | None]


class Actor:
    """A subclass says in `_begin` what one operation is, which ends with one of `_ok`, `_failed`, `_unknown`."""

    refusals: ClassVar[frozenset[int]] = frozenset()
    """Why its writes, which are all well formed, may be refused when they are applied."""

    def __init__(self, core: Core, machines: Sequence[Machine], board: Board, group: int, name: str) -> None:
        self.busy = False
        """Whether an operation waits for its outcome."""
        self.stopped = False
        """Set it, and no further operation begins."""
        self.group = group
        self.name = name
        self.process = board.new_process()
        """Its number in histories."""
        self._core = core
        self._machines = machines
        self._board = board
        self._rng: Random = core.stream(f"client {name}")
        self._cold: Random = core.stream(f"client {name} cold")
        """What of its reads takes the disk."""
        self._calls = Calls(core, core.stream(f"client {name} calls"))
        wait = 0 if self._rng.random() < EARLY else max(FOUNDED_MS - core.scheduler.now, 0)
        core.scheduler.after(wait + self._rng.randrange(BEGIN_MS), self._act)

    def _begin(self) -> None:
        """Begin one operation."""
        raise NotImplementedError

    # --- its loop ----------------------------------------------------------------------------------------------------

    @property
    def _wants(self) -> bool:
        """Whether it has begun what takes several operations: it isn't idle, nor stopped, before that is done."""
        return False

    def _pause(self, longest: int) -> None:
        self.busy = self._wants
        self._core.scheduler.after(self._rng.randrange(longest), self._act)

    def _act(self) -> None:
        if self._wants or not self.stopped:
            self.busy = True
            self._begin()

    @property
    def _now(self) -> int:
        """Virtual ms, which no client of a real cluster knows."""
        return self._core.scheduler.now

    @property
    def _moment(self) -> int:
        """For histories: finer than a millisecond; what happens in one turn of a node is concurrent."""
        return self._core.scheduler.steps

    # --- asking ------------------------------------------------------------------------------------------------------

    def _machine(self) -> Machine:
        """Any that accepts connections: a driver goes on to the next by itself where one is refused."""
        open_ones = [machine for machine in self._machines if machine.node is not None]
        return self._rng.choice(open_ones or self._machines)

    def _timeout(self) -> int:
        return self._rng.choice(TIMEOUTS_MS)

    def _ask(self, command: Command, written: Written) -> None:
        """Send a write to some machine; `written` is called once."""
        if command.kind == Kind.SESSION_OPEN:
            self._board.opened[self.group] += 1
        elif command.kind == Kind.COMPACT:
            self._core.floors.asked(self.group, kv_pb2.CompactRequest.FromString(command.body).revision)
        timeout, machine = self._timeout(), self._machine()
        uses = self._board.uses(self.group)
        use = uses.begins(command, self._moment)
        waiting = True

        def once(outcome: Answer | NebulaError) -> None:
            nonlocal waiting
            if waiting:
                waiting = False
                if use is not None:
                    uses.ends(use, outcome, self._moment, self.name)
                written(outcome)

        def give_up() -> None:
            if waiting:
                once(UnknownOutcome("the client had no answer in time"))

        def broken() -> None:
            once(UnknownOutcome("the connection broke"))

        def answer(outcome: Answer | NebulaError) -> None:
            self._calls.carry(broken, once, outcome)

        def submit() -> None:
            machine.submit(self.group, command, timeout, answer)

        self._core.scheduler.after(timeout + GRACE_MS, give_up)
        self._call(machine, submit, answer, once, broken)

    def _look(self, looked: Looked, group: int = 0, *, linearizable: bool = True) -> None:
        """A read of `group`, by default one's own, through some machine: `looked` has its store in the instant in which
        it may be read, and once more after it met rows that are on the disk only. It returns what is to be done when
        the answer has come, or None if it goes on by itself. Otherwise the operation has failed."""
        group = group or self.group
        machine, timeout = self._machine(), self._timeout()
        waiting = True

        def once(then: Then) -> None:
            nonlocal waiting
            if waiting:
                waiting = False
                then()

        def fail(_: NebulaError | None = None) -> None:
            once(self._failed)

        def answer(then: Then) -> None:
            self._calls.carry(fail, once, then)

        def read(store: Store) -> Then | None:
            nonlocal waiting
            then = looked(store, machine) if waiting else None
            waiting = then is not None
            return then

        def confirmed(error: NebulaError | None) -> None:
            look = None
            if error is None and waiting:
                with suppress(NebulaError):
                    look = Look(self._core, self._cold, machine, group, read, answer, fail)
            if look is None:
                answer(self._failed)
            else:
                look.begin()

        def request() -> None:
            if linearizable:
                machine.confirm(group, timeout, confirmed)
            else:
                confirmed(None)

        self._core.scheduler.after(timeout + GRACE_MS, fail)
        self._call(machine, request, confirmed, fail, fail)

    def _call(
        self,
        machine: Machine,
        request: Callable[[], None],
        refused: Callable[[NebulaError], None],
        unreachable: Callable[[NebulaError], None],
        broken: Callable[[], None],
    ) -> None:
        """`request` is on its way to a machine, unless that takes no connections. There it may be refused; and a
        connection ends with the process to which it was made."""
        incarnation = machine.incarnation

        def arrive() -> None:
            if machine.incarnation != incarnation:
                broken()
                return
            try:
                request()
            except NebulaError as error:
                refused(error)

        if incarnation:
            self._calls.carry(broken, arrive)
        else:
            unreachable(Unavailable("the connection was refused"))

    def _observe(self, store: Store, key: bytes) -> KeyValue | None:
        """One key, as the store has it now."""
        return self._board.changes.read(self.group, store, key, self.name)

    # --- outcomes ----------------------------------------------------------------------------------------------------

    def _done(self, outcome: Answer | NebulaError) -> Answer | None:
        """The answer, if the write was done. Else the operation has ended, failed or unknown."""
        if isinstance(outcome, Answer):
            if not outcome.reason:
                return outcome
            self._rightly_refused(outcome)
            self._failed()
        elif outcome.outcome is Outcome.UNKNOWN:
            self._unknown()
        else:
            self._failed()
        return None

    def _rightly_refused(self, answer: Answer) -> None:
        """Raise `Violation` unless that may be."""
        allowed = answer.reason in self.refusals
        require(allowed, f"group {self.group}, {self.name}: a write is refused that may not be: {answer}")

    def _ok(self, think: int = THINK_MS) -> None:
        self._core.report.ops_ok += 1
        self._finish("ok", think)

    def _failed(self) -> None:
        self._core.report.ops_failed += 1
        self._finish("failed", BACK_OFF_MS)

    def _unknown(self) -> None:
        self._core.report.ops_unknown += 1
        self._finish("unknown", THINK_MS)

    def _finish(self, outcome: str, pause: int) -> None:
        self._core.note(f"operation {outcome}", "", self.name)
        self._pause(pause)


def unknown(outcome: Answer | NebulaError) -> bool:
    """Whether the write may take effect at any time, or have done so."""
    return isinstance(outcome, NebulaError) and outcome.outcome is Outcome.UNKNOWN

"""What a hunt with clients' oracles alone changes: the simulator looks on where an oracle of its own would have ended
the run, and a node that gives up dies and starts again, as under a supervisor, until it has done so often enough.

The cluster then recovers as far as a client can tell: what only an inside view shows may be missing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from traceback import walk_tb
from typing import Any, Final

from nebuladb.errors import InvariantViolation, NebulaError, NodeRemoved
from nebuladb.node.node import Node
from nebuladb.sim.disk import WatchedLog
from nebuladb.sim.invariants.logs import Logs
from nebuladb.sim.invariants.replicas import Replicas
from nebuladb.sim.machine import Machine
from nebuladb.sim.recovery import BOUND_MS, SERVING, Recovery
from nebuladb.sim.violation import Violation
from nebuladb.sim.workloads.hashes import Hashes
from nebuladb.sim.workloads.operator import Operator
from nebuladb.sim.workloads.steward import Steward
from nebuladb.sim.world import Result

CLIENTS: Final = ("actor", "board", "client", "invariants.changes", "register", "session_client", "uses", "workloads")
"""Modules of the simulator whose oracles look only at what clients are told, but for `OPERATORS`."""
OPERATORS: Final = (
    "workloads.declarer", "workloads.hashes", "workloads.operator", "workloads.reclaimed", "workloads.refusals",
    "workloads.steward",
)  # fmt: skip
"""They read of a node what its operator may see, or change members, and no client does."""
BROKEN: Final = (AttributeError, ImportError, NameError, TypeError)
"""A mutant that ends like this proves nothing."""
INTERNAL: Final[tuple[tuple[type, str], ...]] = (
    (Logs, "written"),
    (Logs, "committed"),
    (Logs, "elected"),
    (Logs, "_follows"),
    (Replicas, "_changed"),
    (Replicas, "_published"),
    (Replicas, "hashes"),
    (Replicas, "step"),
    (WatchedLog, "_reopen"),
    (Recovery, "_rows_agree"),
    (Recovery, "_hashes_equal"),
    (Hashes, "took"),
    (Operator, "_check"),
    (Operator, "_queues"),
    (Operator, "_space"),
    (Steward, "_ask_wrongly"),
)
"""Oracles that look at what no client sees."""
DRIVEN: Final = (
    "_turn", "_tick", "_background", "_durable", "_goes_on", "_fetched", "_exported", "_open", "receive", "peer_up",
    "peer_down", "flush", "submit", "confirm",
)  # fmt: skip
"""Where a machine runs the product."""
INSIDE: Final = ("_keyspaces_are_settled", "_caught_up", "_hashes_equal", "_level", "_reclaimed", "_no_alarms")
"""Steps of the recovery that no client sees."""
FACTS: Final = "_facts_hold"
CHECK: Final = "check"
"""What the product finds wrong with itself, when the simulator asks."""
LIVES: Final = 5
"""A node that gives up so often,"""
SOON_MS: Final = 2_500
"""each time so soon after the time before, is not started again."""
CROWD: Final = tuple(f"nebuladb.sim.{name}" for name in ("actor", "client", "look", "session_client", "workloads"))

_GIVEN_UP: Final[dict[int, tuple[int, int]]] = {}
"""`id` of a machine of this run → how often it has given up, each time soon after the time before; and when, last."""
_COMMITTED: Final = Logs.committed


def seen_by_a_client(result: Result) -> bool:
    """Whether what ended a run is what clients see: a wrong answer, or none where the cluster should serve."""
    if result.oracle == "recovery":
        return any(f"this is not so: {step};" in result.violation for step in SERVING)
    return result.oracle.startswith(CLIENTS) and result.oracle not in OPERATORS


def listen_to_clients_alone() -> None:
    """For the rest of this process."""
    for kind, name in INTERNAL:
        quiet = _deaf(getattr(kind, name))
        setattr(kind, name, staticmethod(quiet) if isinstance(kind.__dict__[name], staticmethod) else quiet)
    for name in DRIVEN:
        setattr(Machine, name, _survived(getattr(Machine, name)))
    for name in INSIDE:
        setattr(Recovery, name, _patient(getattr(Recovery, name)))
    setattr(Recovery, FACTS, _as_far_as_known(getattr(Recovery, FACTS)))
    setattr(Node, CHECK, lambda node: None)


def begin_run() -> None:
    """Nobody has given up yet."""
    _GIVEN_UP.clear()


def _deaf(check: Callable[..., Any]) -> Callable[..., Any]:
    """`check` that reports nothing; what it returns instead is what it would have had nothing been wrong."""

    @wraps(check)
    def quiet(*args: Any) -> Any:
        try:
            return check(*args)
        except Violation:
            return args[2].raft.commit if check is _COMMITTED else True

    return quiet


def _survived(drive: Callable[..., Any]) -> Callable[..., Any]:
    """`drive`, in which only the node dies of what the product raises."""

    @wraps(drive)
    def driven(machine: Machine, *args: Any) -> Any:
        try:
            return drive(machine, *args)
        except Exception as error:
            if not _gives_up(error, asked=drive.__name__ in ("submit", "confirm")):
                raise
            _dies(machine)

    return driven


def _gives_up(error: Exception, *, asked: bool) -> bool:
    """Whether it is the product that raised this, and not what it tells somebody who `asked`."""
    if isinstance(error, (Violation, NodeRemoved, AssertionError, *BROKEN)):
        return False
    if any(frame.f_globals.get("__name__", "").startswith(CROWD) for frame, _ in walk_tb(error.__traceback__)):
        return False
    return not (asked and isinstance(error, NebulaError) and not isinstance(error, InvariantViolation))


def _dies(machine: Machine) -> None:
    now, (count, last) = machine._core.scheduler.now, _GIVEN_UP.get(id(machine), (0, 0))
    count = count + 1 if now - last < SOON_MS else 1
    _GIVEN_UP[id(machine)] = count, now
    alive = machine.node is not None
    if count >= LIVES:
        machine.lost = True
    machine.crash(power=False)
    if not alive and machine.died is not None:
        machine.died(machine)  # as it began to run


def _patient(step: Callable[[Recovery], bool]) -> Callable[[Recovery], bool]:
    """`step`, or that it had its time."""

    @wraps(step)
    def passed(recovery: Recovery) -> bool:
        if any(machine.node is None for machine in recovery._machines):
            return False
        if recovery._core.scheduler.now <= recovery._deadline - BOUND_MS // 2:
            return step(recovery)
        recovery.incomplete = True
        return True

    return passed


def _as_far_as_known(facts_hold: Callable[[Recovery], None]) -> Callable[[Recovery], None]:
    """Where a node is behind, what it shows may be old; histories are judged all the same."""

    @wraps(facts_hold)
    def judged(recovery: Recovery) -> None:
        if not recovery.incomplete:
            facts_hold(recovery)
            return
        for fact in recovery._board.facts.values():
            fact.check()

    return judged

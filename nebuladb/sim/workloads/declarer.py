"""Alarms are declared for the whole cluster, and taken back: meanwhile what they forbid is refused (etcd 27)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nebuladb.errors import ClusterCorrupt, NebulaError, NoSpace
from nebuladb.ids import DEFAULT_GROUP, META_GROUP
from nebuladb.kv.answer import Answer, TxnResult
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.store import Store
from nebuladb.node.declared import Declared, DeclaredAlarm
from nebuladb.node.keyspaces import transaction
from nebuladb.node.meta import Meta
from nebuladb.node.node import Node
from nebuladb.pb.nebula.v1 import kv_pb2, lease_pb2
from nebuladb.sim.actor import Actor
from nebuladb.sim.board import Board
from nebuladb.sim.core import Core
from nebuladb.sim.machine import Machine
from nebuladb.sim.violation import require
from nebuladb.sim.workloads.requests import compact, delete_range, put

IDLE_MS: Final = 200
HOLD_MS: Final = 600
"""The longest that an alarm stays declared, once it is."""
FENCE: Final = b"alarms-taken-back"
"""A row of meta that each taking back changes: no declaration that comes late gets past it."""
KEY: Final = b"declared/key"
TIMEOUT_MS: Final = 300


class Declarer(Actor):
    """One alarm at a time, which is taken back before this client is idle: nobody could recover else."""

    def __init__(self, core: Core, machines: Sequence[Machine], board: Board, name: str) -> None:
        super().__init__(core, machines, board, META_GROUP, name)
        self._alarm: DeclaredAlarm | None = None
        self._declared: bool | None = False
        """Whether the alarm's row is there; None: an outcome is unknown."""
        self._until = 0
        self._count = 0

    @property
    def _wants(self) -> bool:
        return self._alarm is not None

    def _begin(self) -> None:
        if self._alarm is None and self._rng.random() < IDLE_MS / 2 / self._core.drawn.alarms_every:
            node = self._rng.choice([machine.node_id for machine in self._machines] + [self._rng.getrandbits(40)])
            self._alarm = DeclaredAlarm(self._rng.choice(list(Declared)), node)
            self._until = 0
        if self._alarm is None:
            self._pause(IDLE_MS)
        else:
            self._look(self._looked)

    def _looked(self, _: Store, machine: Machine) -> None:
        """The node's picture of meta is as new as this read."""
        node, alarm = machine.node, self._alarm
        assert node is not None
        assert alarm is not None
        meta, where = node.meta, f"{self.name} on {machine.name}"
        there = alarm in meta.declared
        require(set(meta.declared) <= {alarm}, f"{where}: {meta.declared} are declared, and nobody did but {alarm}")
        require(
            self._declared in (None, there), f"{where}: {alarm} is declared: {there}; it had to be {self._declared}"
        )
        said = any(alarm.kind.upper() in text for text in node.alarms() if "was raised for" in text)
        require(said is there, f"{where}: {alarm} is declared: {there}, the node says {node.alarms()}")
        self._declared = there
        if there:
            self._obeyed(where, machine, node, alarm.kind)
            self._until = self._until or self._now + self._rng.randrange(HOLD_MS)
        if self.stopped or (self._until and self._now >= self._until):
            self._take_back(meta, alarm)
        elif there:
            self._ok()
        else:
            rows = {alarm.key: 0, FENCE: meta.mod(FENCE)}
            self._change(transaction(rows, {alarm.key: alarm.encode()}), declared=True)

    def _take_back(self, meta: Meta, alarm: DeclaredAlarm) -> None:
        self._count += 1
        rows = {alarm.key: meta.mod(alarm.key), FENCE: meta.mod(FENCE)}
        self._change(transaction(rows, {alarm.key: None, FENCE: b"%d" % self._count}), declared=False)

    def _change(self, step: bytes, *, declared: bool) -> None:
        self._declared = None

        def changed(outcome: Answer | NebulaError) -> None:
            answer = self._done(outcome)
            if answer is None:
                return
            assert isinstance(answer.result, TxnResult)
            if answer.result.succeeded:  # else one that was unknown came first
                self._declared = declared
                self._core.hit("alarm declared" if declared else "alarm taken back")
                self._alarm = self._alarm if declared else None
            self._ok()

        self._ask(Command(Kind.TXN, step), changed)

    # --- what a node that knows of it does

    def _obeyed(self, where: str, machine: Machine, node: Node, kind: Declared) -> None:
        if machine.paused or DEFAULT_GROUP not in node.host.replicas:
            return
        corrupt = kind is Declared.CORRUPT
        wanted = ClusterCorrupt if corrupt else NoSpace
        nested = kv_pb2.TxnRequest()
        nested.success.add().txn.failure.add(put=kv_pb2.TxnPut(key=KEY))
        grant = lease_pb2.LeaseGrantRequest(ttl=60)
        for command in (
            put(KEY, KEY),
            Command(Kind.TXN, nested.SerializeToString()),
            Command(Kind.LEASE_GRANT, grant.SerializeToString()),
            Command(Kind.SESSION_OPEN, b""),
        ):
            error = self._refusal(machine, command)
            require(isinstance(error, wanted), f"{where}: {kind} is declared, and {command} meets {error!r}")
        for command in (delete_range(KEY, b""), compact(1)):
            error = self._refusal(machine, command)
            require(
                isinstance(error, ClusterCorrupt) is corrupt and not isinstance(error, NoSpace),
                f"{where}: {kind} is declared, and {command} meets {error!r}",
            )
        keep = Command(Kind.LEASE_KEEP_ALIVE, lease_pb2.LeaseKeepAliveRequest(id=1).SerializeToString())
        error = self._refusal(machine, keep)
        require(
            not isinstance(error, ClusterCorrupt | NoSpace), f"{where}: {kind} is declared, and leases end: {error!r}"
        )
        self._core.hit(f"alarm {kind.upper()} obeyed")

    @staticmethod
    def _refusal(machine: Machine, command: Command) -> NebulaError | None:
        """Why a node doesn't take a write."""
        try:
            machine.submit(DEFAULT_GROUP, command, TIMEOUT_MS, lambda outcome: None)
        except NebulaError as error:
            return error
        return None

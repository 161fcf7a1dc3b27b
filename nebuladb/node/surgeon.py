"""Changes of members, step by step: what the meta group's leader plans, and what each group's leader makes of it.

A leader whose group has another configuration than the descriptor says first makes sure of both: by a linearizable read
of the meta group, then one of its own group. It acts only if neither its term nor the descriptor has changed since.
Without the first, a leader that hears from meta late would bring back a replica that was removed, or throw out one that
has just been added. Without the second, a leader that was deposed and doesn't know it might report a replica as gone
that its successor has just made a voter; that replica would be destroyed. And it reports a change only when a majority
of those who stay knows that it is committed: one that doesn't would ask the destroyed for its vote.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from nebuladb.env import probe
from nebuladb.errors import NebulaError
from nebuladb.ids import META_GROUP
from nebuladb.kv.command import Command, Kind
from nebuladb.node.keyspaces import shard_key
from nebuladb.node.members import Planner, report
from nebuladb.node.replica import Replica
from nebuladb.raft import LEADER
from nebuladb.shard import Descriptor
from nebuladb.shard.membership import Decision, decide, settled

if TYPE_CHECKING:
    from nebuladb.node.node import Node

EVERY_MS: Final = 100
"""Between two looks. Nothing waits for it but changes of members."""
MAX_LOOKS: Final = 16
"""Groups whose change is looked into at once."""
READ_MS: Final = 2_000


class Surgeon:
    """Changes the members of the groups that one node leads. Invariant: one look a group at a time."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._planner = Planner(node.founding)
        self._due = 0
        self._looking: set[int] = set()
        self._turn = 0

    def step(self) -> None:
        """Called once a tick."""
        node = self._node
        if node.host.now < self._due:
            return
        self._due = node.host.now + EVERY_MS
        replica = node.host.replicas.get(META_GROUP)
        if replica is not None and replica.raft.role is LEADER and not len(replica.proposals):
            step = self._planner.step(node.meta)
            if step is not None:
                probe("members planned")
                with suppress(NebulaError):  # it is planned again
                    node.request(Command(Kind.TXN, step))
        changing = node.meta.changing
        for _ in changing:
            if len(self._looking) >= MAX_LOOKS:
                probe("many groups change at once")
                break
            self._turn = (self._turn + 1) % len(changing)
            self._consider(changing[self._turn])

    def _consider(self, group: int) -> None:
        """Look into a group that is led here, if anything is to be done about it."""
        node = self._node
        replica, shard = node.host.replicas.get(group), node.meta.descriptor(group)
        if replica is None or shard is None or group in self._looking or not _ready(replica):
            return
        if settled(shard, replica.raft.configuration):
            return
        # A group that rests doesn't notice that a learner has caught up; the look's read wakes it (S11).
        if not (replica.raft.quiet or self._decide(replica, shard)):
            return
        self._looking.add(group)
        self._ask(META_GROUP, partial(self._meta_confirmed, group, replica.raft.term), group)

    def _ask(self, which: int, then: partial[None], group: int) -> None:
        try:
            self._node.ask(which, READ_MS, then)
        except NebulaError:
            probe("a change's read was refused")
            self._looking.discard(group)

    def _meta_confirmed(self, group: int, term: int, error: NebulaError | None) -> None:
        """Meta's picture is as new as this look."""
        if error is not None:
            self._looking.discard(group)
            return
        revision = self._node.meta.mod(shard_key(group))
        self._ask(group, partial(self._confirmed, group, term, revision), group)

    def _confirmed(self, group: int, term: int, revision: int, error: NebulaError | None) -> None:
        """So is the group's state, and we led it all the while: act."""
        self._looking.discard(group)
        node = self._node
        replica, shard = node.host.replicas.get(group), node.meta.descriptor(group)
        if error is not None or replica is None or shard is None:
            return
        if replica.raft.term != term or not _ready(replica) or node.meta.mod(shard_key(group)) != revision:
            probe("a change overtaken by another")
            return
        decision = self._decide(replica, shard)
        try:
            if decision.report is not None and not replica.raft.membership.heard:
                probe("change not heard of by a majority")
                node.submit(group, Command(Kind.CLOCK, b""), node.host.now + READ_MS)  # any entry takes the word there
            elif decision.report is not None:
                probe("change of members reported")
                node.request(Command(Kind.TXN, report(node.meta, node.founding, decision.report)))
            elif decision.changes:
                probe("change of members proposed")
                node.host.propose_change(group, decision.changes)
            elif decision.heir:
                probe("leader leaves its group")
                node.host.transfer_leadership(group, replica.nodes[decision.heir])
        except NebulaError as refused:
            probe(f"change of members refused: {type(refused).__name__}")

    def _decide(self, replica: Replica, shard: Descriptor) -> Decision:
        raft = replica.raft
        known = raft.membership
        fed = self._node.host.receivers(replica.group)
        heirs = [
            voter
            for voter in raft.configuration.voters
            if voter != replica.id and voter not in fed and voter in replica.nodes and known.lives(voter)
        ]
        heirs.sort(key=known.lag)
        return decide(shard, raft.configuration, replica.id, known.caught_up, heirs)


def _ready(replica: Replica) -> bool:
    """Whether this replica leads, with nothing under way."""
    raft = replica.raft
    return raft.role is LEADER and not raft.transferee and raft.membership.settled

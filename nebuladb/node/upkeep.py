"""What a node does for its shards once a second, of its own accord."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nebuladb.env import probe
from nebuladb.errors import NebulaError
from nebuladb.kv.command import Command, Kind
from nebuladb.node.alarms import Alarm, AlarmKind
from nebuladb.node.applier import Applier
from nebuladb.node.consistency import Consistency, Verdict, hash_messages
from nebuladb.node.disk import Space, heir
from nebuladb.node.options import NodeOptions
from nebuladb.node.retention import Compactor
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.raft import StateRole

if TYPE_CHECKING:
    from nebuladb.node.node import Node

REQUEST_MS: Final = 5_000
"""Deadline of a proposal; what is still wanted then is proposed again."""


class Upkeep:
    """Compacts by rule, has replicas compared, watches the disk, and forgets who was removed. One a process; `step` is
    called with the node's housekeeping."""

    def __init__(self, node: Node, options: NodeOptions, applier: Applier) -> None:
        self._node = node
        self._compactor = Compactor(options.retention, node.host.now)
        self._stall = options.stall
        self._hangs = False
        """The log's disk does; `disk.stalled` also says that the data's can't be read, or takes no writes."""
        self._applier = applier
        self._stuck: tuple[int, int] | None = None
        """Since when nothing was applied because the data store refused it, and how much was before."""
        self._why = ""
        """What the data store said when it was found stuck."""
        self._alarm = ""
        """The text that is raised of one or the other."""
        self._consistency = Consistency(options.check, node.host.now)

    def step(self) -> None:
        """Propose what is due, and lead nothing while the disk is full, hangs, or can't be read."""
        node = self._node
        for gone in [peer for peer in node.host.peers if peer in node.meta.removed]:
            node.host.forget(gone)
        self._look_at_disk()
        now = node.host.now
        for group, revision in self._compactor.due(node.host, node.groups, node.meta.shards, now):
            probe("history compacted by rule")
            self._propose(group, Command(Kind.COMPACT, kv_pb2.CompactRequest(revision=revision).SerializeToString()))
        for group in self._consistency.due(node.host, now):
            self._propose(group, Command(Kind.HASH, b""))
        for verdict in self._consistency.late(now):
            self._judged(verdict)

    def space(self, space: Space, text: str) -> None:
        """There is so much room on the disk now; `text` says how much, for the alarm."""
        node = self._node
        node.host.disk.space = space
        if space is Space.PLENTY:
            node.alarms_now.cleared(AlarmKind.NO_SPACE)
        else:
            node.alarms_now.raised(Alarm(AlarmKind.NO_SPACE, f"{self._name(node.identity.node)}: {text}"))
            self._give_away()

    def _look_at_disk(self) -> None:
        node, disk = self._node, self._node.host.disk
        name = self._name(node.identity.node)
        self._hangs = bool(self._stall) and disk.sync_age >= self._stall
        disk.stuck = self._is_stuck()
        if not disk.stuck:
            self._why = ""
        elif not self._why:
            self._why = node.data.trouble() or "its background work is too slow, or met an error"
        disk.stalled = self._hangs or disk.stuck or node.alarms_now.stands(AlarmKind.UNREADABLE)
        before = self._alarm
        if self._hangs:
            self._alarm = f"{name}: the log's disk has not answered for {self._stall} ms or more"
        elif disk.stuck:
            self._alarm = f"{name}: the data store has taken no writes for {self._stall} ms or more: {self._why}"
        else:
            self._alarm = ""
        if self._alarm:
            node.alarms_now.raised(Alarm(AlarmKind.STALLED, self._alarm))
        elif before:
            node.alarms_now.cleared(AlarmKind.STALLED)
        if disk.status:
            self._give_away()

    def _is_stuck(self) -> bool:
        """Whether entries wait for a data store that has refused them, all of them, for the time of a stall."""
        applier, now = self._applier, self._node.host.now
        if not (self._stall and applier.slices and applier.stalled):
            self._stuck = None
        elif self._stuck is None or self._stuck[1] != applier.applied:
            self._stuck = now, applier.applied
        return self._stuck is not None and now - self._stuck[0] >= self._stall

    def _give_away(self) -> None:
        """Every group to a node that is well. While the log's disk hangs nothing can be said that waits for it (S3),
        the word to the successor included: then we let go, and the others, whom our frames tell, elect one of them."""
        host = self._node.host
        for group, replica in host.replicas.items():
            if replica.raft.role is not StateRole.LEADER:
                continue
            if not (node := heir(replica, host.peers, host.receivers(group))):
                continue
            probe("leadership given away for the disk's sake")
            try:
                if self._hangs:
                    host.step_down(group)
                else:
                    host.transfer_leadership(group, node)
            except NebulaError:
                probe("leadership not given away")

    def hashed(self, group: int, index: int, digest: bytes) -> None:
        """This node has hashed its state of `group`."""
        replica = self._node.host.replicas.get(group)
        if replica is not None:
            self._node.host.mail.add(hash_messages(replica, index, digest))
            self.reported(group, replica.id, index, digest)

    def reported(self, group: int, replica: int, index: int, digest: bytes) -> None:
        """A replica, ours or another's, has hashed its state of `group`."""
        mine = self._node.host.replicas.get(group)
        if mine is None:
            self._consistency.forget(group)
            return
        verdict = self._consistency.report(group, mine.nodes, replica, index, digest, self._node.host.now)
        if verdict is not None:
            self._judged(verdict)

    def forget(self, group: int) -> None:
        """The group leaves this node."""
        self._node.alarms_now.cleared(AlarmKind.INCONSISTENT, group)
        self._consistency.forget(group)

    def _judged(self, verdict: Verdict) -> None:
        """Raise the alarm, or clear it where all replicas are the same again."""
        node, group = self._node, verdict.group
        if not verdict.deviating:
            node.alarms_now.cleared(AlarmKind.INCONSISTENT, group)
            return
        shard = node.meta.shards.get(group)
        what = f"shard {group} of keyspace {shard.keyspace!r}" if shard else f"group {group}"
        replicas = node.host.replicas[group].nodes if group in node.host.replicas else {}
        nodes = {replicas.get(replica, 0): replica for replica in verdict.deviating}
        names = [self._name(one) for one in nodes]
        where = f"at log index {verdict.index}"
        if not verdict.certain:
            text = f"{what}: the data on {', '.join(names)} is not the same {where}; which is right can't be told"
            node.alarms_now.raised(Alarm(AlarmKind.INCONSISTENT, text, group))
            return
        for one, name in zip(nodes, names, strict=True):
            text = f"{what}: the data on {name} differs from the other nodes' {where}; replace that node"
            node.alarms_now.raised(Alarm(AlarmKind.INCONSISTENT, text, group, one))

    def _name(self, node: int) -> str:
        own = self._node.identity
        if node == own.node:
            return own.name  # it knows that before it has a picture of meta
        record = self._node.meta.nodes.get(node)
        return record.name if record else f"node {node:016x}"

    def _propose(self, group: int, command: Command) -> None:
        try:
            self._node.submit(group, command, self._node.host.now + REQUEST_MS)
        except NebulaError:
            probe("upkeep refused")

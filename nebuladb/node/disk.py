"""What a node that is short of space, or whose disk hangs, does and leaves (S33): it never meets the end of its disk.

Below a watermark of free space (`Space.LOW`) it takes no write that grows the data from its clients, and hands
leadership to a node with space. Below half of it (`Space.CRITICAL`) it doesn't append such writes of a leader either,
as if the message had been lost: it stays a member that votes, and catches up when there is space again. Deletions,
compactions, revokes, keep-alives and configurations go through at all times: they make room, or are small. What would
wait for an entry that it doesn't append is refused at once, so that clients ask another node: linearizable reads, and
writes, which would be done elsewhere and never be answered, since they are answered when they are applied here.

Each frame says how the sender is (``frame.decode_frame``), so that nobody hands leadership to one that can't use it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import IntEnum
from typing import Final

from nebuladb.env import probe
from nebuladb.errors import NoSpace, Unavailable
from nebuladb.ids import META_GROUP
from nebuladb.kv import check
from nebuladb.kv.command import Command, Kind
from nebuladb.node.entry import COMMAND_HEADER, command_kind, decode_payload
from nebuladb.node.output import Request
from nebuladb.node.peer import Peer
from nebuladb.node.reads import ReadOutcomes
from nebuladb.node.replica import Replica
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.raft import APPEND, Message
from nebuladb.raft.entry import ENTRY_HEADER, Entry, EntryKind

GROWING: Final = frozenset((Kind.PUT, Kind.LEASE_GRANT, Kind.SESSION_OPEN))
"""Kinds that need space; a transaction does if it puts anything."""
LOW_BIT: Final = 1
CRITICAL_BIT: Final = 2
STALLED_BIT: Final = 4


class Space(IntEnum):
    """How much room there is; see the module."""

    PLENTY = 0
    LOW = LOW_BIT
    CRITICAL = LOW_BIT | CRITICAL_BIT


class DiskState:
    """What `Host` knows of its own disk. The driver sets `space` and `stalled`."""

    def __init__(self) -> None:
        self.space = Space.PLENTY
        self.stalled = False
        """The log's disk hangs, the data's fails reads, or the data store is stuck."""
        self.stuck = False
        """The data store takes no writes: what is committed isn't applied here."""
        self.sync_age = 0
        """Milliseconds, in ticks, for which the oldest log batch has been on its way to the disk."""
        self.strained = False
        """Another node is short of space, or its disk hangs."""
        self._refused: dict[int, tuple[int, int]] = {}
        """Group → term and index of the newest entry that wasn't appended for want of space. A later leader may lack it
        too."""

    @property
    def status(self) -> int:
        """What frames say of this node; not 0: it should lead nothing."""
        return self.space | (STALLED_BIT if self.stalled else 0)

    def admit(self, request: Request, replica: Replica, peers: Mapping[int, Peer]) -> None:
        """Raise `NoSpace` for a client's write if it needs space and this node, or a majority of the others, has none;
        `Unavailable` for any that could not be applied here, and so not answered."""
        if self.stuck and request.group != META_GROUP:
            raise Unavailable("this node's data store takes no writes, so nothing was done: ask another node")
        short = self.space is not Space.PLENTY or most_full(replica, peers, own=False)
        if short and request.group != META_GROUP and wire_grows(request.wire):
            where = "this node's disk" if self.space is not Space.PLENTY else "the disks of most nodes"
            raise NoSpace(f"{where} is nearly full: deletions and compactions are taken, other writes are not")
        if self.space is Space.CRITICAL and request.group != META_GROUP and self._lacks(replica):
            raise Unavailable("this node's disk is full, and what others wrote is missing here: ask another node")

    def _lacks(self, replica: Replica) -> bool:
        """Whether it lacks what its leader has sent."""
        term, index = self._refused.get(replica.group, (0, 0))
        return term == replica.raft.term and index > replica.raft.last_index

    def refuses(self, replica: Replica, message: Message, peers: Mapping[int, Peer], flooded: bool) -> bool:
        """Whether a leader's message is to be treated as lost. `flooded`: see `Batches`.

        Where most disks are full no leader takes what grows any more, and what it has taken goes through: else nothing
        could be deleted behind it.
        """
        if message.type != APPEND or not message.entries or not (flooded or self.space is Space.CRITICAL):
            return False
        if flooded:
            probe("append dropped while the disk hangs")
            return True
        if most_full(replica, peers, own=True) or not any(map(entry_grows, message.entries)):
            return False
        probe("append dropped for want of space")
        self._refused[replica.group] = message.term, message.index + len(message.entries)
        return True

    def starved(self, replica: Replica) -> ReadOutcomes:
        """Reads that wait for what this node refuses, and now fail. An index that the log has is about to be applied;
        without data that takes a snapshot, which is refused as well."""
        if self.space is not Space.CRITICAL:
            return []
        return replica.reads.give_up(replica.applied if replica.lost else replica.raft.last_index)


def most_full(replica: Replica, peers: Mapping[int, Peer], *, own: bool) -> bool:
    """Whether half of the voters or more take nothing that grows; `own`: this node doesn't, should it be one."""
    voters = replica.raft.configuration.voters
    nodes = [peers.get(replica.home(voter)) for voter in voters if voter != replica.id]
    full = sum(1 for peer in nodes if peer is not None and peer.status & CRITICAL_BIT)
    return 2 * (full + (own and replica.id in voters)) >= len(voters)


def heir(replica: Replica, peers: Mapping[int, Peer], receivers: Collection[int]) -> int:
    """A node whose disk is well, to hand a group that is led here to; 0: there is none. None of the group's replicas in
    `receivers` (`Host.receivers`), to which it would be handed over in vain, writes waiting meanwhile."""
    able = []
    for other in replica.raft.configuration.voters:
        if other in receivers:
            continue
        peer = peers.get(node := replica.nodes.get(other, 0))
        if peer is not None and peer.well:
            able.append((replica.raft.membership.lag(other), node))
    return min(able)[1] if able else 0


def wire_grows(wire: bytes) -> bool:
    """Whether an encoded command needs space."""
    return grows(command_kind(wire), wire[COMMAND_HEADER:])


def entry_grows(entry: Entry) -> bool:
    """Whether a log entry does; one of the meta group's is small, but isn't told from others here."""
    if entry.kind != EntryKind.NORMAL:
        return False
    commands: list[Command] = decode_payload(entry.record, ENTRY_HEADER)[1]
    return any(grows(command.kind, command.body) for command in commands)


def grows(kind: int, body: bytes) -> bool:
    """Whether a command with this body does."""
    if kind != Kind.TXN:
        return kind in GROWING
    try:
        return check.txn(kv_pb2.TxnRequest.FromString(body)).puts
    except Exception:  # it will be refused at apply, and takes its own bytes in the log
        return True

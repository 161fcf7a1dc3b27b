"""Snapshots that a node sends, as the leader of their groups: which are wanted, and which are on their way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from nebuladb.env import probe
from nebuladb.errors import Corruption, Unavailable
from nebuladb.ids import Generation, GroupId
from nebuladb.kv.chunk import CHUNK_BYTES, content_size
from nebuladb.kv.export import Exporter
from nebuladb.node.disk import CRITICAL_BIT
from nebuladb.node.host import Host
from nebuladb.node.options import SnapshotLimits
from nebuladb.node.outgoing import Outgoing, TransferOutcome
from nebuladb.node.output import TICK_MS
from nebuladb.node.pauses import Pauses
from nebuladb.node.turn import Turn
from nebuladb.raft import Message, StateRole
from nebuladb.storage.engine import Engine

TICKS_A_SECOND: Final = 1_000 // TICK_MS


class SnapshotSender:
    """Invariant: a replica is sent one at most. Each that Raft asked for ends with `Raft.snapshot_finished`."""

    def __init__(
        self,
        host: Host,
        data: Engine,
        limits: SnapshotLimits,
        counts: Counter[str],
        damaged: Callable[[int, Corruption], None],
    ) -> None:
        """`damaged`: a group's data is found so; it may raise what it is given."""
        self._host = host
        self._data = data
        self._limits = limits
        self._counts = counts
        self._damaged = damaged
        self.wanted: dict[tuple[int, int], int] = {}
        """(group, replica) → the least index that helps it; in the order they were asked for."""
        self.outgoing: dict[tuple[int, int], Outgoing] = {}
        """(group, replica) → what is on its way."""
        host.receivers = self.receivers
        self._pauses = Pauses()
        self._number = 0
        self._budget = 0

    def receivers(self, group: int) -> set[int]:
        """See `Host`. Also one that is left alone for a while, since it had no room."""
        return {receiver for of, receiver in (*self.wanted, *self.outgoing) if of == group}

    # --- in ------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """A tick passed."""
        slot = self._limits.rate // TICKS_A_SECOND
        self._budget = min(self._budget + slot, max(slot, CHUNK_BYTES))
        for outgoing in list(self.outgoing.values()):
            peer = self._host.peers.get(outgoing.node)
            if peer is None or peer.incarnation != outgoing.incarnation or not self._leads(outgoing):
                probe("snapshot's receiver or our leadership gone")
                outgoing.outcome = TransferOutcome.FAILED
            elif peer.status & CRITICAL_BIT:
                probe("snapshot's receiver is short of space")
                outgoing.outcome = outgoing.outcome or TransferOutcome.FAILED
            else:
                outgoing.tick(connected=peer.connected)

    def want(self, group: int, receiver: int) -> None:
        """Raft has found that `receiver` needs one."""
        self.wanted.setdefault((group, receiver), 0)

    def asked(self, group: int, message: Message) -> None:
        """A replica without data asks for one (SNAPSHOT_WANTED)."""
        outgoing = self.outgoing.get((group, message.sender))
        if outgoing is None:
            self.wanted[group, message.sender] = message.index
        elif outgoing.acknowledged and not message.hint:
            probe("receiver has dropped what it had")
            outgoing.outcome = outgoing.outcome or TransferOutcome.FAILED

    def replied(self, group: int, message: Message) -> None:
        """A receiver's word (SNAPSHOT_REPLY)."""
        outgoing = self.outgoing.get((group, message.sender))
        if outgoing is not None:
            outgoing.replied(message)

    def chunk_read(self, outgoing: Outgoing, chunk: bytes | None) -> None:
        """One of `Turn.exports` was read; None: it can't be."""
        outgoing.chunk_read(chunk)
        if chunk is not None:
            self._budget -= content_size(chunk)
            self._counts["sent_bytes"] += len(chunk)

    def close(self) -> None:
        """Let go of the engine."""
        for outgoing in self.outgoing.values():
            outgoing.exporter.close()
        self.outgoing.clear()

    # --- out -----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin what is wanted, as much at a time as is allowed."""
        for (group, receiver), index in list(self.wanted.items()):
            replica = self._host.replicas.get(group)
            node = replica.home(receiver) if replica is not None else 0
            peer = self._host.peers.get(node)
            if (group, receiver) in self.outgoing:
                del self.wanted[group, receiver]
            elif replica is None or replica.raft.role is not StateRole.LEADER or peer is None or not peer.connected:
                del self.wanted[group, receiver]
                self._pauses.forget((group, receiver))
                self._finished(group, receiver, 0)
            elif peer.status & CRITICAL_BIT or self._pauses.last((group, receiver), self._host.now):
                continue  # it has no room for one
            elif len(self.outgoing) < self._limits.outgoing and replica.applied >= index:
                try:
                    exporter = Exporter(self._data, GroupId(group), Generation(replica.generation))
                except Unavailable:
                    continue  # half an entry is applied
                except Corruption as error:
                    self._damaged(group, error)
                    continue
                probe("snapshot begun")
                del self.wanted[group, receiver]
                self._number += 1
                self.outgoing[group, receiver] = Outgoing(
                    group, replica.id, receiver, node, peer.incarnation, replica.raft.term, self._number, exporter
                )
                self._host.held_logs.setdefault(group, {})[receiver] = exporter.head.index

    def send(self, turn: Turn) -> None:
        """Chunks that were read leave, those that may be read are read, and what is over ends."""
        for key, outgoing in list(self.outgoing.items()):
            if outgoing.outcome is not None:
                self._end(key, outgoing)
                continue
            for envelope in outgoing.messages():
                turn.more = True
                self._host.post(outgoing.node, envelope)
            if outgoing.wants_chunk and self._budget > 0:
                outgoing.reading = True
                turn.exports.append(outgoing)

    def _leads(self, outgoing: Outgoing) -> bool:
        replica = self._host.replicas.get(outgoing.group)
        return (
            replica is not None
            and replica.raft.role is StateRole.LEADER
            and replica.raft.term == outgoing.term
            and replica.home(outgoing.receiver) == outgoing.node
        )

    def _end(self, key: tuple[int, int], outgoing: Outgoing) -> None:
        group, receiver = key
        outgoing.exporter.close()
        del self.outgoing[key]
        held = self._host.held_logs[group]
        del held[receiver]
        if not held:
            del self._host.held_logs[group]
        done = outgoing.outcome is TransferOutcome.INSTALLED
        probe("snapshot sent" if done else "snapshot not sent")
        self._counts["sent" if done else "failed"] += 1
        peer = self._host.peers.get(outgoing.node)
        if done:
            self._pauses.forget(key)
        elif peer is not None and peer.status & CRITICAL_BIT:
            probe("snapshot didn't fit")
            self._pauses.failed(key, self._host.now)
        self._finished(group, receiver, outgoing.index if done else 0)

    def _finished(self, group: int, receiver: int, index: int) -> None:
        """Raft goes on with the receiver (also if it never asked)."""
        replica = self._host.replicas.get(group)
        if replica is not None:
            replica.raft.snapshot_finished(receiver, index)

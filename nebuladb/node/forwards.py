"""Commands that other nodes forwarded to a replica here, until they are proposed or refused (S19)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nebuladb.env import probe
from nebuladb.node.frame import FORWARD_REPLY, Envelope
from nebuladb.node.proposals import is_control
from nebuladb.raft import LEADER, Message, Raft
from nebuladb.share import Share

MAX_FORWARDED: Final = 20_000
"""Forwarded commands that may wait here to be proposed; twice as many where the new ones are control commands."""


@dataclass(slots=True)
class Forward:
    """What one message brought. It stays whole: all of its commands go into one entry, or none."""

    node: int
    replica: int
    number: int
    term: int
    commands: list[bytes]
    size: int
    """Bytes of the commands."""


class Forwards:
    """Those of one replica, control commands first. Invariant: their bytes are taken from the node's `writes`."""

    __slots__ = ("_count", "_group", "_raft", "_writes", "queue")

    def __init__(self, group: int, raft: Raft, writes: Share) -> None:
        self._group = group
        self._raft = raft
        self._writes = writes
        self.queue: list[Forward] = []
        """For others to look whether there are any."""
        self._count = 0
        """Commands in it."""

    def add(self, forward: Forward) -> bool:
        """Take another node's commands for the next entry; False: certainly not taken. Those of a replica that is
        removed, or about to be, aren't: it wouldn't be sent the entry that answers them."""
        raft = self._raft
        leads = raft.role is LEADER and raft.term == forward.term
        if leads and not raft.configuration.keeps(forward.replica):
            probe("forward of a replica that goes refused")
            return False
        control = all(is_control(self._group, wire) for wire in forward.commands)
        most = 2 * MAX_FORWARDED if control else MAX_FORWARDED
        if not leads or self._count + len(forward.commands) > most:
            return False
        if not control and not self._writes.fits(forward.size):
            probe("forward refused under pressure")
            return False
        self._writes.take(forward.size)
        if control:
            self.queue.insert(0, forward)
        else:
            self.queue.append(forward)
        self._count += len(forward.commands)
        return True

    def take(self, max_commands: int, max_bytes: int) -> list[Forward]:
        """Those for one entry: at least one, if there is any."""
        count = size = taken = 0
        for forward in self.queue:
            commands = len(forward.commands)
            if taken and (count + commands > max_commands or size + forward.size > max_bytes):
                break
            count += commands
            size += forward.size
            taken += 1
        forwards, self.queue = self.queue[:taken], self.queue[taken:]
        self._count -= count
        self._writes.give(size)
        return forwards

    def refuse(self, forward: Forward) -> tuple[int, Envelope]:
        """The reply that says: these commands certainly were not appended."""
        raft, number = self._raft, forward.number
        message = Message(FORWARD_REPLY, raft.replica, forward.replica, raft.term, reject=True, context=number)
        return forward.node, Envelope(self._group, message)

    def let_go(self) -> list[tuple[int, Envelope]]:
        """If we don't lead (any more), all go back, whatever our disk does."""
        if not self.queue or self._raft.role is LEADER:
            return []
        return [self.refuse(forward) for forward in self.drop()]

    def drop(self) -> list[Forward]:
        """Forget all; returns them."""
        forwards, self.queue, self._count = self.queue, [], 0
        self._writes.give(sum(forward.size for forward in forwards))
        return forwards

"""The boundary of `Host`: what a pump gives it and what it hands out. The most important types of the system.

In, as methods of `Host`: `tick`; of peers `receive` (a frame), `peer_up`, `peer_down`; of clients `request`, `read`; of
disks `durable`, `applied`, `flushed`; of the groups here `create_group`, `add_group`, `register_group`,
`install`, `suspend`, `remove_group`; and what somebody decided: `campaign`, `step_down`, `transfer_leadership`,
`propose_change`, `post`. Out, from `Host.poll`: an `Output`. Whoever drives it (`Node`, and the pump around that)
carries it out:

1. send `frames`: they wait for nothing; losing one is allowed, keeping one back for ever too;
2. write `batch` to the log (not synced), and call `durable` with its id once a sync that began after the write is done;
3. run each of `slices` through its group's store and give the result to `applied`;
4. hand `answers` and `reads` to those who wait;
5. give `hashes` to ``node.consistency``, and `snapshots` and `transfers` to ``node.snapshots``.

It owns no retry, and decides nothing: what can be lost, repeated or reordered between nodes is a message of Host's
(house rule 11). The daemon, the simulator and the tests all drive `Host` through this and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nebuladb.errors import NebulaError
from nebuladb.kv.answer import Answer
from nebuladb.kv.command import Work
from nebuladb.node.frame import Envelope
from nebuladb.raft import Message
from nebuladb.storage.log_batch import LogBatch

TICK_MS: Final = 50
"""Between two calls of `Host.tick`."""


@dataclass(slots=True)
class Request:
    """A write that a client of this node asked for, or the node itself."""

    request: int
    """Unique to this process: 32 random bits of it, then a 32-bit counter. The answer bears it."""
    group: int
    wire: bytes
    """The encoded command (``node.entry``)."""
    deadline: int
    """Milliseconds of the monotonic clock. Past it the answer is *failed* if it was never sent, else *unknown*."""


@dataclass(slots=True)
class Slice:
    """Committed, durable entries for one group's store to apply; at most one is out per group."""

    group: int
    generation: int
    works: Sequence[Work]


class Output:
    """What one turn asks the pump to do."""

    __slots__ = ("answers", "batch", "frames", "hashes", "more", "reads", "slices", "snapshots", "transfers")

    def __init__(self) -> None:
        self.batch: LogBatch | None = None
        self.frames: list[tuple[int, bytes]] = []
        """(node id, frame)"""
        self.slices: list[Slice] = []
        self.answers: list[tuple[int, Answer | NebulaError]] = []
        """(request id, what its client is told)"""
        self.reads: list[tuple[int, NebulaError | None]] = []
        """(request id, None): the group's state is now at least as new as when the read came; serve it this turn."""
        self.hashes: tuple[tuple[int, Message], ...] = ()
        """(group, HASH): other replicas' reports of their state (S28)."""
        self.snapshots: list[tuple[int, int]] = []
        """(group, replica): it lacks entries that the log has no more; end each with `Raft.snapshot_finished`."""
        self.transfers: list[tuple[int, Envelope]] = []
        """(node, message): of transfers of snapshots."""
        self.more = False
        """The batch was full: groups wait for the next poll, which should come at once."""

    def __bool__(self) -> bool:
        asked = self.batch or self.frames or self.slices or self.answers or self.reads
        return bool(asked or self.hashes or self.snapshots or self.transfers or self.more)

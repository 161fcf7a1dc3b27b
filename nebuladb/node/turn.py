"""What a node's turn leaves for its driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nebuladb.errors import NebulaError
from nebuladb.kv.answer import Answer
from nebuladb.node.applier import Fetch
from nebuladb.node.incoming import Incoming
from nebuladb.node.outgoing import Outgoing
from nebuladb.storage.spans import Span


@dataclass(slots=True)
class Turn:
    """What a turn leaves for its driver."""

    frames: list[tuple[int, bytes]]
    answers: list[tuple[int, Answer | NebulaError]]
    reads: list[tuple[int, NebulaError | None]]
    more: bool
    """Take another turn before waiting for input."""
    written: int = 0
    """Not 0: log batches up to this id are written; sync the log, then call `Host.durable`."""
    written_bytes: int = 0
    applied: int = 0
    """Log entries that were handed to stores."""
    stalled: bool = False
    """An engine refused a write for now: take another turn soon."""
    fetches: Sequence[Fetch] = ()
    """Rows to be read in a thread; then call `Node.fetched`, and take a turn. Their order doesn't matter."""
    exports: list[Outgoing] = field(default_factory=list)
    """Read the next chunk of each `exporter` in a thread; then call `SnapshotSender.chunk_read`, and take a turn."""


@dataclass(slots=True)
class Flush:
    """What a flush of the data store makes durable if it begins now."""

    applied: dict[int, int]
    """Group → applied index."""
    installs: list[Incoming]
    """Snapshots all of whose rows are written."""
    deleted: list[Span]
    """Where rows were deleted whose room is wanted (``node.vacuum``)."""

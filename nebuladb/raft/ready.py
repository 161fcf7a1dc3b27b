"""What the core hands out, and the durable state it is built from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from nebuladb.raft.entry import Entry
from nebuladb.raft.message import Message


class HardState(NamedTuple):
    """What a replica may never forget (paper, figure 2), and the commit index, which merely saves work."""

    term: int = 0
    vote: int = 0
    commit: int = 0


@dataclass(slots=True)
class DurableMark:
    """What a batch makes durable: accepted in `term` with vote `vote`, log up to (`index`, `log_term`) (S2)."""

    term: int
    vote: int
    index: int
    log_term: int


class ReadState(NamedTuple):
    """A read that this replica asked for: serve it once applied >= `index`; `index` < 0: it failed (S7, S8)."""

    nonce: int
    context: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls on it


@dataclass(slots=True)
class Ready:
    """See the package docstring for the caller's duties."""

    hard_state: HardState | None
    """Set whenever this Ready has anything to make durable."""
    entries: list[Entry]
    """To be written; whatever the log holds from `entries[0].index` on is overwritten, its tail included."""
    mark: DurableMark | None
    """Set together with `hard_state`."""
    messages: list[Message]
    held: list[Message]
    reads: list[ReadState]
    snapshots: list[int]
    """Replicas that the log doesn't reach back to. Send each a snapshot, then call `snapshot_finished`, always."""


class LogReader(Protocol):
    """The durable log of one group, as the core reads it. The entry at `start` is gone, but its term is known."""

    def start(self) -> tuple[int, int]:
        """(index, term) of the last entry that was cut, or of the initial state."""
        ...

    def last(self) -> tuple[int, int]:
        """(index, term) of the last entry that was written, or `start()`."""
        ...

    def term(self, index: int) -> int:
        """Term of the entry at `index`, start <= index <= last. Raises `Corruption` where it should be and isn't."""
        ...

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Entries low..high-1, at least one, stopping before their records exceed `max_bytes` together."""
        ...

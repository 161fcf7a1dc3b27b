"""One snapshot on its way to another replica: the sender's side, without I/O."""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Final

from nebuladb.env import probe
from nebuladb.kv.chunk import ChunkKind, content_size, kind_of
from nebuladb.kv.export import Exporter
from nebuladb.node.frame import Envelope, HostMessageType
from nebuladb.raft import Message

WINDOW_CHUNKS: Final = 4
"""Chunks on their way, and so in memory: what may lie before a heartbeat on a slow link, 512 KiB at most, and what a
round trip of 10 ms still lets flow at 50 MB/s."""
RESEND_TICKS: Final = 10
"""Without an answer for so long, what isn't acknowledged is sent again."""
IDLE_TICKS: Final = 200
"""Without progress for so long (10 s), the transfer is given up; Raft asks for another one if the replica lives."""
INSTALL_TICKS: Final = 1_200
"""The same, once all is there: the receiver flushes its data store (60 s). One that isn't even reached is given up
after `IDLE_TICKS` all the same: it died, and the log would be kept for nothing."""


class TransferOutcome(Enum):
    """How a transfer ended."""

    INSTALLED = "installed"
    FAILED = "failed"


class Outgoing:
    """A window of chunks, sent again from the first that isn't acknowledged (go back n).

    Invariant: `_window` holds the chunks from `acknowledged` on that were read.
    """

    def __init__(self, group: int, sender: int, receiver: int, node: int, incarnation: int, term: int, number: int,
                 exporter: Exporter) -> None:  # fmt: skip
        """To replica `receiver` on `node`, which is in its life `incarnation`. (`term`, `number`) name the transfer:
        the leader of a term never uses a number twice."""
        self.group = group
        self.receiver = receiver
        self.node = node
        self.incarnation = incarnation
        self.term = term
        self.number = number
        self.exporter = exporter
        self.reading = False
        """Whether a thread reads the next chunk."""
        self.outcome: TransferOutcome | None = None
        self.index = exporter.head.index
        """Of the snapshot; when it is over, of what the receiver has."""
        self.acknowledged = 0
        """Chunks that the receiver has."""
        self._sender = sender
        self._log_term = exporter.head.term
        self._window: deque[bytes] = deque()
        self._sent = 0
        """Chunks that were sent, counted from the first one."""
        self._whole = False
        """The last chunk was read."""
        self._idle = self._waited = self._away = 0

    @property
    def wants_chunk(self) -> bool:
        """Whether the next chunk should be read now."""
        return not (self.reading or self._whole or self.outcome) and len(self._window) < WINDOW_CHUNKS

    def chunk_read(self, chunk: bytes | None) -> None:
        """A chunk was read; None: it can't be, and the transfer has failed."""
        self.reading = False
        if self.outcome is not None:
            return
        if chunk is None:
            self.outcome = TransferOutcome.FAILED
            return
        self._window.append(chunk)
        probe("chunk of a snapshot read")
        self._whole = kind_of(chunk) == ChunkKind.END

    def messages(self) -> list[Envelope]:
        """What is to be sent now."""
        found = []
        while self.outcome is None and self._sent < self.acknowledged + len(self._window):
            chunk = self._window[self._sent - self.acknowledged]
            message = Message(
                HostMessageType.SNAPSHOT_CHUNK, self._sender, self.receiver, self.term, log_term=self._log_term,
                index=self.exporter.head.index, hint=self._sent, context=self.number,
            )  # fmt: skip
            found.append(Envelope(self.group, message, [chunk]))
            self._sent += 1
        return found

    def replied(self, message: Message) -> int:
        """The receiver's word; returns the bytes of content that it has taken. Late and repeated ones do no harm."""
        if message.context != self.number or self.outcome is not None:
            return 0
        if message.index:
            self.outcome, self.index = TransferOutcome.INSTALLED, message.index
            return 0
        if message.reject:
            probe("snapshot refused")
            self.outcome = TransferOutcome.FAILED
            return 0
        self._waited = 0
        taken = 0
        while self.acknowledged < message.hint and self._window:
            if self._whole and len(self._window) == 1:
                break  # the last chunk stays: it asks whether the snapshot is in
            taken += content_size(self._window.popleft())
            self.acknowledged += 1
            self._idle = 0
        self._sent = max(self._sent, self.acknowledged)
        return taken

    def tick(self, *, connected: bool) -> None:
        """A tick passed. While the link is down nothing is sent again, and time goes on."""
        self._idle += 1
        self._waited += 1
        self._away = 0 if connected else self._away + 1
        patience = INSTALL_TICKS if self._whole and len(self._window) == 1 else IDLE_TICKS
        if self._idle >= patience or self._away >= IDLE_TICKS:
            probe("snapshot without progress given up")
            self.outcome = self.outcome or TransferOutcome.FAILED
        elif connected and self._waited >= RESEND_TICKS:
            self._waited = 0
            if self._window:
                probe("chunks sent again")
            self._sent = self.acknowledged

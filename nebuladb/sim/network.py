"""Frames between nodes: lost, late, held up, doubled, out of order, damaged, gone astray, cut off by partitions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from struct import Struct
from zlib import crc32

from nebuladb.sim.core import Core
from nebuladb.sim.faults import LATE_MS

HEAD_BYTES = 64
COUNT = Struct(">I")
COUNT_AT = 56
"""Where a frame says how many messages it has (``node.frame``)."""


class Network:
    """Nodes are named by their place, 0 to n - 1. `deliver(receiver, sender, frame)` is called when a frame arrives."""

    def __init__(self, core: Core, deliver: Callable[[int, int, bytes], None], nodes: int) -> None:
        self._core = core
        self._deliver = deliver
        self._nodes = nodes
        self._names = [f"n{place + 1}" for place in range(nodes)]
        self._rng = core.stream("network")
        self._draw = self._rng.random
        self._cut: set[tuple[int, int]] = set()
        self._slow: set[tuple[int, int]] = set()
        self._held: list[tuple[int, int, bytes, int]] = []
        """Frames on their way that `_slow` keeps there, as `_arrive` takes them."""

    def send(self, sender: int, receiver: int, frame: bytes) -> None:
        """A frame leaves."""
        core, faults, draw = self._core, self._core.faults, self._draw
        (count,) = COUNT.unpack_from(frame, COUNT_AT)
        core.report.messages += count
        if (self._cut and (sender, receiver) in self._cut) or (faults.loss and draw() < faults.loss):
            core.report.dropped += count
            return
        self._carry(sender, receiver, frame, count)
        if faults.duplication and draw() < faults.duplication:
            core.report.duplicated += count
            self._carry(sender, receiver, frame, count)

    def _carry(self, sender: int, receiver: int, frame: bytes, count: int) -> None:
        draw, faults = self._draw, self._core.faults
        if faults.damage and draw() < faults.damage and len(frame) > HEAD_BYTES:
            self._core.hit("damaged frame")
            frame = self._damaged(frame)
        if faults.astray and draw() < faults.astray:
            self._core.hit("frame gone astray")
            receiver = self._rng.randrange(self._nodes)
        longest = LATE_MS if faults.late and draw() < faults.late else faults.delay
        self._core.scheduler.after(int(draw() * (longest + 1)), self._arrive, sender, receiver, frame, count)

    def _damaged(self, frame: bytes) -> bytes:
        """With one bit flipped, of its messages: those are what a checksum must cover."""
        damaged = bytearray(frame)
        damaged[self._rng.randrange(HEAD_BYTES, len(frame))] ^= 1 << self._rng.randrange(8)
        return bytes(damaged)

    def _arrive(self, sender: int, receiver: int, frame: bytes, count: int) -> None:
        if self._slow and (sender, receiver) in self._slow:
            self._held.append((sender, receiver, frame, count))
            return
        core = self._core
        core.report.delivered += count
        core.report.frames += 1
        core.note("frame", self._names[receiver], crc32(frame))
        self._deliver(receiver, sender, frame)

    def reaches(self, sender: int, receiver: int) -> bool:
        """Whether frames from one to the other are let through."""
        return (sender, receiver) not in self._cut

    def talks(self, one: int, other: int) -> bool:
        """Whether frames pass both ways."""
        return not ((one, other) in self._cut or (other, one) in self._cut)

    def cut(self, pairs: Iterable[tuple[int, int]]) -> None:
        """From now on frames of these (sender, receiver) are dropped; what is on its way still arrives."""
        self._cut.update(pairs)

    def hold(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Frames of these (sender, receiver) don't arrive before `heal`, not even those that are on their way."""
        self._slow.update(pairs)

    def heal(self) -> None:
        """Let everything through again; what was held arrives now, in any order."""
        self._cut.clear()
        self._slow.clear()
        held, self._held = self._held, []
        for frame in held:
            self._core.scheduler.after(0, self._arrive, *frame)

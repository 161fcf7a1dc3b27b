"""A log batch on its way to the disk."""

from __future__ import annotations

from dataclasses import dataclass

from nebuladb.node.frame import Envelope
from nebuladb.raft import DurableMark


@dataclass(slots=True)
class InFlight:
    """A batch on its way to the disk: what to tell Raft, and what may be sent, once it is there (S2, S3)."""

    batch: int
    tick: int
    size: int
    marks: list[tuple[int, DurableMark]]
    held: list[tuple[int, Envelope]]

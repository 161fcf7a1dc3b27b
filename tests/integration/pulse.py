"""When the heartbeats of a shard's leader reach a node, told from outside: a file of times, which the node's process
writes because its environment puts a ``sitecustomize`` of ours first; the product knows nothing of it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

HOME: Final = "PULSE_HOME"
ROOT: Final = Path(__file__).parents[2]
CUSTOM: Final = "import tests.integration.pulse\ntests.integration.pulse.listen()\n"


class Pulse:
    """The harness's side, in a directory of its own."""

    def __init__(self, home: Path) -> None:
        self._home = home
        home.mkdir(parents=True)
        (home / "sitecustomize.py").write_text(CUSTOM)
        (home / "beats").write_bytes(b"")

    @property
    def environ(self) -> dict[str, str]:
        """For the process."""
        return {"PYTHONPATH": f"{self._home}:{ROOT}", HOME: str(self._home)}

    def beats(self, replica: int) -> list[float]:
        """Times of the heartbeats that came to a replica, seconds of the monotonic clock, ascending."""
        rows = (line.split() for line in (self._home / "beats").read_text().splitlines())
        return [float(when) for receiver, when in rows if int(receiver) == replica]

    def longest(self, replica: int, begin: float, end: float) -> float:
        """Seconds of the longest gap between two heartbeats, from `begin` to `end`; what is open at the end counts."""
        beats = [when for when in self.beats(replica) if begin <= when <= end]
        return max(after - before for before, after in zip([begin, *beats], [*beats, end], strict=True))


def listen() -> None:
    """In a process that was started with a pulse's environment."""
    from nebuladb.raft import Message, Raft
    from nebuladb.raft.message import MessageType

    file = os.open(Path(os.environ[HOME]) / "beats", os.O_WRONLY | os.O_APPEND)
    step = Raft.step

    def heard(raft: Raft, message: Message) -> None:
        if message.type == MessageType.HEARTBEAT:
            os.write(file, f"{message.receiver} {time.monotonic():.4f}\n".encode())
        step(raft, message)

    Raft.step = heard  # type: ignore[method-assign, assignment]

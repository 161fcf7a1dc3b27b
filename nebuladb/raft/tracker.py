"""Every replica's progress under one configuration, as a leader keeps it."""

from __future__ import annotations

from nebuladb.errors import invariant
from nebuladb.raft.confchange import check, replicas
from nebuladb.raft.configuration import Configuration
from nebuladb.raft.progress import Progress
from nebuladb.raft.quorum import WON, vote_result


class ProgressTracker:
    """Invariant: `progress` holds exactly the replicas of `configuration`."""

    __slots__ = ("_max_bytes", "_max_count", "configuration", "peers", "progress", "replica")

    def __init__(self, replica: int, max_count: int, max_bytes: int) -> None:
        self.replica = replica
        """Our own id."""
        self._max_count = max_count
        self._max_bytes = max_bytes
        self.configuration = Configuration()
        self.progress: dict[int, Progress] = {}
        self.peers: tuple[tuple[int, Progress], ...] = ()
        """All but ourselves, ascending."""

    def configure(self, configuration: Configuration, following: int) -> None:
        """Take `configuration`. Replicas that stay keep their progress; new ones are first probed at `following`."""
        self.configuration = check(configuration)
        known = self.progress
        self.progress = {
            replica: known.get(replica) or Progress(max(following, 1), self._max_count, self._max_bytes)
            for replica in replicas(configuration)
        }
        self.peers = tuple(item for item in self.progress.items() if item[0] != self.replica)

    def reset(self, following: int) -> None:
        """A new leader knows nothing of anybody."""
        self.progress = {}
        self.configure(self.configuration, following)

    def votes(self, replica: int) -> bool:
        """Whether `replica` is a voter, of either half."""
        return replica in self.configuration.voters or replica in self.configuration.outgoing

    def lowest_match(self) -> int:
        """The index that every replica, learners included, is known to hold."""
        return min([progress.match for progress in self.progress.values()], default=0)

    def quorum_active(self) -> bool:
        """Whether a quorum was heard from since the last call, which starts the next period (thesis §6.2)."""
        votes = {replica: progress.active or replica == self.replica for replica, progress in self.progress.items()}
        for progress in self.progress.values():
            progress.was_active = progress.active
            progress.active = False
        return vote_result(self.configuration, votes) is WON

    def check(self, last: int) -> None:
        """Raise `InvariantViolation` unless the invariants hold for a log that ends at `last`."""
        invariant(tuple(self.progress) == replicas(self.configuration), "the tracker follows another configuration")
        for replica, progress in self.progress.items():
            invariant(progress.match < progress.next, f"replica {replica} has {progress.match}, next {progress.next}")
            invariant(progress.match <= last, f"replica {replica} holds {progress.match}, our log ends at {last}")

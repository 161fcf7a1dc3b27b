"""Changes of a group's members, one at a time (thesis, chapter 4; S4, S13).

A change is an entry whose payload is the configuration that shall be in force. Every replica takes it when it applies
the entry, as the batch of the applied index does (S4): what is in force is always something that was committed, and a
truncated entry changed nothing. A leader proposes a change only when the one before is applied, and the first of its
term only after its own no-op is. Without that, two leaders of different terms may each change one voter and commit by
majorities that share nobody (Ongaro to raft-dev, 2015, "bug in single-server membership changes").
"""

from __future__ import annotations

from collections.abc import Iterable

from nebuladb.env import probe
from nebuladb.errors import ChangeRefused, InvalidArgument
from nebuladb.raft.confchange import Change, Changer
from nebuladb.raft.configuration import Configuration
from nebuladb.raft.entry import CONFIGURATION
from nebuladb.raft.log import RaftLog
from nebuladb.raft.progress import Progress
from nebuladb.raft.quorum import WON, vote_result
from nebuladb.raft.replication import Replication
from nebuladb.raft.state import State


class Membership:
    """What a leader lets happen to its group's configuration."""

    __slots__ = ("_in_force", "_log", "_pending", "_replication", "_state")

    def __init__(self, state: State, log: RaftLog, replication: Replication) -> None:
        self._state = state
        self._log = log
        self._replication = replication
        self._pending = 0  # index of the last change that was proposed in our term
        self._in_force = 0  # where our log ended when the configuration came into force under us

    def start(self) -> None:
        """We lead. What we proposed in an earlier term lies before our no-op, or was overwritten."""
        self._pending = self._in_force = 0

    def reconfigured(self) -> None:
        """Another configuration is in force."""
        self._in_force = self._log.last

    @property
    def heard(self) -> bool:
        """Of a leader: whether a majority of the configuration in force knows that it was committed, because it has an
        entry that was sent with that news. A replica that the change removed may be destroyed then, and no earlier:
        those who know only the configuration before still ask for its vote, and if we died, would do so for ever
        (S13)."""
        return self._log.commit > self._in_force

    def propose(self, changes: Iterable[Change]) -> tuple[int, int]:
        """Append the entry that makes `changes`: at once if they touch one voter, else by way of a joint configuration
        that is left by itself. Returns (index, term). Raises `ChangeRefused` (not now, or not safely) or
        `InvalidArgument`; then nothing was appended.
        """
        self._ready_for_one()
        current = self._replication.tracker.configuration
        changer = Changer(current)
        changes = tuple(changes)
        try:
            target = changer.simple(changes)
        except InvalidArgument:
            target = changer.enter_joint(changes, auto_leave=True)
        if target == current:
            raise ChangeRefused("the change leaves the configuration as it is")
        self._check_promoted(current, target)
        self._check_alive(target)
        return self._append(target)

    def leave(self) -> None:
        """Leave a joint configuration if that is due: it was entered with `auto_leave`, and nothing is under way."""
        configuration = self._replication.tracker.configuration
        if configuration.auto_leave and self._free():
            probe("joint configuration left")
            self._append(Changer(configuration).leave_joint())

    def _append(self, target: Configuration) -> tuple[int, int]:
        index, term = self._replication.append(CONFIGURATION, target.encode())
        self._pending = index
        return index, term

    def _free(self) -> bool:
        return self._log.applied >= max(self._replication.first_own, self._pending)

    def _ready_for_one(self) -> None:
        if self._replication.tracker.configuration.outgoing:
            raise ChangeRefused("an earlier change is under way: its joint configuration must be left first")
        if not self._free():
            raise ChangeRefused("an earlier change, or the start of this leader's term, is not applied yet")

    def _check_promoted(self, current: Configuration, target: Configuration) -> None:
        """A new voter must have the log, or the group would commit nothing until it has (S13, thesis §4.2.1)."""
        tracker = self._replication.tracker
        for replica in target.voters:
            if replica in current.voters:
                continue
            if replica not in current.learners:
                raise ChangeRefused(f"replica {replica} is no learner yet: only one that has caught up becomes a voter")
            if not tracker.progress[replica].caught_up:
                raise ChangeRefused(f"learner {replica} has not caught up: it lacks {self.lag(replica)} entries")
            if not tracker.progress[replica].lives:
                raise ChangeRefused(f"learner {replica} is not heard from: its vote would be one that is lost")

    def _check_alive(self, target: Configuration) -> None:
        """The majorities that will decide must be alive, or the change would end the group's service (S13). A replica
        that the log doesn't reach back to counts as dead: it acknowledges nothing before its snapshot is in."""
        progress, start = self._replication.tracker.progress, self._log.start
        alive = {
            replica: replica == self._state.replica or (one.lives and one.match >= start)
            for replica, one in progress.items()
        }
        if vote_result(target, alive) is not WON:
            dead = [replica for replica in sorted({*target.voters, *target.outgoing}) if not alive[replica]]
            raise ChangeRefused(
                f"the change would leave no live majority: replicas {dead} are not heard from, or lack entries that "
                "the log has no more"
            )

    def peers(self) -> tuple[tuple[int, Progress], ...]:
        """What a leader knows of every other replica, ascending, to be looked at only."""
        return self._replication.tracker.peers

    def lag(self, replica: int) -> int:
        """How many entries `replica` lacks as far as is known; one that is no member lacks all."""
        progress = self._replication.tracker.progress.get(replica)
        return self._log.last - (progress.match if progress is not None else 0)

    @property
    def settled(self) -> bool:
        """Of a leader: no change is under way, neither ours nor one that a predecessor left."""
        return self._free() and not self._replication.tracker.configuration.outgoing

    def caught_up(self, replica: int) -> bool:
        """Whether a learner may become a voter (S13): it has the log, and is there. Of a group in which nothing is
        written, who is away has the log for good."""
        progress = self._replication.tracker.progress.get(replica)
        return progress is not None and progress.caught_up and progress.lives

    def lives(self, replica: int) -> bool:
        """Whether a leader has heard from `replica` lately."""
        progress = self._replication.tracker.progress.get(replica)
        return replica == self._state.replica or (progress is not None and progress.lives)

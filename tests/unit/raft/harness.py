"""Raft replicas in one process: a disk that knows what is durable, and a network that a test, or a seed, controls."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from nebuladb.raft import (
    Config,
    Configuration,
    DurableMark,
    Entry,
    EntryKind,
    HardState,
    Message,
    MessageType,
    Raft,
    ReadState,
    Ready,
    StateRole,
)
from nebuladb.raft.confchange import Change
from nebuladb.raft.entry import encode_entry

BIG = 1 << 30


def entry(index: int, term: int, payload: bytes = b"") -> Entry:
    return encode_entry(index, term, EntryKind.NORMAL, payload)


def log_of(*terms: int) -> list[Entry]:
    """Entries 1, 2, ... of these terms, each with a payload that names it."""
    return [entry(index, term, b"%d@%d" % (index, term)) for index, term in enumerate(terms, 1)]


class Disk:
    """One replica's log and hard state, written by batches; what `crash` leaves is what was flushed."""

    def __init__(self, hard_state: HardState | None = None, entries: Iterable[Entry] = ()) -> None:
        self.hard_state = hard_state or HardState()
        self.log = list(entries)
        self.start_at = (0, 0)
        self.flushed = (self.hard_state, list(self.log))

    def write(self, hard_state: HardState, entries: Sequence[Entry]) -> None:
        self.hard_state = hard_state
        if entries:
            assert entries[0].index <= self.last()[0] + 1, "a gap in the log"
            assert entries[0].index > self.start_at[0]
            del self.log[entries[0].index - self.start_at[0] - 1 :]
            self.log.extend(entries)

    def flush(self, upto: tuple[HardState, list[Entry]]) -> None:
        self.flushed = upto

    def picture(self) -> tuple[HardState, list[Entry]]:
        return self.hard_state, list(self.log)

    def crash(self) -> None:
        self.hard_state, log = self.flushed
        self.log = list(log)

    def cut(self, index: int) -> None:
        term = self.term(index)
        del self.log[: index - self.start_at[0]]
        self.start_at = (index, term)
        self.flushed = self.picture()

    def start(self) -> tuple[int, int]:
        return self.start_at

    def last(self) -> tuple[int, int]:
        return (self.log[-1].index, self.log[-1].term) if self.log else self.start_at

    def term(self, index: int) -> int:
        if index == self.start_at[0]:
            return self.start_at[1]
        return self.log[index - self.start_at[0] - 1].term

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        assert self.start_at[0] < low < high <= self.last()[0] + 1
        taken: list[Entry] = []
        for one in self.log[low - self.start_at[0] - 1 : high - self.start_at[0] - 1]:
            max_bytes -= len(one.record)
            if max_bytes < 0 and taken:
                break
            taken.append(one)
        return taken


class Replica:
    """A `Raft` and its disk. `auto`: what it asks for is durable, and leaves, at once."""

    def __init__(
        self,
        replica: int,
        voters: Sequence[int] = (1, 2, 3),
        *,
        disk: Disk | None = None,
        term: int = 0,
        vote: int = 0,
        commit: int = 0,
        log: Iterable[Entry] = (),
        auto: bool = True,
        config: Config | None = None,
        configuration: Configuration | None = None,
        seed: int = 0,
    ) -> None:
        self.id = replica
        self.disk = disk or Disk(HardState(term, vote, commit), log)
        self.config = config or Config(replica)
        self.configuration = configuration or Configuration(tuple(voters))
        self.auto = auto
        self.rng = random.Random(seed * 1000 + replica)
        self.sent: list[Message] = []
        """What left so far; a test reads and clears it."""
        self.reads: list[ReadState] = []
        self.snapshots: list[int] = []
        self.applied: list[Entry] = []
        self.unflushed: deque[tuple[tuple[HardState, list[Entry]], DurableMark | None, list[Message]]] = deque()
        self.raft = self._build(0)

    def _build(self, applied: int) -> Raft:
        config, disk = replace(self.config, replica=self.id), self.disk
        return Raft(config, disk, disk.hard_state, self.configuration, applied, self.rng)

    def crash(self) -> None:
        """Lose what wasn't flushed, and start again; what was applied is kept, like the data store's flushed part."""
        self.disk.crash()
        self.unflushed.clear()
        self.sent.clear()
        self.raft = self._build(len(self.applied))

    def role(self) -> StateRole:
        return self.raft.role

    def step(self, message: Message) -> None:
        self.raft.step(message)
        self.turn()

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            self.raft.tick()
            self.turn()

    def turn(self) -> list[Ready]:
        """Take every Ready, and carry it out: wholly if `auto`, else without the flush."""
        taken = []
        while (ready := self.raft.ready()) is not None:
            taken.append(ready)
            assert self.raft.ready() is None, "what the caller need not ask for twice (node.host)"
            if ready.hard_state is not None:
                self.disk.write(ready.hard_state, ready.entries)
            else:
                assert not ready.entries
            assert (ready.hard_state is None) == (ready.mark is None)
            self.sent.extend(ready.messages)
            self.reads.extend(ready.reads)
            self.snapshots.extend(ready.snapshots)
            self.unflushed.append((self.disk.picture(), ready.mark, ready.held))
            while self.auto and self.unflushed:
                self.flush()
        self.apply()
        self.raft.check()
        return taken

    def flush(self) -> None:
        """The oldest batch becomes durable, and what it held leaves."""
        picture, mark, held = self.unflushed.popleft()
        self.disk.flush(picture)
        self.sent.extend(held)
        if mark is not None:
            self.raft.durable(mark)
            self.apply()

    def flush_all(self) -> None:
        while self.unflushed:
            self.flush()
            self.turn()

    def apply(self) -> None:
        while entries := self.raft.committed_entries(len(self.applied), BIG):
            self.applied.extend(entries)
            last = entries[-1]
            if last.kind == EntryKind.CONFIGURATION:
                self.configuration = Configuration.decode(last.payload)
                self.raft.applied_to(last.index, self.configuration)
            else:
                self.raft.applied_to(last.index)

    def take(self, *types: MessageType) -> list[Message]:
        """What left since the last call; only these types, if any are named."""
        sent, self.sent = self.sent, []
        return [message for message in sent if not types or message.type in types]

    def campaign(self) -> None:
        self.raft.campaign()
        self.turn()

    def propose(self, payload: bytes = b"x") -> int:
        index, _ = self.raft.propose(payload)
        self.turn()
        return index

    def change(self, *changes: Change) -> int:
        index, _ = self.raft.propose_change(changes)
        self.turn()
        return index

    def propose_all(self, payloads: Iterable[bytes]) -> None:
        for payload in payloads:
            self.raft.propose(payload)
        self.turn()

    def lead(self) -> None:
        """Win the next election by hand-made votes; whatever was sent is dropped."""
        self.campaign()
        raft = self.raft
        for voter in raft.configuration.voters:
            if raft.role is StateRole.PRE_CANDIDATE and voter != self.id:
                self.step(Message(MessageType.PRE_VOTE_REPLY, voter, self.id, raft.term + 1))
        for voter in raft.configuration.voters:
            if raft.role is StateRole.CANDIDATE and voter != self.id:
                self.step(Message(MessageType.VOTE_REPLY, voter, self.id, raft.term))
        assert raft.role is StateRole.LEADER
        self.sent.clear()

    def payloads(self) -> list[bytes]:
        """What was applied, no-ops and configurations left out."""
        return [one.payload for one in self.applied if one.payload and one.kind == EntryKind.NORMAL]


class Network:
    """Replicas that hear each other at once and in order, but for what `drop` takes away."""

    def __init__(self, *replicas: Replica) -> None:
        self.replicas = {replica.id: replica for replica in replicas}
        self.drop: Callable[[Message], bool] = lambda _: False

    @classmethod
    def of(cls, count: int, **options: object) -> Network:
        voters = tuple(range(1, count + 1))
        return cls(*(Replica(replica, voters, **options) for replica in voters))  # type: ignore[arg-type]

    def __getitem__(self, replica: int) -> Replica:
        return self.replicas[replica]

    def settle(self) -> None:
        """Deliver until nobody says anything."""
        for replica in self.replicas.values():
            replica.turn()
        while messages := [message for replica in self.replicas.values() for message in replica.take()]:
            for message in messages:
                if not self.drop(message) and message.receiver in self.replicas:
                    self.replicas[message.receiver].step(message)

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            for replica in self.replicas.values():
                replica.tick()
            self.settle()

    def elect(self, replica: int) -> Replica:
        leader = self[replica]
        leader.campaign()
        self.settle()
        assert leader.raft.role is StateRole.LEADER
        return leader

    def cut_off(self, *cut: int) -> None:
        """No message passes between `cut` and the rest."""
        self.drop = lambda message: (message.sender in cut) != (message.receiver in cut)

    def heal(self) -> None:
        self.drop = lambda _: False

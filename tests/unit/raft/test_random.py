"""Figure 3 of the paper under random schedules: loss, duplication, reordering, crashes, slow disks, partitions."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import replace

import pytest

from nebuladb.errors import NotLeader, TooManyRequests
from nebuladb.raft import Config, Entry, Message, StateRole
from tests.unit.raft.harness import Network

STEPS = 3000
SEEDS = 50
SMALL = Config(
    1,
    election_ticks=6,
    max_append_bytes=120,
    max_inflight_messages=3,
    max_inflight_bytes=300,
    max_uncommitted_bytes=900,
)


class Oracle:
    """Figure 3 of the paper, over the whole run, and linearizable reads."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.leaders: dict[int, int] = {}
        self.chosen: list[Entry] = []
        self.acknowledged: dict[tuple[int, int], int] = {}
        """Read → what was committed anywhere when it was asked."""

    def check(self) -> None:
        for replica in self.network.replicas.values():
            raft = replica.raft
            assert raft.term >= replica.disk.flushed[0].term, "a term went back"
            if raft.role is StateRole.LEADER:
                assert self.leaders.setdefault(raft.term, replica.id) == replica.id, "election safety"
                self._completeness(replica.disk.log)
            applied = replica.applied
            assert applied[: len(self.chosen)] == self.chosen[: len(applied)], "state machine safety"
            if len(applied) > len(self.chosen):
                self.chosen = list(applied)
            for read in replica.reads:
                assert read.index < 0 or read.index >= self.acknowledged[read.nonce, read.context], "stale read"
            replica.reads.clear()

    def _completeness(self, log: list[Entry]) -> None:
        # Entries of its own that the leader hasn't written yet are above everything that is chosen.
        missing = self.chosen[: len(log)] != log[: len(self.chosen)] or len(log) < len(self.chosen)
        assert not missing or log[-1].term < self.chosen[-1].term, "leader completeness"

    def logs_match(self) -> None:
        logs = [replica.disk.log for replica in self.network.replicas.values()]
        for one in logs:
            for other in logs:
                same = [i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a.term == b.term]
                if same:
                    assert one[: same[-1] + 1] == other[: same[-1] + 1], "log matching"


class World:
    def __init__(self, seed: int, count: int) -> None:
        self.rng = random.Random(seed)
        self.network = Network.of(count, auto=False, config=SMALL, seed=seed)
        self.oracle = Oracle(self.network)
        self.flying: list[Message] = []
        self.asked = 0
        self.loss = self.rng.choice([0.0, 0.02, 0.1])
        ticks, crashes = self.rng.choice([5, 10, 20]), self.rng.choice([0.0, 0.3, 1.0])
        self.weights = (60, 25, 15, ticks, crashes, 0.3, 0.5)
        self.cut: set[int] = set()

    def run(self, steps: int) -> None:
        for number in range(steps):
            self._act()
            for replica in self.network.replicas.values():
                replica.turn()
                self.flying.extend(replica.take())
            self.oracle.check()
            if number % 50 == 0:
                self.oracle.logs_match()

    def _act(self) -> None:
        rng = self.rng
        replica = self.network[rng.randrange(1, len(self.network.replicas) + 1)]
        what = rng.choices(("deliver", "flush", "request", "tick", "crash", "transfer", "cut"), self.weights)[0]
        if what == "deliver" and self.flying:
            self._deliver()
        elif what == "flush" and replica.unflushed:
            replica.flush()
        elif what == "request":
            self._request(replica.id)
        elif what == "tick":
            replica.raft.tick()
        elif what == "crash":
            replica.crash()
        elif what == "transfer" and replica.role() is StateRole.LEADER:
            replica.raft.transfer_leadership(replica.id % len(self.network.replicas) + 1)
        elif what == "cut":
            self.cut = set() if self.cut else {replica.id, rng.randrange(1, len(self.network.replicas) + 1)}

    def _deliver(self) -> None:
        rng = self.rng
        position = rng.randrange(min(len(self.flying), 8)) if rng.random() < 0.8 else rng.randrange(len(self.flying))
        message = self.flying[position]
        if rng.random() > 0.1:  # else it stays, to be delivered again
            del self.flying[position]
        divided = (message.sender in self.cut) != (message.receiver in self.cut)
        if not divided and rng.random() > self.loss:
            copy = replace(message, entries=list(message.entries))
            self.network[message.receiver].raft.step(copy)

    def _request(self, to: int) -> None:
        replica = self.network[to]
        if self.rng.random() < 0.4:
            self.asked += 1
            best = max(one.raft.commit for one in self.network.replicas.values())
            self.oracle.acknowledged[to, self.asked] = best
            replica.raft.read_index(to, self.asked)
            return
        with suppress(NotLeader, TooManyRequests):
            replica.raft.propose(b"p%d" % self.rng.randrange(10**9))

    def recover(self) -> None:
        """With a good network and disks, everybody agrees before long (no livelock, nothing lost for ever)."""
        self.flying.clear()
        self.cut.clear()
        for replica in self.network.replicas.values():
            replica.auto = True
            replica.flush_all()
        for _ in range(100):
            self.network.tick()
            self.oracle.check()
        self.oracle.logs_match()
        leader = next(one for one in self.network.replicas.values() if one.role() is StateRole.LEADER)
        leader.propose(b"last")
        self.network.tick(3)
        self.oracle.check()
        for replica in self.network.replicas.values():
            assert replica.payloads()[-1] == b"last"


@pytest.mark.parametrize("seed", range(SEEDS))
def test_figure_3_holds_under_any_schedule(seed: int) -> None:
    world = World(seed, 3 if seed % 3 else 5)
    world.run(STEPS)
    world.recover()

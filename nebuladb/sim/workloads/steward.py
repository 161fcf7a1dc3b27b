"""An operator who adds, removes and replaces nodes, dead and alive, through any node, while all else goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nebuladb.errors import ChangeRefused, NebulaError
from nebuladb.ids import META_GROUP
from nebuladb.kv.answer import Answer
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.store import Store
from nebuladb.node.members import add_step, claim_step, find, move_step, promote_step, remove_step, replace_step
from nebuladb.node.meta import Meta
from nebuladb.node.node import Node
from nebuladb.node.record import NodeRecord, NodeState
from nebuladb.sim.actor import Actor
from nebuladb.sim.board import Board
from nebuladb.sim.core import Core
from nebuladb.sim.machine import Machine
from nebuladb.sim.place import Place
from nebuladb.sim.workloads.lagging import in_sync_by_all
from nebuladb.sim.workloads.refusals import ask_wrongly

MAX_MEMBERS: Final = 6
"""One more than vote: it has learners."""
IDLE_MS: Final = 300
ASKS_MS: Final = 600
"""After which a node that was removed and hasn't noticed asks about itself."""
DEAD: Final = 0.5
"""Share of the nodes to be replaced that are dead, for good."""
WRONG: Final = "wrong:2"
"""A peer address that a node is made known under by mistake."""
PATIENCE: Final = 0.3
"""Share of the looks at a learner after which it shall vote."""


@dataclass(slots=True)
class Wish:
    """What is to become true: a new node called `name` at `place`, and the node `old` gone; or one of both."""

    place: Place | None = None
    name: str = ""
    claim: int = 0
    old: int = 0
    announced: bool = False
    """An operator adds the new node before it starts; else it adds itself."""
    learner: bool = False
    """Without a vote, until the operator promotes it."""
    begun: bool = False
    """The cluster knows of it, and it can't be refused any more."""


class Steward(Actor):
    """One change at a time. It isn't idle before that has come to its end: half of one is no state to recover to."""

    def __init__(self, core: Core, machines: Sequence[Machine], board: Board, name: str, removable: set[int]) -> None:
        super().__init__(core, machines, board, META_GROUP, name)
        self._places = [machine for machine in machines if isinstance(machine, Place)]
        self._removable = removable
        self._wish: Wish | None = None
        self._count = 0

    @property
    def _wants(self) -> bool:
        return self._wish is not None

    def _begin(self) -> None:
        every = self._core.drawn.members_every
        if self._wish is None and self._rng.random() >= IDLE_MS / 2 / every:
            self._pause(IDLE_MS)
        else:
            self._look(self._looked)

    def _looked(self, _: Store, machine: Machine) -> None:
        """The node's picture of meta is as new as this read: what is wanted, and what is the next step to it?"""
        node = machine.node
        assert node is not None
        if not node.meta.version:
            self._failed()
            return
        self._ask_wrongly(node)
        if self._wish is None:
            self._wish = self._choose(node.meta)
            if self._wish is None:
                self._ok()
                return
        try:
            step = self._step(self._wish, node)
        except ChangeRefused as refused:
            self._core.note("refused", "", refused)
            self._core.hit("change of members refused")
            if not self._wish.begun:
                self._wish = None
            self._failed()
        except NebulaError:
            self._failed()
        else:
            if step is not None:
                self._ask(Command(Kind.TXN, step), self._stepped)
            elif self._came_true(self._wish, node):
                self._wish = None
                self._ok()
            else:
                self._failed()

    def _ask_wrongly(self, node: Node) -> None:
        ask_wrongly(self._rng, node.meta, node.founding)

    def _stepped(self, outcome: Answer | NebulaError) -> None:
        """Whatever came of it: the next look tells."""
        if self._done(outcome) is not None:
            self._ok()

    def _choose(self, meta: Meta) -> Wish | None:
        rng = self._rng
        members = [node for node, record in sorted(meta.nodes.items()) if record.state is NodeState.MEMBER]
        idle = [place for place in self._places if place.idle]
        grows = len(members) < MAX_MEMBERS and bool(idle)
        kinds = ["replace"] * bool(idle)
        if not self._core.drawn.replaces:
            kinds = ["add"] * grows + kinds + ["remove"] * (len(members) > 1)
        if not kinds or len(members) < len(meta.nodes):
            return None
        kind = rng.choice(kinds)
        wish = Wish()
        if kind != "add":
            wish.old = rng.choice(members)
        if kind != "remove":
            self._count += 1
            wish.place = rng.choice(idle)
            wish.name, wish.claim = f"{wish.place.name}.{self._count}", rng.getrandbits(63) | 1
            wish.announced = kind == "add" and rng.random() < 0.5
            wish.learner = wish.announced and rng.random() < 0.7
        self._core.note("wish", "", (kind, wish.name, wish.old))
        return wish

    def _step(self, wish: Wish, node: Node) -> bytes | None:
        if wish.place is None:
            return self._remove(wish, node)
        meta, address, fresh = node.meta, f"{wish.place.name}:2", self._rng.getrandbits(63) | 1
        old = meta.nodes.get(wish.old)
        if wish.old and not wish.begun and old is not None:
            step = replace_step(meta, old.name, wish.name, address, fresh)
            if step is not None:
                return step
            self._removable.add(wish.old)
            members = sum(record.state is NodeState.MEMBER for record in meta.nodes.values())
            dead = 0 if self._core.drawn.replaces else DEAD
            if members > 2 and self._rng.random() < dead:  # else no majority would be left
                self._lose(wish.old)
        record = find(meta, wish.name)
        if wish.announced and (record is None or not record.claim):
            return self._announce(wish, meta, address, record)
        wish.begun = True
        if not wish.place.idle and in_sync_by_all(self._machines, node, wish.place):
            self._core.hit("new node in sync")
        if record is not None and record.learner and not wish.place.idle and self._rng.random() < PATIENCE:
            self._core.hit("learner promoted")
            return promote_step(meta, wish.name)
        return claim_step(meta, wish.name, address, wish.claim, fresh)

    def _announce(self, wish: Wish, meta: Meta, address: str, record: NodeRecord | None) -> bytes | None:
        """The node isn't started: it is made known, perhaps under a wrong address first, and then it is."""
        fresh = self._rng.getrandbits(63) | 1
        if record is None:
            first = WRONG if self._rng.random() < 0.3 else address
            return add_step(meta, wish.name, first, fresh, learner=wish.learner)
        wish.begun = True
        if record.peer_address != address:
            return move_step(meta, record.node, address)
        return claim_step(meta, wish.name, address, wish.claim, fresh)

    def _remove(self, wish: Wish, node: Node) -> bytes | None:
        old, peers = node.meta.nodes.get(wish.old), node.host.peers
        if old is None:
            return None
        self._removable.add(wish.old)
        connected = {node.identity.node, *(peer for peer, known in peers.items() if known.connected)}
        step = remove_step(node.meta, node.founding, old.name, connected)
        wish.begun |= old.state is NodeState.LEAVING
        return step

    def _lose(self, node: int) -> None:
        """The node that is to be replaced dies for good; so it was dead when somebody decided to replace it."""
        for place in self._places:
            if place.node_id == node:
                self._core.hit("node to be replaced lost")
                place.lose()

    def _came_true(self, wish: Wish, node: Node) -> bool:
        meta = node.meta
        if wish.place is not None:
            record = find(meta, wish.name)
            if record is None or meta.own is None:
                return False
            if wish.place.idle:
                if record.node in dict(meta.own.replicas).values():
                    wish.place.join(record.node, wish.name, node.founding, meta.own)
                return False
            if record.state is not NodeState.MEMBER:
                return False
        if wish.old in meta.nodes:
            return False
        if wish.old and not self._stopped_by_itself(wish.old):
            return False
        self._core.hit("node replaced" if wish.place and wish.old else "node removed" if wish.old else "node added")
        return True

    def _stopped_by_itself(self, node: int) -> bool:
        """Whether a node that was removed is gone; if not, it will ask about itself, some time."""
        for place in self._places:
            if place.node_id == node and not place.idle:
                self._core.scheduler.after(self._rng.randrange(ASKS_MS), place.told_removed, node)
                return False
        return True

"""Which nodes have a link: what ``rpc`` tells `Host` of connections, with the delays and mix-ups that it may have."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

from nebuladb.sim.core import Core
from nebuladb.sim.network import Network

DIAL_MS = 100
"""The longest pause between two attempts to connect."""
NOTICE_MS = 2_000
"""The longest that an end takes to notice that the other one is cut off or gone."""
NEVER = 4
"""One cut in so many is noticed by nobody: pings pass, frames don't."""


class Links:
    """One link a pair, like ``rpc``'s one stream. `incarnation(node)` is 0 while the node is down; `up(node, peer,
    incarnation)` and `down(node, peer)` tell one end."""

    def __init__(
        self,
        core: Core,
        network: Network,
        nodes: int,
        incarnation: Callable[[int], int],
        up: Callable[[int, int, int], None],
        down: Callable[[int, int], None],
    ) -> None:
        self._core = core
        self._network = network
        self._incarnation = incarnation
        self._up = up
        self._down = down
        self._rng = core.stream("links")
        self._ends: dict[tuple[int, int], int] = {}
        """(node, peer) → incarnation of the peer that this end believes to be linked to."""
        for pair in combinations(range(nodes), 2):
            self._dial(*pair)

    def _dial(self, one: int, other: int) -> None:
        """Connect the two if they live and can talk both ways; then watch, for ever."""
        ends = self._ends
        lives = self._incarnation(one), self._incarnation(other)
        talk = self._network.reaches(one, other) and self._network.reaches(other, one)
        if all(lives) and talk and (ends.get((one, other)), ends.get((other, one))) != (lives[1], lives[0]):
            for node, peer in ((one, other), (other, one)):
                lives = self._incarnation(node), self._incarnation(peer)
                self._core.scheduler.after(self._rng.randrange(3), self._connected, node, peer, *lives)
        self._core.scheduler.after(1 + self._rng.randrange(DIAL_MS), self._dial, one, other)

    def _connected(self, node: int, peer: int, own: int, theirs: int) -> None:
        if own != self._incarnation(node):
            return
        if (node, peer) in self._ends:
            self._down(node, peer)  # a newer link takes an older one's place
        self._ends[node, peer] = theirs
        self._up(node, peer, theirs)

    def crashed(self, node: int) -> None:
        """A node is gone: its own ends with it; the others notice, some time."""
        for end in [end for end in self._ends if end[0] == node]:
            del self._ends[end]
        for peer, other in sorted(self._ends):
            if other == node:
                delay = self._rng.randrange(NOTICE_MS)
                self._core.scheduler.after(delay, self._fall, peer, node, self._ends[peer, node])

    def cut(self, one: int, other: int) -> None:
        """The pair can't talk, in one direction at least: each end notices, some time or never."""
        for node, peer in ((one, other), (other, one)):
            if (node, peer) in self._ends and self._rng.randrange(NEVER):
                delay = self._rng.randrange(NOTICE_MS)
                self._core.scheduler.after(delay, self._unreachable, node, peer, self._ends[node, peer])

    def reset(self, one: int, other: int) -> None:
        """The link breaks although both live."""
        for node, peer in ((one, other), (other, one)):
            if (node, peer) in self._ends:
                self._core.scheduler.after(self._rng.randrange(5), self._fall, node, peer, self._ends[node, peer])

    def _unreachable(self, node: int, peer: int, theirs: int) -> None:
        if not (self._network.reaches(node, peer) and self._network.reaches(peer, node)):
            self._fall(node, peer, theirs)

    def _fall(self, node: int, peer: int, theirs: int) -> None:
        if self._ends.get((node, peer)) == theirs:
            del self._ends[node, peer]
            self._down(node, peer)

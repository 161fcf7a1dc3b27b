"""A machine without a founding document asks its peers until it has one, by the product's own rules (S14)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Final, Protocol

from nebuladb.node.founding import FreshNode, Hello, Step, answer_hello
from nebuladb.node.identity import Founding, Identity, initial_cluster_hash
from nebuladb.sim.core import Core

ASK_MS: Final = 20
"""The longest pause between two questions."""


class Neighbour(Protocol):
    """A machine that may be asked."""

    def hello(self, asker: str) -> Hello | None:
        """Its answer; None: it is down."""
        ...

    def document(self) -> Founding | None:
        """Its founding document, if it is up and has one."""
        ...


class Beginning:
    """One attempt; a crash ends it, and the next start makes another. `peer(name)` is None while nothing gets through.

    Raises `IdentityError` from the scheduler's step through `refused` only.
    """

    def __init__(
        self,
        core: Core,
        identity: Identity,
        members: Mapping[str, str],
        peer: Callable[[str], Neighbour | None],
        rng: Random,
        ended: Callable[[Founding], None],
    ) -> None:
        self.over = False
        self._core = core
        self._fresh = FreshNode(identity, members)
        self._peer = peer
        self._rng = rng
        self._ended = ended

    @property
    def identity(self) -> Identity:
        """Under which it begins."""
        return self._fresh.identity

    def step(self) -> None:
        """Ask once; then again, until there is a document. Raises `IdentityError` if this node must not go on."""
        step, name = self._fresh.next()
        if step is Step.FOUND:
            self._end(self._fresh.found(self._rng.getrandbits(63) | 1))
            return
        peer = self._peer(name)
        if peer is not None and step is Step.ASK:
            reply = peer.hello(self._fresh.hello().name)
            if reply is not None:
                self._fresh.replied(name, reply)
        elif peer is not None:
            document = peer.document()
            if document is not None:
                self._fresh.accept(document)
                self._end(document)

    def _end(self, document: Founding) -> None:
        self.over = True
        self._ended(document)


def answer(identity: Identity, document: Founding | None, members: Mapping[str, str], asker: str) -> Hello:
    """What a running machine answers."""
    return answer_hello(identity, document, initial_cluster_hash(members), asker)

"""How fresh nodes become one cluster, as a pure state machine (``docs/architecture.md``, "Founding").

A fresh node says Hello to every node of its ``--initial-cluster`` until every one answered: silence is not "fresh", and
one that has data may remember votes of a node that this one replaces (S14). When all are fresh and were told the same,
the one with the least name asks all once more, in one round: one that answered long ago may have been emptied since,
and would never get the document, which lists it under its former id. If all still say the same, it draws the cluster id
and writes the founding document; the others fetch it. A crash anywhere repeats the asking.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from nebuladb.errors import IdentityError
from nebuladb.node.identity import Founder, Founding, Identity, initial_cluster_hash


class Hello(NamedTuple):
    """What a node says of itself; also the reply, with the id under which the replier knows the asker's name."""

    cluster: int
    node: int
    name: str
    initial_cluster_hash: bytes
    has_data: bool
    known_node: int = 0


class Step(Enum):
    """What a fresh node does next."""

    ASK = "ask"
    FOUND = "found"
    FETCH = "fetch"


class FreshNode:
    """One founding node without data. `members` is its ``--initial-cluster``, its own name included."""

    def __init__(self, identity: Identity, members: Mapping[str, str]) -> None:
        self.identity = identity
        self.members = dict(members)
        self._hash = initial_cluster_hash(members)
        self._replies: dict[str, Hello] = {}
        self._confirmed: set[str] = set()
        """Of the founder: who said the same again in the round that is under way."""

    def hello(self) -> Hello:
        """What this node says of itself."""
        return Hello(0, self.identity.node, self.identity.name, self._hash, has_data=False)

    @property
    def silent(self) -> list[str]:
        """Names of those who haven't answered yet."""
        return sorted(set(self.members) - set(self._replies) - {self.identity.name})

    @property
    def unheard(self) -> list[str]:
        """Names of those to be asked next: who hasn't answered; once all have, who hasn't confirmed it."""
        if self.silent or min(self.members) != self.identity.name:
            return self.silent
        return sorted(set(self.members) - self._confirmed - {self.identity.name})

    def missed(self) -> None:
        """Somebody didn't answer, so the founder's last round begins anew: what the others said is of before."""
        self._confirmed.clear()

    def replied(self, name: str, reply: Hello) -> None:
        """`name` answered. Raises `IdentityError` if this node must not go on; the text says what to do."""
        mine = self.identity
        if reply.name != name:
            raise IdentityError(
                f"the node at {self.members[name]} is {reply.name!r}, not {name!r}: correct --initial-cluster"
            )
        if reply.has_data:
            # Its document may list this very node, which crashed before it had fetched it; anyone else is a stranger.
            if reply.known_node == mine.node:
                self._replies[name] = reply
                return
            if reply.known_node:
                raise IdentityError(
                    f"this data directory is empty, but {name} knows a node {mine.name!r} with data (id "
                    f"{reply.known_node:016x}). A node that lost its data must not return under its old identity, "
                    f"because it forgot its votes. Restore the directory, or replace the member: "
                    f"`nebula-cli member replace {mine.name}`"
                )
            raise IdentityError(
                f"{name} belongs to cluster {reply.cluster:016x} already, which has no member {mine.name!r}; "
                f"add this node with `nebula-cli member add {mine.name} --peer-address {self.members[mine.name]}` and "
                f"start it with --join {self.members[name]}"
            )
        if reply.initial_cluster_hash != self._hash:
            raise IdentityError(
                f"{name} was started with another --initial-cluster; give every node the same names and peer addresses"
            )
        if self._replies.get(name) == reply and not self.silent:
            self._confirmed.add(name)
        else:
            self._confirmed.clear()
        self._replies[name] = reply

    def forget(self, name: str) -> None:
        """`name` gave no document: ask it again. It may have founded since, with another node under our name."""
        self._replies.pop(name, None)

    def next(self) -> tuple[Step, str]:
        """What to do, and the name of the node that it concerns."""
        for name in sorted(self._replies):
            if self._replies[name].has_data:
                return Step.FETCH, name
        if self.unheard:
            return Step.ASK, self.unheard[0]
        founder = min(self.members)
        return (Step.FOUND if founder == self.identity.name else Step.FETCH), founder

    def found(self, cluster: int) -> Founding:
        """The document, once `next` says FOUND; `cluster` is a fresh random id."""
        nodes = []
        for name in sorted(self.members):
            node = self.identity.node if name == self.identity.name else self._replies[name].node
            nodes.append(Founder(name, node, self.members[name]))
        ids = {node.node for node in nodes}
        if len(ids) < len(nodes):
            raise IdentityError("two nodes have the same id: one data directory is a copy of another; empty it")
        return Founding(cluster, tuple(nodes))

    def accept(self, founding: Founding) -> None:
        """A fetched document. Raises `IdentityError` unless it lists this node under its id."""
        if founding.node_of(self.identity.name) != self.identity.node:
            raise IdentityError(
                f"the founding document of cluster {founding.cluster:016x} does not list this node; "
                "empty this data directory and start again, or check --initial-cluster"
            )


def answer_hello(identity: Identity, founding: Founding | None, members_hash: bytes, asker: str) -> Hello:
    """A node's reply to a Hello of `asker`."""
    return Hello(
        founding.cluster if founding else 0,
        identity.node,
        identity.name,
        members_hash,
        has_data=founding is not None,
        known_node=founding.node_of(asker) if founding else 0,
    )

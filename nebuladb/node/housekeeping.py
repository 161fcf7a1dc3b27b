"""What a node does once a second: leaders to where they belong, and what it owes the meta group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nebuladb import __version__
from nebuladb.env import Rng, probe
from nebuladb.errors import NebulaError
from nebuladb.ids import META_GROUP
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.limits import MAX_TXN_OPERATIONS
from nebuladb.node.balancer import Balancer
from nebuladb.node.keyspaces import acknowledgement, unfinished_step
from nebuladb.node.members import put_node
from nebuladb.node.meta import Meta, Removal, founding_request, life_request
from nebuladb.node.record import NodeState
from nebuladb.raft import StateRole

if TYPE_CHECKING:
    from nebuladb.node.node import Node

HOUSEKEEPING_MS: Final = 1_000
FINISHING_MS: Final = 100
"""Between two steps of what is begun: a founding; a keyspace's creation or removal that nobody else seems to finish; a
node's own addresses, for it isn't ready before they are known."""
MAX_ACKNOWLEDGED: Final = 16 * MAX_TXN_OPERATIONS
"""Orders that are acknowledged at once: a node that was away for long may have carried out thousands."""


def announced(meta: Meta, node: int, peer_address: str, client_address: str) -> bool:
    """Whether meta has the node's addresses, or will never have them: who is no member, or has no client address,
    announces nothing. The version may be another one: nobody waits for it."""
    known = meta.nodes.get(node)
    return (
        known is None
        or not client_address
        or (known.peer_address, known.client_address) == (peer_address, client_address)
    )


class Housekeeper:
    """Does what the module says, from the node's tick. One a process. What is refused, or lost, comes again."""

    def __init__(self, node: Node, rng: Rng, peer_address: str, client_address: str) -> None:
        self._node = node
        self._rng = rng
        self._addresses = (peer_address, client_address)
        self._balancer = Balancer(node.identity.node, node.host.now)
        self._due = 0
        self._acknowledged: set[Removal] = set()
        """Orders that it has asked to delete since the last step."""

    def step(self) -> bool:
        """Called once a tick; whether anything was looked at."""
        node = self._node
        if node.host.now < self._due:
            return False
        self._due = node.host.now + HOUSEKEEPING_MS
        leaving = {one.node for one in node.meta.nodes.values() if one.state is NodeState.LEAVING}
        for group, to in self._balancer.moves(node.host, leaving):
            try:
                node.host.transfer_leadership(group, to)
            except NebulaError:
                probe("move of leadership refused")
        self._serve_meta()
        return True

    def _serve_meta(self) -> None:
        """The founding entry, the name of the cluster's life, and keyspaces that are half made or dropped, if this node
        leads meta; its own addresses; what it has destroyed."""
        node = self._node
        replica = node.host.replicas.get(META_GROUP)
        if node.meta.version == 0 or not announced(node.meta, node.identity.node, *self._addresses):
            self._due = node.host.now + FINISHING_MS
        if replica is None or len(replica.proposals):
            return
        leads = replica.raft.role is StateRole.LEADER
        if node.meta.version == 0:
            if leads:
                self._request(founding_request(node.founding))
            return
        if leads and not node.meta.life:
            self._request(life_request(self._rng.randrange(1, 1 << 63)))
            self._due = node.host.now + FINISHING_MS
        self._announce()
        self._acknowledged.clear()  # nothing is under way: what is still there got lost
        self.acknowledge()
        step = unfinished_step(node.meta) if leads else None
        if step is not None:
            probe("keyspace finished by the leader of meta")
            self._request(step)
            self._due = node.host.now + FINISHING_MS

    def _announce(self) -> None:
        """Its own addresses and version, if meta has others. It must have kept first which life of the cluster it is
        in, as it does once its picture says so: a node that has announced itself and comes without a life has forgotten
        its votes (S15)."""
        meta, identity = self._node.meta, self._node.identity
        peer, client = self._addresses
        known = meta.nodes.get(identity.node)
        if known is None or not client or not meta.life:
            return
        record = known._replace(name=identity.name, peer_address=peer, client_address=client, version=__version__)
        if known != record:
            probe("address announced")
            self._request(put_node(meta, record))

    def acknowledge(self) -> None:
        """Delete the orders that this node has carried out, but for those that it has just asked to delete."""
        done = self._node.reconciler.done(self._node.meta.orders(self._node.identity.node))
        told = [removal for removal in done if removal not in self._acknowledged][:MAX_ACKNOWLEDGED]
        for place in range(0, len(told), MAX_TXN_OPERATIONS):
            part = told[place : place + MAX_TXN_OPERATIONS]
            if self._request(acknowledgement(part)):
                self._acknowledged.update(part)

    def _request(self, transaction: bytes) -> bool:
        """Whether it was taken."""
        try:
            self._node.request(Command(Kind.TXN, transaction))
        except NebulaError:
            probe("own request refused")
            return False
        return True

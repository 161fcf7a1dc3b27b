"""What other nodes are told and asked: founding, handshakes, and frames for the pump."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Final

import grpc.aio
import structlog

from nebuladb.errors import IdentityError, NodeRemoved
from nebuladb.ids import META_GROUP
from nebuladb.node.catch_up import Lag, lags_led
from nebuladb.node.founding import FreshNode, Hello, Step, answer_hello
from nebuladb.node.frame import FRAME_VERSION
from nebuladb.node.identity import Founding, Identity, initial_cluster_hash
from nebuladb.node.joined import Joined
from nebuladb.node.members import find, removed_text
from nebuladb.node.meta import Meta
from nebuladb.node.pump import Pump
from nebuladb.pb.nebula.peer.v1 import peer_pb2 as pb
from nebuladb.rpc import PeerTransport
from nebuladb.server.config import Config
from nebuladb.server.directory import DataDirectory
from nebuladb.server.joining import JoinService
from nebuladb.server.site import restored_id

ASK_SECONDS: Final = 0.2
"""Between two rounds of Hello."""
REMOVAL_SECONDS: Final = 1.0
"""Between two rounds of asking whether this node is a member still."""
REMIND_SECONDS: Final = 10.0
"""How often a waiting node says for whom it waits."""
MAX_INCARNATIONS: Final = 64
"""Lives of one peer that are remembered, to notice two processes with one identity (S18)."""

MAX_REFUSED: Final = 64
"""Reasons for which links were refused that are remembered, to say each once however often it comes."""


class Peers:
    """`nebuladb.rpc.PeerEvents` for a node, before and after its cluster is founded."""

    def __init__(self, config: Config, directory: DataDirectory, identity: Identity, incarnation: int) -> None:
        self.identity = identity
        self.founding = directory.founding()
        self.joined = directory.joined()
        self._learned: dict[int, str] = {}
        """Where peers say that the members are, as long as this node has no better picture."""
        self._learned_as_of = 0
        """Index of the meta group's log that the newest such word is of."""
        self.joins: JoinService | None = None
        """Set when the node serves."""
        self.pump: Pump | None = None
        self._config = config
        self._directory = directory
        self._incarnation = incarnation
        self._hash = initial_cluster_hash(config.initial_cluster)
        self._seen: dict[int, list[int]] = {}
        self._kept_life = directory.life()
        self._lives: dict[int, int] = {}
        """Node → which life of the cluster it said to be of, in its last handshake."""
        self._refused: dict[str, None] = {}
        """Why links were refused, the last time of each; the oldest first."""
        self._log = structlog.get_logger("peers")

    # --- joining ---------------------------------------------------------------------------------------------------

    def join_with(self, joined: Joined) -> None:
        """This node is told who it is."""
        self.identity = self._directory.join(self.identity, joined)
        self.founding, self.joined = joined.founding, joined

    async def join(self, request: pb.JoinRequest) -> pb.JoinResponse:
        """A new node asks who it is."""
        if self.joins is None:
            return pb.JoinResponse(wait=f"node {self.identity.name} is starting")
        return await self.joins.answer(request)

    async def watch_removal(self, transport: PeerTransport, removed: Callable[[NodeRemoved], None]) -> None:
        """While nobody leads the meta group here, ask the others two things. Is this node still a member? (They refuse
        the links of one that isn't, so it wouldn't hear it otherwise.) And who are they now? All of them, or their
        addresses, may have changed while it was away."""
        while True:
            await asyncio.sleep(REMOVAL_SECONDS)
            replica = self.pump.node.host.replicas.get(META_GROUP) if self.pump is not None else None
            if replica is None:
                continue
            if replica.raft.leader:
                if self._learned and replica.applied == replica.raft.commit:
                    self._learned.clear()  # meta has it all by now
                    self._learned_as_of = 0
                    transport.connect_to(self.addresses())
                continue
            identity = self.identity
            request = pb.HelloRequest(
                cluster_id=identity.cluster, node_id=identity.node, name=identity.name, has_data=True
            )
            others = [address for node, address in sorted(self.addresses().items()) if node != identity.node]
            calls = [transport.hello(address, request) for address in others]
            for reply in await asyncio.gather(*calls, return_exceptions=True):
                if not isinstance(reply, pb.HelloResponse) or reply.cluster_id != identity.cluster:
                    continue
                if reply.removed:
                    removed(NodeRemoved(removed_text(identity.name)))
                    return
                if reply.node_id != identity.node:  # else another was here once, and it's our own old picture
                    self._learn(reply, replica.applied)
            transport.connect_to(self.addresses())

    def _learn(self, reply: pb.HelloResponse, applied: int) -> None:
        """Take a peer's word for where the members are, unless it is of before what this node knows, from others or by
        its own picture, which is as of `applied`. A build that doesn't say of when it is, is believed."""
        if not reply.meta_index or reply.meta_index >= max(applied, self._learned_as_of):
            self._learned |= {peer.node_id: peer.address for peer in reply.peers}
            self._learned_as_of = max(reply.meta_index, self._learned_as_of)

    # --- founding --------------------------------------------------------------------------------------------------

    async def found_cluster(self, transport: PeerTransport) -> Founding:
        """Ask everyone until the cluster is founded. Raises `IdentityError` if this node must not take part (S14)."""
        fresh = FreshNode(self.identity, self._config.initial_cluster)
        reminded = float("-inf")
        loop = asyncio.get_running_loop()
        while True:
            await self._ask(fresh, transport)
            if not fresh.silent:
                await self._ask(fresh, transport)
            step, name = fresh.next()
            if step is Step.FOUND:
                founding = fresh.found(secrets.randbits(63) | 1)
            elif step is Step.FETCH:
                document = await self._fetch(fresh, name, transport)
                if not document:
                    fresh.forget(name)
                    await asyncio.sleep(ASK_SECONDS)
                    continue
                founding = Founding.decode(document)
                fresh.accept(founding)
            else:
                if loop.time() - reminded >= REMIND_SECONDS:
                    self._log.info("waiting for the other founding nodes", silent=fresh.unheard)
                    reminded = loop.time()
                await asyncio.sleep(ASK_SECONDS)
                continue
            self.identity = self._directory.found(self.identity, founding)
            self.founding = founding
            self._log.info(
                "cluster founded", cluster=f"{founding.cluster:016x}", nodes=[n.name for n in founding.nodes]
            )
            return founding

    async def _ask(self, fresh: FreshNode, transport: PeerTransport) -> None:
        """Say Hello to everyone who is to be asked, in one round."""
        names = fresh.unheard
        hello = fresh.hello()
        request = pb.HelloRequest(
            node_id=hello.node, name=hello.name, initial_cluster_hash=hello.initial_cluster_hash, has_data=False
        )
        calls = [transport.hello(fresh.members[name], request) for name in names]
        for name, reply in zip(names, await asyncio.gather(*calls, return_exceptions=True), strict=True):
            if isinstance(reply, pb.HelloResponse):
                fresh.replied(
                    name,
                    Hello(
                        reply.cluster_id,
                        reply.node_id,
                        reply.name,
                        reply.initial_cluster_hash,
                        reply.has_data,
                        reply.known_node_id,
                    ),
                )
            elif not isinstance(reply, grpc.aio.AioRpcError):
                raise reply
        if fresh.unheard:  # no answer, or another than before: what the others said is of before, too
            fresh.missed()

    async def _fetch(self, fresh: FreshNode, name: str, transport: PeerTransport) -> bytes:
        request = pb.FoundRequest(node_id=self.identity.node, name=self.identity.name)
        try:
            return await transport.found(fresh.members[name], request)
        except grpc.aio.AioRpcError:
            return b""

    # --- PeerEvents ------------------------------------------------------------------------------------------------

    def hello(self, request: pb.HelloRequest) -> pb.HelloResponse:
        """Who this node is, and under which id it knows the asker's name."""
        meta = self.pump.node.meta if self.pump is not None else Meta()
        replica = self.pump.node.host.replicas.get(META_GROUP) if self.pump is not None else None
        ours = request.cluster_id == self.identity.cluster != 0
        answer = answer_hello(self.identity, self.founding, self._hash, request.name)
        return pb.HelloResponse(
            cluster_id=answer.cluster,
            node_id=answer.node,
            name=answer.name,
            initial_cluster_hash=answer.initial_cluster_hash,
            has_data=answer.has_data,
            known_node_id=self._known(request.name) or (0 if answer.known_node in meta.removed else answer.known_node),
            removed=request.node_id in meta.removed,
            peers=[pb.PeerAddress(node_id=one.node, address=one.peer_address) for one in meta.nodes.values() if ours],
            meta_index=replica.applied if replica is not None and ours else 0,
        )

    def _known(self, name: str) -> int:
        """Id of the member of that name, else 0."""
        record = find(self.pump.node.meta, name) if self.pump is not None else None
        return record.node if record is not None else 0

    def found(self, request: pb.FoundRequest) -> bytes:
        """The founding document, for a node that it lists."""
        if self.founding is None or self.founding.node_of(request.name) != request.node_id:
            return b""
        return self.founding.encode()

    def lags(self, request: pb.LagsRequest) -> pb.LagsResponse:
        """How far a node of this cluster is behind in the groups that are led here."""
        if self.pump is None or request.cluster_id != self.identity.cluster:
            return pb.LagsResponse()
        found = lags_led(self.pump.node.host, request.node_id)
        return pb.LagsResponse(lags=[pb.Lag(**lag._asdict()) for lag in found])

    def handshake(self, node: int) -> pb.Handshake:
        """What this node says of itself when a link opens."""
        meta = self.pump.node.meta if self.pump is not None else Meta()
        return pb.Handshake(
            cluster_id=self.identity.cluster,
            node_id=self.identity.node,
            name=self.identity.name,
            incarnation=self._incarnation,
            version=FRAME_VERSION,
            receiver=node,
            client_address=self._config.advertise_client_addr,
            issued_nodes=meta.issued_nodes,
            life=self.life,
            announced=bool(meta.client_address(self.identity.node)),
        )

    def check(self, handshake: pb.Handshake) -> None:
        """Raise `IdentityError` unless the other end is a node of this cluster that means this node (S14, S16)."""
        try:
            self._check(handshake)
        except IdentityError as error:
            self._say_once("peer refused", error.message)
            raise

    def refused(self, why: str) -> None:
        """A peer refused this node: on the machine that is to be mended nothing else says so."""
        self._say_once("refused by a peer", why)

    def _check(self, handshake: pb.Handshake) -> None:
        if self.pump is None or self.founding is None:
            raise IdentityError(f"node {self.identity.name} is starting")
        who = f"node {handshake.name!r} (id {handshake.node_id:016x})"
        if handshake.cluster_id != self.identity.cluster:
            raise IdentityError(
                f"{who} belongs to cluster {handshake.cluster_id:016x}, this is {self.identity.cluster:016x}; "
                "check --initial-cluster and the peer addresses"
            )
        if handshake.receiver not in (0, self.identity.node):
            raise IdentityError(
                f"{who} looked for node {handshake.receiver:016x} here and found {self.identity.name} "
                f"({self.identity.node:016x}); check the peer addresses"
            )
        meta = self.pump.node.meta
        if self._strange(handshake.life):
            raise IdentityError(
                f"{who} is of another life of this cluster ({handshake.life:016x}, here is {self.life:016x}), with "
                "another history: the cluster was restored from a backup between them. Empty the directory of the one "
                "from before that, and restore it from the same files as the others"
            )
        if self.life and not handshake.life:
            self._remembers(handshake, who)
        if handshake.node_id in meta.removed:
            raise IdentityError(f"{who} was removed from this cluster; it must not come back under this id")
        if handshake.version < FRAME_VERSION:
            raise IdentityError(f"{who} speaks peer frames of version {handshake.version} only: upgrade it")
        if handshake.issued_nodes > meta.issued_nodes:
            return  # it knows of nodes that came while we were away, and may be one, under the name of one that went
        names = {record.name: record.node for record in meta.nodes.values()}
        if not meta.version:  # nothing is known but what every node began with
            names = {node.name: node.node for node in self.founding.nodes}
        if names.get(handshake.name, handshake.node_id) != handshake.node_id:
            raise IdentityError(
                f"{who} bears the name of {names[handshake.name]:016x}; a node that lost its data must not return "
                f"under its name: run `nebula-cli member replace {handshake.name}`"
            )
        if handshake.node_id not in names.values() and (meta.version or self.joined is None):
            raise IdentityError(
                f"{who} is no member of this cluster; add it with `nebula-cli member add {handshake.name} "
                "--peer-address HOST:PORT`"
            )

    def _remembers(self, handshake: pb.Handshake, who: str) -> None:
        """Raise `IdentityError` if the other end, which knows of no life, may have been in this one. A node that is
        restored once more has its old id, and has forgotten its votes and what it acknowledged (S14, S15). In a cluster
        that was never restored that can't be: ids are random there, and are lost with the directory. Nor can it be
        where the other's own data has its addresses, which a restored directory hasn't. A node without a life comes
        from a build that kept none then."""
        if not self._restored or handshake.announced:
            return
        assert self.pump is not None
        known = self.pump.node.meta.nodes.get(handshake.node_id)
        if known is not None and known.client_address:
            raise IdentityError(
                f"{who} was in this life of the cluster and has forgotten its votes: its directory was restored from a "
                f"backup once more. Restore it no more: run `nebula-cli member replace {handshake.name}`"
            )
        replica = self.pump.node.host.replicas.get(META_GROUP)
        if not (replica is not None and replica.raft.leader):
            raise IdentityError(
                f"{who} does not know which life of the cluster this is, and whether it has forgotten its votes can't "
                "be told before a majority of the others is connected: start them"
            )

    def peer_up(self, handshake: pb.Handshake) -> None:
        """A link stands."""
        node, incarnation = handshake.node_id, handshake.incarnation
        self._lives[node] = handshake.life
        seen = self._seen.setdefault(node, [])
        if incarnation in seen[:-1] and self.pump is not None:
            # It came back after another process spoke for the same id: both live, on copies of one directory.
            text = f"two processes run as node {handshake.name!r} ({node:016x}): stop one; a data directory was copied"
            self.pump.node.alarm(text)
            self._log.error(text)
        if incarnation not in seen:
            seen.append(incarnation)
            del seen[:-MAX_INCARNATIONS]
        self._log.info("peer connected", peer=handshake.name)
        if self.pump is not None:
            self.pump.peer_up(node, incarnation)

    def peer_down(self, node: int) -> None:
        """A link fell."""
        self._log.info("peer disconnected", peer=f"{node:016x}")
        if self.pump is not None:
            self.pump.peer_down(node)

    @property
    def frame(self) -> Callable[[int, bytes], None]:
        """Where the frames of a link go: no handshake passes `check` before there is a pump."""
        assert self.pump is not None
        return self.pump.frame

    async def lags_elsewhere(self, transport: PeerTransport, node: int) -> list[Lag]:
        """What the other nodes say of how far `node` is behind; who doesn't answer in time says nothing."""
        request = pb.LagsRequest(cluster_id=self.identity.cluster, node_id=node)
        others = [address for other, address in sorted(self.addresses().items()) if other != self.identity.node]
        calls = [transport.lags(address, request) for address in others]
        found = []
        for reply in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(reply, pb.LagsResponse):
                found += [Lag(lag.group, lag.term, lag.last, lag.lacks) for lag in reply.lags]
            elif not isinstance(reply, grpc.aio.AioRpcError):
                raise reply
        return found

    def _say_once(self, event: str, text: str) -> None:
        """Log why a link was refused, unless that was one of the last things said."""
        if text not in self._refused:
            self._log.warning(event, why=text)
        self._refused.pop(text, None)
        self._refused[text] = None
        if len(self._refused) > MAX_REFUSED:
            del self._refused[next(iter(self._refused))]

    @property
    def life(self) -> int:
        """Which life of the cluster this node is in, by meta or by what it kept; 0: it doesn't know."""
        return (self.pump.node.meta.life if self.pump is not None else 0) or self._kept_life

    @property
    def _restored(self) -> bool:
        """Whether the cluster is made from a backup, so that restoring it once more gives the same ids."""
        founding = self.founding
        return founding is not None and all(
            founder.node == restored_id(founding.cluster, founder.name) for founder in founding.nodes
        )

    def _strange(self, life: int) -> bool:
        """Whether it is known to be another life of the cluster than this node's."""
        return bool(life and self.life and life != self.life)

    # --- after founding --------------------------------------------------------------------------------------------

    def meta_changed(self, transport: PeerTransport) -> None:
        """This node has another picture: link to whom it names, and no longer to who turns out to be a stranger."""
        if self.life != self._kept_life:
            self._directory.keep_life(self.life)
            self._kept_life = self.life
        for node in [node for node, life in self._lives.items() if self._strange(life)]:
            del self._lives[node]
            transport.drop(node)
        assert self.pump is not None
        for node in [node for node in self._seen if node in self.pump.node.meta.removed]:
            del self._seen[node]  # it is refused from now on
            self._lives.pop(node, None)
        transport.connect_to(self.addresses())

    def addresses(self) -> dict[int, str]:
        """Peer address of every node, by id: meta's, or what this node was told when it began."""
        assert self.founding is not None
        assert self.pump is not None
        meta = self.pump.node.meta
        told = {node.node: node.peer_address for node in self.founding.nodes}
        if self.joined is not None:
            told = dict(self.joined.peers)
        # A picture that is being replayed is of yesterday: who isn't in it yet is no less there.
        known = {record.node: record.peer_address for record in meta.nodes.values()}
        return {node: address for node, address in (told | known | self._learned).items() if node not in meta.removed}

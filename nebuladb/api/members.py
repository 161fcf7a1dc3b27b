"""The part of ``nebula.v1.Cluster`` that changes who belongs to the cluster."""

from __future__ import annotations

import contextlib
import secrets
from typing import Any, Final

from nebuladb.api.backend import Backend, parse
from nebuladb.api.drive import Due, drive, goes_on, until
from nebuladb.errors import NebulaError, NodeRemoved
from nebuladb.node.members import add_step, descriptors, find, promote_step, remove_step, replace_step
from nebuladb.node.meta import Meta
from nebuladb.node.record import NodeRecord, NodeState
from nebuladb.pb.nebula.v1 import cluster_pb2 as pb

LIST_SECONDS: Final = 1.0
"""After which the list is given as this node sees it: without a majority it is needed most."""


class Members:
    """Each method takes a request's bytes and gives a response's."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def list(self, raw: bytes, context: Any) -> bytes:
        """All nodes but former ones, as they are now, or as this node sees them where nobody can tell. (It asks, for a
        node that lags would show one that was removed in place of one that has just come under its name.)"""
        parse(pb.MembersRequest, raw)
        with contextlib.suppress(NebulaError):
            await self._backend.refresh(min(LIST_SECONDS, self._backend.answer_within(context)))
        response = pb.MembersResponse(header=self._backend.header())
        records = sorted(self._backend.meta.nodes.items())
        held = self._held()
        response.members.extend(self._member(record, held) for _, record in records)
        return response.SerializeToString()

    async def add(self, raw: bytes, context: Any) -> bytes:
        """Issue an id."""
        request = parse(pb.MemberAddRequest, raw)
        name, peer = request.name, request.peer_address

        def step(meta: Meta) -> bytes | None:
            node = fresh_id(meta)
            if request.replaces:
                return replace_step(meta, request.replaces, name, peer, node)
            return add_step(meta, name, peer, node, learner=request.learner)

        await drive(self._backend, step, Due(self._backend.answer_within(context)))
        response = pb.MemberAddResponse(header=self._backend.header(), member=self._named(name))
        return response.SerializeToString()

    async def promote(self, raw: bytes, context: Any) -> bytes:
        """Let a learner vote."""
        name = parse(pb.MemberPromoteRequest, raw).name
        due = Due(self._backend.answer_within(context))
        await drive(self._backend, lambda meta: promote_step(meta, name), due)

        def votes() -> bool:
            record = find(self._backend.meta, name)
            return record is not None and record.state is not NodeState.JOINING

        await until(votes, due, _unfinished(f"node {name!r} becomes a member when it is started and has caught up"))
        response = pb.MemberPromoteResponse(header=self._backend.header(), member=self._named(name))
        return response.SerializeToString()

    async def remove(self, raw: bytes, context: Any, node: int = 0) -> bytes:
        """Take a node out of every group, then out of the cluster: the one of that name, or `node`, if it is given."""
        name = parse(pb.MemberRemoveRequest, raw).name
        due = Due(self._backend.answer_within(context))
        own = self._backend.node

        def step(meta: Meta) -> bytes | None:
            nonlocal node
            if not node and (record := find(meta, name)) is not None:
                node = record.node
            if node and node not in meta.nodes:
                return None  # it is gone, and what has its name now is another one
            called = meta.nodes[node].name if node else name
            return remove_step(meta, own.founding, called, self._connected())

        await drive(self._backend, step, due)
        await until(
            lambda: node not in self._backend.meta.nodes or isinstance(self._backend.pump.broken, NodeRemoved),
            due,
            _unfinished(f"node {name!r} is being removed, which goes on: its groups hand over what it has"),
        )
        return pb.MemberRemoveResponse(header=self._backend.header()).SerializeToString()

    def _connected(self) -> set[int]:
        peers = self._backend.node.host.peers
        return {self._backend.id, *(node for node, peer in peers.items() if peer.near)}

    def _held(self) -> dict[int, int]:
        """Node → replicas that descriptors list there."""
        held: dict[int, int] = {}
        for shard in descriptors(self._backend.meta, self._backend.node.founding):
            for _, node in shard.replicas:
                held[node] = held.get(node, 0) + 1
        return held

    def _named(self, name: str) -> pb.Member | None:
        record = find(self._backend.meta, name)
        return self._member(record, self._held()) if record is not None else None

    def _member(self, record: NodeRecord, held: dict[int, int]) -> pb.Member:
        peer = self._backend.node.host.peers.get(record.node)
        return pb.Member(
            node_id=record.node,
            name=record.name,
            peer_address=record.peer_address,
            client_address=record.client_address,
            connected=record.node == self._backend.id or (peer is not None and peer.connected),
            state=record.state.value,
            learner=record.learner,
            started=record.active or record.state is NodeState.LEAVING,
            replicas=held.get(record.node, 0),
            version=record.version,
        )


def fresh_id(meta: Meta) -> int:
    """An id that no node has had."""
    while True:
        node = secrets.randbits(63) | 1
        if node not in meta.nodes and node not in meta.removed:
            return node


def _unfinished(text: str) -> NebulaError:
    return goes_on(f"{text}; see `nebula-cli member list`, or repeat the request to wait for it")

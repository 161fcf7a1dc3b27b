"""``etcdserverpb.Cluster``: our nodes as etcd's members (etcd 51, 52).

A member's id is its node's, its URLs are ``http://`` and an address. A member that etcd's API adds has no name until it
starts, and is called by its id in hexadecimal. A node that joins from the peer address that was added gets that id, and
brings the name (``node.members.claim_step``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from nebuladb.api.drive import Due, drive
from nebuladb.api.etcd.errors import EtcdError
from nebuladb.api.etcd.face import Face
from nebuladb.api.etcd.requests import received
from nebuladb.api.members import Members, fresh_id
from nebuladb.errors import ChangeRefused
from nebuladb.ids import META_GROUP
from nebuladb.node.catch_up import in_sync, lags_led
from nebuladb.node.members import add_step, move_step, unnamed
from nebuladb.node.meta import Meta
from nebuladb.node.record import MAX_MEMBERS, NodeRecord, NodeState
from nebuladb.pb.etcd import cluster_pb2 as pb
from nebuladb.pb.etcd.header_pb2 import ResponseHeader
from nebuladb.pb.nebula.v1 import cluster_pb2

_URL: Final = re.compile(r"https?://((?:\[[^]\s/@,=?#[]+\]|[^]:\s/@,=?#[]+):\d{1,5})")
_REFUSED: Final = "FAILED_PRECONDITION"
_SEVERAL: Final = "etcdserver: a member has one peer URL here, not several"
MAX_URLS: Final = 128
"""Of one request, the same one again and again, that are looked at."""


class ClusterService:
    """Each method takes a request's bytes and gives a response's."""

    def __init__(self, face: Face) -> None:
        self._face = face
        self._backend = face.backend
        self._members = Members(face.backend)

    async def MemberList(self, raw: bytes, context: Any) -> bytes:
        request = received(pb.MemberListRequest, raw)
        header = self._header(context)
        if request.linearizable:
            await self._backend.refresh(self._face.timeout(context))
        return pb.MemberListResponse(header=header, members=self._all()).SerializeToString()

    async def MemberAdd(self, raw: bytes, context: Any) -> bytes:
        request = received(pb.MemberAddRequest, raw)
        header = self._header(context)
        peer = _address(request.peerURLs)
        if not self._backend.leader(META_GROUP):
            raise EtcdError("UNAVAILABLE", "etcdserver: unhealthy cluster")
        node = 0

        def step(meta: Meta) -> bytes | None:
            nonlocal node
            if node in meta.nodes:
                return None
            _check_address(meta, peer)
            if request.isLearner and meta.learners:
                raise EtcdError(_REFUSED, "etcdserver: too many learner members in cluster")
            if len(meta.nodes) >= MAX_MEMBERS:
                raise EtcdError("RESOURCE_EXHAUSTED", f"etcdserver: a cluster has at most {MAX_MEMBERS} members")
            # One id for all tries: a try whose answer was lost is known again by it.
            node = node or fresh_id(meta)
            return add_step(meta, unnamed(node), peer, node, learner=request.isLearner)

        await drive(self._backend, step, Due(self._face.timeout(context)))
        member = _member(self._backend.meta.nodes[node])
        return pb.MemberAddResponse(header=header, member=member, members=self._all()).SerializeToString()

    async def MemberRemove(self, raw: bytes, context: Any) -> bytes:
        request = received(pb.MemberRemoveRequest, raw)
        header = self._header(context)
        record = await self._known(request.ID, context)
        others = [
            one
            for one in self._backend.meta.nodes.values()
            if one.node != record.node and one.state is NodeState.MEMBER
        ]
        if not others and record.state is NodeState.MEMBER:
            why = "etcdserver: re-configuration failed due to not enough started members"
            raise EtcdError("UNKNOWN", why)
        wanted = cluster_pb2.MemberRemoveRequest(name=record.name)
        try:
            await self._members.remove(wanted.SerializeToString(), context, record.node)
        except ChangeRefused as error:
            raise EtcdError("UNAVAILABLE", "etcdserver: unhealthy cluster", error) from error
        members = [member for member in self._all() if record.node != member.ID]
        return pb.MemberRemoveResponse(header=header, members=members).SerializeToString()

    async def MemberUpdate(self, raw: bytes, context: Any) -> bytes:
        """A node that runs says itself where it is reached, at each start; so only one that hasn't started is told."""
        request = received(pb.MemberUpdateRequest, raw)
        header = self._header(context)
        record = await self._known(request.ID, context)
        peer = _address(request.peerURLs)
        if record.peer_address != peer:
            if not _unstarted(record):
                why = (
                    f"etcdserver: member {record.name} announces its own peer URL: restart it with "
                    f"--advertise-peer-addr {peer}"
                )
                raise EtcdError(_REFUSED, why)

            def step(meta: Meta) -> bytes | None:
                _check_address(meta, peer, but=record.node)
                return move_step(meta, record.node, peer)

            await drive(self._backend, step, Due(self._face.timeout(context)))
        return pb.MemberUpdateResponse(header=header, members=self._all()).SerializeToString()

    async def MemberPromote(self, raw: bytes, context: Any) -> bytes:
        request = received(pb.MemberPromoteRequest, raw)
        header = self._header(context)
        record = await self._known(request.ID, context)
        if not record.learner:
            raise EtcdError(_REFUSED, "etcdserver: can only promote a learner member")
        if not await self._in_sync(record):
            why = "etcdserver: can only promote a learner member which is in sync with leader"
            raise EtcdError(_REFUSED, why)
        wanted = cluster_pb2.MemberPromoteRequest(name=record.name)
        await self._members.promote(wanted.SerializeToString(), context)
        return pb.MemberPromoteResponse(header=header, members=self._all()).SerializeToString()

    # ---

    def _header(self, context: Any) -> ResponseHeader:
        """Without a revision, as etcd's."""
        return self._face.header(self._face.shard(context).group, 0)

    def _all(self) -> list[pb.Member]:
        return [_member(record) for _, record in sorted(self._backend.meta.nodes.items())]

    async def _known(self, node: int, context: Any) -> NodeRecord:
        await self._backend.refresh(self._face.timeout(context))
        record = self._backend.meta.nodes.get(node)
        if record is None:
            raise EtcdError("NOT_FOUND", "etcdserver: member not found")
        return record

    async def _in_sync(self, record: NodeRecord) -> bool:
        """Whether a learner runs and has nearly all of every shard. How much it has, each shard's leader knows."""
        backend = self._backend
        if _unstarted(record):
            return False
        lags = [*lags_led(backend.node.host, record.node), *await backend.lags_elsewhere(record.node)]
        return in_sync(backend.meta, backend.node.founding, record.node, lags)


def _unstarted(record: NodeRecord) -> bool:
    return record.state is NodeState.JOINING and not record.claim


def _member(record: NodeRecord) -> pb.Member:
    """A node as etcd lists it; one that hasn't started has no name and no client URLs."""
    started = not _unstarted(record)
    return pb.Member(
        ID=record.node,
        name=record.name if started else "",
        peerURLs=[f"http://{record.peer_address}"],
        clientURLs=[f"http://{record.client_address}"] if started and record.client_address else [],
        isLearner=record.learner,
    )


def _address(urls: Sequence[str]) -> str:
    """The peer address that URLs name. Raises `EtcdError`."""
    if len(urls) > MAX_URLS:
        raise EtcdError("INVALID_ARGUMENT", _SEVERAL)
    found = [_URL.fullmatch(url) for url in urls]
    addresses = {match.group(1) for match in found if match}
    if not addresses or None in found:
        raise EtcdError("INVALID_ARGUMENT", "etcdserver: given member URLs are invalid")
    if len(addresses) > 1:
        raise EtcdError("INVALID_ARGUMENT", _SEVERAL)
    return addresses.pop()


def _check_address(meta: Meta, peer: str, but: int = 0) -> None:
    if any(record.peer_address == peer and record.node != but for record in meta.nodes.values()):
        raise EtcdError(_REFUSED, "etcdserver: Peer URLs already exists")

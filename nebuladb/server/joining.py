"""How a node joins a cluster that is there: what the new one asks, and what a member answers (S14).

The new node asks, again and again, for the id that was issued to its name; its data directory's random number is its
claim to it, and the first claim is the only one. It is told who it is once the meta group is about to have a replica
there. What it was told it keeps before it acts on it, so that a crash anywhere repeats the question or nothing.
"""

from __future__ import annotations

import asyncio
from typing import Final

import grpc.aio
import structlog

from nebuladb.api.backend import Backend
from nebuladb.api.drive import Due, drive
from nebuladb.api.members import fresh_id
from nebuladb.errors import ChangeRefused, IdentityError, InvalidArgument, NebulaError
from nebuladb.node.identity import Founding, Identity
from nebuladb.node.joined import Joined
from nebuladb.node.members import claim_step, find
from nebuladb.pb.nebula.peer.v1 import peer_pb2 as pb
from nebuladb.rpc import PeerTransport
from nebuladb.server.config import Config
from nebuladb.shard import Descriptor

ASK_SECONDS: Final = 0.2
REMIND_SECONDS: Final = 10.0
"""How often a waiting node says what it waits for."""
ANSWER_SECONDS: Final = 1.5
"""Below the caller's deadline (``rpc``)."""


async def join_cluster(config: Config, identity: Identity, transport: PeerTransport) -> Joined:
    """Ask the member at `config.join` until this node is told who it is. Raises `IdentityError` if it is refused."""
    log = structlog.get_logger("joining")
    request = pb.JoinRequest(name=config.name, peer_address=config.advertise_peer_addr, claim=identity.node)
    loop = asyncio.get_running_loop()
    reminded = float("-inf")
    while True:
        try:
            answer = await transport.join(config.join, request)
        except grpc.aio.AioRpcError as error:
            why = f"no member's peer address answers at {config.join}: {error.details()}"
        else:
            if answer.refused:
                raise IdentityError(answer.refused)
            if not answer.wait:
                joined = Joined(
                    Founding.decode(answer.founding),
                    answer.node_id,
                    Descriptor.decode(answer.meta_group),
                    tuple(sorted((peer.node_id, peer.address) for peer in answer.peers)),
                )
                log.info("cluster joined", cluster=f"{joined.founding.cluster:016x}", node=f"{joined.node:016x}")
                return joined
            why = answer.wait
        if loop.time() - reminded >= REMIND_SECONDS:
            log.info("waiting to join", why=why)
            reminded = loop.time()
        await asyncio.sleep(ASK_SECONDS)


class JoinService:
    """A member's side: answers nodes that want to join."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def answer(self, request: pb.JoinRequest) -> pb.JoinResponse:
        """Who the asker is; or why it must wait, or must not join."""
        name, claim = request.name, request.claim
        try:
            await drive(
                self._backend,
                lambda meta: claim_step(meta, name, request.peer_address, claim, fresh_id(meta)),
                Due(ANSWER_SECONDS),
            )
        except (ChangeRefused, InvalidArgument) as error:
            return pb.JoinResponse(refused=error.message)
        except NebulaError as error:
            return pb.JoinResponse(wait=error.message)
        meta, node = self._backend.meta, self._backend.node
        record, own = find(meta, name), meta.own
        if record is None or own is None or record.node not in dict(own.replicas).values():
            return pb.JoinResponse(wait="the cluster makes room for it")
        return pb.JoinResponse(
            founding=node.founding.encode(),
            node_id=record.node,
            meta_group=own.encode(),
            peers=[pb.PeerAddress(node_id=one.node, address=one.peer_address) for one in meta.nodes.values()],
        )

"""Messages for other nodes: each waits for the next frame to its node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nebuladb.node.frame import Envelope, encode_frames
from nebuladb.node.peer import Peer


class Mail:
    """What `Host` has to say. Whoever isn't reached misses it: a message may be lost (house rule 11)."""

    __slots__ = ("_peers", "waiting")

    def __init__(self, peers: Mapping[int, Peer]) -> None:
        self._peers = peers
        self.waiting: dict[int, list[Envelope]] = {}
        """Node → the messages of its next frame; one without any says only that we live."""

    def reaches(self, node: int) -> bool:
        """Whether there is a link to `node`."""
        peer = self._peers.get(node)
        return peer is not None and peer.connected

    def live(self, node: int) -> None:
        """Let `node`, which is connected, have a frame, if there is nothing to say an empty one."""
        self.waiting.setdefault(node, [])

    def add(self, addressed: Iterable[tuple[int, Envelope]]) -> None:
        """Put messages, each with its receiver's node, into the next frames."""
        for node, envelope in addressed:
            self.waiting.setdefault(node, []).append(envelope)

    def frames(self, status: int) -> list[tuple[int, bytes]]:
        """All that waits, as (node, frame). `status`: how our disk is (``node.disk``)."""
        frames: list[tuple[int, bytes]] = []
        waiting, self.waiting = self.waiting, {}
        for node, envelopes in waiting.items():
            peer = self._peers.get(node)
            if peer is not None and peer.connected:
                frames += [(node, frame) for frame in encode_frames(peer.to_it, envelopes, status)]
        return frames

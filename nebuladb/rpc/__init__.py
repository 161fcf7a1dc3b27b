"""Transport between nodes. Knows no database: frames are opaque bytes, and what a peer may be told is its caller's.

`PeerTransport` keeps one gRPC stream a pair of nodes, opened by the one with the lower id, and answers Hello and Found
calls of nodes that are not linked yet. It may lose frames (a full queue, a broken stream), never tears or reorders
them within a stream. Today it stands on ``grpc.aio``; the fast transport comes in under this same surface.
"""

from nebuladb.rpc.peer import PeerEvents, PeerTransport

__all__ = ["PeerEvents", "PeerTransport"]

"""gRPC over HTTP/2 of our own, and the transport between nodes on it. Knows no database.

`server`, `insecure_channel` and `secure_channel` have the surface of ``grpc.aio``'s functions of these names, and take
and give grpc's own types, so that generated code, library servicers and interceptors run on them unchanged; their
packages' docstrings say where they differ. `ssl_server_credentials` and `ssl_channel_credentials` stand in for grpc's,
which can't be opened. ``grpc.aio`` itself is the other engine.

`PeerTransport` keeps one stream a pair of nodes, opened by the one with the lower id if that one knows the other, and
answers the calls Hello, Found, Join and Lags, also of nodes that are not linked. Its frames are opaque bytes, and what
a peer may be told is its caller's. It may lose frames (a full queue, a broken stream), never tears or reorders them
within a stream.
"""

from nebuladb.rpc.channel import Channel, insecure_channel, secure_channel
from nebuladb.rpc.peer import PeerEvents, PeerTransport
from nebuladb.rpc.serving import Server, ServerLimits, server
from nebuladb.rpc.tls import ssl_channel_credentials, ssl_server_credentials

__all__ = [
    "Channel",
    "PeerEvents",
    "PeerTransport",
    "Server",
    "ServerLimits",
    "insecure_channel",
    "secure_channel",
    "server",
    "ssl_channel_credentials",
    "ssl_server_credentials",
]

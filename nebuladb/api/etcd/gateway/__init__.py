"""etcd's JSON gateway: the face's methods over HTTP/1.1, on the client port, as etcd 3.5 serves them (etcd 59 to 61).

`Gateway` knows paths and pages, and makes a protocol for each connection that the port's sniffer hands over. A request
runs the very handler that gRPC runs, in process, with a context of its own: so counting, refusals, deadlines and the
translation of errors are the same code.

Bodies are JSON as protobuf's mapping has it, with etcd's own names (``mapping``). Every bound on a connection has its
name in ``connection``. Who breaks HTTP or a bound loses its connection and nobody else notices.
"""

from nebuladb.api.etcd.gateway.gateway import Gateway

__all__ = ["Gateway"]

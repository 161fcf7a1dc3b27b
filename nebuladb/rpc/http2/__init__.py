"""HTTP/2 (RFC 9113) as gRPC needs it, sans I/O: bytes in, events out, bytes to send."""

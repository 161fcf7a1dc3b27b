"""Every bound on what a peer can make a connection hold or do."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from nebuladb.errors import ConfigurationError
from nebuladb.rpc.http2.frames import MAX_FRAME_SIZE, MAX_WINDOW, MIN_FRAME_SIZE


class Rate(NamedTuple):
    """So many at once, and so many a second in the long run. What exceeds it ends the connection."""

    burst: int
    per_second: float

    def times(self, factor: float) -> Rate:
        """`factor` times as much of both."""
        return Rate(max(1, round(self.burst * factor)), self.per_second * factor)


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one connection. A peer over one of them loses this stream or this connection, and nothing else.

    Memory that one connection's peer can claim is at most, in octets: `connection_window` (data that the owner has not
    consumed) + `waiting_bytes` (data that the peer doesn't let us send) + `frame_size` (a frame that has not come
    whole) + `header_block` + 96 KiB of caches + `header_list` × `concurrent_streams` if the owner keeps the headers of
    every open stream (`ServerLimits` bounds that of all connections together).
    """

    # What we announce in SETTINGS.
    concurrent_streams: int = 1_000
    """Streams that the peer may have open; further ones are refused (REFUSED_STREAM: safe to repeat)."""
    stream_window: int = 1 << 20
    """Octets a stream may receive before its owner has consumed any. Bandwidth of a stream is this a round trip."""
    connection_window: int = 8 << 20
    """Octets that all streams together may hold unconsumed: so much memory a peer costs whose handlers don't read."""
    frame_size: int = 1 << 14
    """Octets of a frame's payload. Larger saves little, and is held for each peer that stops in the middle of one."""
    header_list: int = 16 << 10
    """Octets of a header list as RFC 7541 4.1 counts them (32 a field besides name and value). A request with more
    loses its stream (ENHANCE_YOUR_CALM); one with `HARD_FACTOR` times as much loses the connection, since decoding
    stops and the tables disagree from there on."""
    header_table: int = 4096
    """Octets of the peer's dynamic table that we keep (RFC 7541 4.2)."""

    # What a header block may be.
    header_fields: int = 128
    """Fields of a header list; more lose their stream."""
    header_block: int = 32 << 10
    """Octets of a header block as it comes, over all its frames."""
    continuations: int = 8
    """CONTINUATION frames of a header block (CVE-2024-27316: they come without end)."""

    # What comes too often costs us without helping the peer.
    resets: Rate = field(default=Rate(2_000, 500))
    """Streams that the peer resets (CVE-2023-44487), or makes us reset by breaking a stream's rules or the number of
    concurrent ones (CVE-2025-8671): each frees its place among `concurrent_streams` while its handler still works."""
    settings: Rate = field(default=Rate(100, 10))
    """SETTINGS and GOAWAYs: each is work and the former an answer (CVE-2019-9515)."""
    pings: Rate = field(default=Rate(1_000, 200))
    """PINGs: each is an answer (CVE-2019-9512). The first after we sent DATA is free: gRPC for Go measures the
    bandwidth with one a round trip, thousands a second on one machine."""
    ignored: Rate = field(default=Rate(1_000, 100))
    """Frames that mean nothing to us: PRIORITY, unknown types, answers to no question, resets of what is over
    (CVE-2019-9513)."""
    empty: Rate = field(default=Rate(1_000, 100))
    """Frames without content: DATA without octets that doesn't end a stream (CVE-2019-9518)."""
    window_updates: Rate = field(default=Rate(2_000, 1_000))
    """WINDOW_UPDATEs beyond two for each frame of DATA and the first after any DATA: a peer with a window of one octet
    sends a million of them for a MiB, and may."""

    # What we hold because the peer doesn't take it.
    answers: int = 10_000
    """Frames that the peer made us write (acknowledgements, resets) since the owner last took the output."""
    waiting_bytes: int = 64 << 20
    """Octets of all streams that wait for the peer's windows. The stream that would exceed it is reset."""
    remembered_resets: int = 1_024
    """Streams that we reset and whose frames, sent before the peer knew, are let pass; forgotten oldest first."""
    debug_bytes: int = 256
    """Octets of a GOAWAY's debug data that are kept, and that we send."""

    # For the owner, who has the clock.
    preface_seconds: float = 10.0
    """Until `Connection.ready`; then the transport is closed."""
    idle_seconds: float = 3_600.0
    """Without open streams and without a frame; then `close`."""

    def __post_init__(self) -> None:
        if not MIN_FRAME_SIZE <= self.frame_size <= MAX_FRAME_SIZE:
            raise ConfigurationError(f"frame_size {self.frame_size} is not in {MIN_FRAME_SIZE}..{MAX_FRAME_SIZE}")
        if not max(self.stream_window, self.connection_window) <= MAX_WINDOW:
            raise ConfigurationError(f"a window is over {MAX_WINDOW}")

    def with_streams(self, streams: int) -> Limits:
        """These, for `streams` concurrent streams: what a peer may do to each of them grows with their number."""
        times = streams / self.concurrent_streams
        return replace(
            self,
            concurrent_streams=streams,
            resets=self.resets.times(times),
            ignored=self.ignored.times(times),
            window_updates=self.window_updates.times(times),
            remembered_resets=max(1, round(self.remembered_resets * times)),
        )


HARD_FACTOR: Final = 4
"""A header list of so many times `Limits.header_list` ends the connection. In between it is decoded to its end, so
that the tables agree, and only its stream is lost."""

"""The connection as its owner sees it."""

from __future__ import annotations

from typing import Final

from nebuladb.rpc.http2.errors import ErrorCode, LocalProtocolError
from nebuladb.rpc.http2.frames import MAX_STREAM_ID, PING, frame, goaway_frame
from nebuladb.rpc.http2.limits import Limits
from nebuladb.rpc.http2.reading import Reading

DEFAULTS: Final = Limits()


class Connection(Reading):
    """One end of an HTTP/2 connection, client's or server's.

    Read it from the bottom: `Core` has the state and what ends its parts, `Sending` what the owner says, `Control` and
    `Receiving` what each frame of the peer's does, `Reading` finds the frames. Here is what concerns the whole.
    """

    __slots__ = ()

    def __init__(self, *, client: bool, limits: Limits | None = None) -> None:
        super().__init__(client=client, limits=limits or DEFAULTS)

    def ping(self, payload: bytes) -> None:
        """PING; the answer comes as `PingAcknowledged`.

        Raises:
            LocalProtocolError: it is not of 8 octets.
        """
        if len(payload) != 8:
            raise LocalProtocolError("a ping has 8 octets")
        if not self.closed:
            self._pings += 1
            self._out.append(frame(PING, 0, 0, payload))

    def shutdown(self) -> None:
        """Go, gracefully: no new streams please, those on their way included (section 6.8). Open ones go on.

        A server calls `finish` a round trip later, and closes the transport when `streams` is empty.
        """
        if self.closed or self.going_away:
            return
        self.going_away = True
        self._out.append(goaway_frame(0 if self.client else MAX_STREAM_ID, ErrorCode.NO_ERROR))

    def finish(self) -> None:
        """Say which stream is the last one; what the peer opens after it is not looked at."""
        if self.closed or self._ceiling != MAX_STREAM_ID:
            return
        self.going_away = True
        self._ceiling = self._last_in
        self._out.append(goaway_frame(self._last_in, ErrorCode.NO_ERROR))

    def close(self, code: ErrorCode = ErrorCode.NO_ERROR, message: str = "") -> None:
        """GOAWAY, and nothing is received or sent after it. Open streams are over, without events."""
        if not self.closed:
            self._end(code, message)

"""What a handler sees of a call that came by HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn

import grpc
import grpc.aio

from nebuladb.errors import InvalidArgument
from nebuladb.rpc.metadata import MetadataError, parse_timeout
from nebuladb.rpc.serving.call import MAX_DONE_CALLBACKS

TIMEOUT: Final = "grpc-timeout"
_METADATA_PREFIX: Final = "grpc-metadata-"
_TOKEN: Final = "token"


class Context:
    """The part of ``grpc.aio.ServicerContext`` that handlers use."""

    def __init__(self, headers: Iterable[tuple[bytes, bytes]], peer: str) -> None:
        """Headers become metadata as in etcd: ``Grpc-Metadata-NAME`` is NAME, ``Authorization`` the token (etcd 57).

        Raises `InvalidArgument` for a timeout that is none.
        """
        metadata: list[tuple[str, str]] = []
        self._deadline: float | None = None
        for name_bytes, value_bytes in headers:
            name, value = name_bytes.decode("latin-1").lower(), value_bytes.decode("latin-1")
            if name == TIMEOUT:
                try:
                    seconds = parse_timeout(value_bytes)
                except MetadataError as error:
                    raise InvalidArgument(f"invalid grpc-timeout: {value[:100]}") from error
                # To etcd's gateway none is no time at all, as if the header were not there.
                self._deadline = time.monotonic() + seconds if seconds else None
            elif name == "authorization":
                metadata += [(name, value), (_TOKEN, value)]
            elif name.startswith(_METADATA_PREFIX):
                metadata.append((name.removeprefix(_METADATA_PREFIX), value))
        self._metadata = tuple(metadata)
        self._peer = peer
        self._callbacks: list[Callable[[Any], Any]] = []
        self._done = self._cancelled = False
        self.drop: Callable[[], None] | None = None
        """Ends the call at once, with its connection."""
        self.status: tuple[grpc.StatusCode, str] | None = None
        """What the handler ended the call with; None: it has not said."""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def time_remaining(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def peer(self) -> str:
        return self._peer

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Nobody who speaks JSON is told."""

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Likewise."""

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        """End the call with this status."""
        self.status = code, details
        raise grpc.aio.AbortError("the call was aborted")

    def cancelled(self) -> bool:
        """Whether the client is gone."""
        return self._cancelled

    def done(self) -> bool:
        return self._done

    def add_done_callback(self, callback: Callable[[Any], Any]) -> None:
        """Call `callback(context)` when the call is over."""
        if self._done:
            callback(self)
        elif len(self._callbacks) >= MAX_DONE_CALLBACKS:
            raise grpc.aio.UsageError(f"a call has at most {MAX_DONE_CALLBACKS} done callbacks")
        else:
            self._callbacks.append(callback)

    def finish(self, *, cancelled: bool = False) -> None:
        """The call is over."""
        self._done, self._cancelled = True, cancelled
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

"""What a channel is told by gRPC's own option names, checked and with defaults. Other options are ignored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from nebuladb import __version__

Options = Sequence[tuple[str, Any]]

USER_AGENT: Final = f"grpc-python-nebula/{__version__}"
PICK_FIRST: Final = "pick_first"
ROUND_ROBIN: Final = "round_robin"
LONGEST_MESSAGE: Final = (1 << 32) - 1
"""Bytes: what the length prefix can say; also what -1, gRPC's "unlimited", means."""
SHORTEST_CONNECT: Final = 1.0
"""Seconds that an attempt to connect has at least. A peer that is busy for as long is not away."""
SHORTEST_KEEPALIVE: Final = 0.01

_SECONDS: Final = {
    "grpc.initial_reconnect_backoff_ms": "initial_backoff",
    "grpc.min_reconnect_backoff_ms": "connect_timeout",
    "grpc.max_reconnect_backoff_ms": "max_backoff",
    "grpc.keepalive_time_ms": "keepalive_time",
    "grpc.keepalive_timeout_ms": "keepalive_timeout",
}
_NUMBERS: Final = {
    "grpc.max_receive_message_length": "max_receive_message",
    "grpc.max_send_message_length": "max_send_message",
    "grpc.max_metadata_size": "max_metadata",
    "nebula.max_waiting_calls": "max_waiting_calls",
}
_TEXTS: Final = {
    "grpc.primary_user_agent": "user_agent",
    "grpc.default_authority": "authority",
    "grpc.ssl_target_name_override": "server_name",
    "grpc.lb_policy_name": "policy",
}
_FLAGS: Final = {"grpc.keepalive_permit_without_calls": "keepalive_without_calls"}


@dataclass(frozen=True, slots=True)
class Settings:
    """One channel's. Times in seconds, sizes in bytes."""

    initial_backoff: float = 1.0
    """From the start of the first failed attempt to the next one; then 1.6 times as long each time, a fifth at random
    (gRPC's connection-backoff.md)."""
    max_backoff: float = 120.0
    connect_timeout: float = 20.0
    """For an attempt: name, TCP, TLS and the server's SETTINGS. gRPC calls it min_reconnect_backoff."""
    keepalive_time: float = 0.0
    """Silence after which the server is asked for a sign of life; 0: never."""
    keepalive_timeout: float = 20.0
    keepalive_without_calls: bool = False
    max_receive_message: int = 4 << 20
    max_send_message: int = LONGEST_MESSAGE
    max_metadata: int = 16 << 10
    """Of a header list that the server sends."""
    max_waiting_calls: int = 10_000
    """Calls that wait for a connection, or on one for the server's MAX_CONCURRENT_STREAMS; more fail with
    RESOURCE_EXHAUSTED."""
    user_agent: str = USER_AGENT
    authority: str = ""
    """Instead of the target's host and port."""
    server_name: str = ""
    """That the server's certificate must bear, instead of the target's host."""
    policy: str = PICK_FIRST

    @classmethod
    def of(cls, options: Options | None) -> Self:
        """Raises `ValueError` that names the option."""
        given: dict[str, Any] = {}
        for name, value in options or ():
            if name in _SECONDS:
                given[_SECONDS[name]] = _whole(name, value, least=0) / 1000
            elif name in _NUMBERS:
                number = _whole(name, value, least=-1)
                given[_NUMBERS[name]] = LONGEST_MESSAGE if number < 0 else number
            elif name in _FLAGS:
                given[_FLAGS[name]] = bool(_whole(name, value, least=0))
            elif name in _TEXTS:
                given[_TEXTS[name]] = _text(name, value)
        return cls(**given)

    def __post_init__(self) -> None:
        if self.policy not in (PICK_FIRST, ROUND_ROBIN):
            raise ValueError(
                f"grpc.lb_policy_name: no policy {self.policy!r}; there are {PICK_FIRST} and {ROUND_ROBIN}"
            )
        try:
            self.server_name.encode("idna")  # as TLS asks for it; it would fail in the midst of each connection
        except UnicodeError as error:
            raise ValueError(f"grpc.ssl_target_name_override: {self.server_name!r} is no name: {error}") from None
        if self.user_agent != USER_AGENT:
            object.__setattr__(self, "user_agent", f"{self.user_agent} {USER_AGENT}")
        object.__setattr__(self, "connect_timeout", max(self.connect_timeout, SHORTEST_CONNECT))
        if self.keepalive_time:
            object.__setattr__(self, "keepalive_time", max(self.keepalive_time, SHORTEST_KEEPALIVE))


NAMES: Final = frozenset({*_SECONDS, *_NUMBERS, *_TEXTS, *_FLAGS})
"""The options that mean something here."""


def _whole(name: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: must be a whole number from {least} on, not {value!r}")
    return int(value)


def _text(name: str, value: Any) -> str:
    text = value.decode() if isinstance(value, bytes) else value
    if not isinstance(text, str) or not text.isascii() or not text.isprintable() or text != text.strip():
        raise ValueError(f"{name}: must be printable ASCII, without a space at either end, not {value!r}")
    return text

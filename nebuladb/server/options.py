"""The settings that become a `NodeOptions`: their names, defaults, help, and how their texts are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from nebuladb.errors import ConfigurationError
from nebuladb.node.options import NodeOptions
from nebuladb.node.retention import MODES, Retention, milliseconds
from nebuladb.server.space import AUTO_BALLAST, AUTO_LOW, Reserves, amount

Value = TypeVar("Value")

DEFAULTS: Final[Mapping[str, str]] = {
    "auto-compaction-mode": "periodic",
    "auto-compaction-retention": "0",
    "consistency-check-interval": "1h",
    "min-free-space": "auto",
    "ballast": "auto",
    "log-stall-timeout": "5s",
}

FLAGS: Final[Mapping[str, str]] = {
    "auto-compaction-mode": "What a number without a unit means in auto-compaction-retention: periodic, hours; "
    "revision, revisions.",
    "auto-compaction-retention": "History to keep, like 1h or 1000; 0: all. With exceptions: 1h,users=10m,etcd=0.",
    "consistency-check-interval": "How often a shard's replicas compare their data, like 1h; 0: only when asked.",
    "min-free-space": "Free space, like 2GiB or 5%, below which the node is read-only; auto: 5% and at most 1GiB; 0: "
    "never.",
    "ballast": "Space that a file holds in reserve, like 64MiB; auto: a quarter of min-free-space, at most 64MiB.",
    "log-stall-timeout": "A flush of the log that takes longer makes the node lead nothing, like 5s; 0: never.",
}


def parse(texts: Mapping[str, str]) -> NodeOptions:
    """The options, from every setting's text. Raises `ConfigurationError` whose first word is the setting's name."""
    mode = texts["auto-compaction-mode"]
    if mode not in MODES:
        raise ConfigurationError(f"auto-compaction-mode: {mode!r} is not one of {', '.join(MODES)}")
    return NodeOptions(
        retention=_named("auto-compaction-retention", texts, lambda text: Retention.parse(text, mode)),
        stall=_named("log-stall-timeout", texts, milliseconds),
        check=_named("consistency-check-interval", texts, milliseconds),
    )


def reserves(texts: Mapping[str, str]) -> Reserves:
    """What is kept free on the disk. Raises as `parse`."""
    return Reserves(
        _named("min-free-space", texts, lambda text: amount(text, AUTO_LOW)),
        _named("ballast", texts, lambda text: amount(text, AUTO_BALLAST)),
    )


def _named(key: str, texts: Mapping[str, str], read: Callable[[str], Value]) -> Value:
    try:
        return read(texts[key])
    except ConfigurationError as error:
        raise ConfigurationError(f"{key}: {error.message}") from error

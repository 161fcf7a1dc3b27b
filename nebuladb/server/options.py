"""The settings that become a `NodeOptions`: their names, defaults, help, and how their texts are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from nebuladb.errors import ConfigurationError
from nebuladb.node.options import MIN_SNAPSHOT_RATE, NodeOptions, SnapshotLimits
from nebuladb.node.retention import MODES, Retention, milliseconds
from nebuladb.node.tail import TailLimits
from nebuladb.server.space import AUTO_BALLAST, AUTO_LOW, SIZES, Reserves, amount

Value = TypeVar("Value")

_NUMBER: Final = re.compile(f"([0-9]{{1,15}})({'|'.join(SIZES)})?")

DEFAULTS: Final[Mapping[str, str]] = {
    "auto-compaction-mode": "periodic",
    "auto-compaction-retention": "0",
    "consistency-check-interval": "1h",
    "min-free-space": "auto",
    "ballast": "auto",
    "log-stall-timeout": "5s",
    "lease-reads": "off",
    "log-keep-entries": "100000",
    "log-keep-size": "64MiB",
    "snapshot-rate": "32MiB",
    "watch-progress-notify-interval": "10m",
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
    "lease-reads": "on: leaders answer reads by their lease; the same on all nodes. Clocks must be within 20% of each "
    "other in speed.",
    "log-keep-entries": "Log entries that a shard keeps for a replica that is away; a longer absence takes a snapshot.",
    "log-keep-size": "Bytes of log that it keeps at most, like 64MiB.",
    "snapshot-rate": "Bytes of rows that this node sends in snapshots a second, all together, like 32MiB; at least "
    f"{MIN_SNAPSHOT_RATE >> 10}KiB.",
    "watch-progress-notify-interval": "How often an etcd watch that wants it, and gets no events, hears how far it has "
    "come, like 10m.",
}


def parse(texts: Mapping[str, str]) -> NodeOptions:
    """The options, from every setting's text. Raises `ConfigurationError` whose first word is the setting's name."""
    mode = texts["auto-compaction-mode"]
    if mode not in MODES:
        raise ConfigurationError(f"auto-compaction-mode: {mode!r} is not one of {', '.join(MODES)}")
    if texts["lease-reads"] not in ("on", "off"):
        raise ConfigurationError(f"lease-reads: {texts['lease-reads']!r} is neither on nor off")
    return NodeOptions(
        lease_reads=texts["lease-reads"] == "on",
        retention=_named("auto-compaction-retention", texts, lambda text: Retention.parse(text, mode)),
        stall=_named("log-stall-timeout", texts, milliseconds),
        check=_named("consistency-check-interval", texts, milliseconds),
        tail=_tail(_named("log-keep-entries", texts, _number), _named("log-keep-size", texts, _number)),
        snapshots=SnapshotLimits(rate=_named("snapshot-rate", texts, _rate)),
    )


def reserves(texts: Mapping[str, str]) -> Reserves:
    """What is kept free on the disk. Raises as `parse`."""
    return Reserves(
        _named("min-free-space", texts, lambda text: amount(text, AUTO_LOW)),
        _named("ballast", texts, lambda text: amount(text, AUTO_BALLAST)),
    )


def progress_seconds(texts: Mapping[str, str]) -> float:
    """How often watches are told how far they have come. Raises as `parse`."""
    interval = _named("watch-progress-notify-interval", texts, milliseconds)
    if not interval:
        raise ConfigurationError("watch-progress-notify-interval: 0 is no interval; write one like 10m")
    return interval / 1000


def _tail(entries: int, size: int) -> TailLimits:
    """Cut when there is an eighth too much, but not for less than is worth it."""
    default = TailLimits()
    return TailLimits(
        entries, size, min(default.cut_entries, max(1, entries // 8)), min(default.cut_size, max(1, size // 8))
    )


def _number(text: str) -> int:
    """A positive number, of bytes perhaps: 1000 or 64MiB. Raises `ConfigurationError`."""
    match = _NUMBER.fullmatch(text)
    if match is None or not int(match[1]):
        raise ConfigurationError(f"{text!r} is no positive number; write one like 1000 or 64MiB")
    return int(match[1]) * SIZES[match[2] or "B"]


def _rate(text: str) -> int:
    """Bytes a second, at least `MIN_SNAPSHOT_RATE`. Raises `ConfigurationError`."""
    rate = _number(text)
    if rate < MIN_SNAPSHOT_RATE:
        raise ConfigurationError(
            f"{text} a second is too little: with less than {MIN_SNAPSHOT_RATE >> 10}KiB no snapshot ends"
        )
    return rate


def _named(key: str, texts: Mapping[str, str], read: Callable[[str], Value]) -> Value:
    try:
        return read(texts[key])
    except ConfigurationError as error:
        raise ConfigurationError(f"{key}: {error.message}") from error

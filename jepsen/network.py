"""What carries the traffic between nodes, and how it can be made worse."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jepsen.partitions import Pairs
from nebuladb.server import config
from nebuladb.server.dev import Member, prepare


class NetworkError(Exception):
    """The machine does not let us; the text says what failed."""


class Delay(NamedTuple):
    """Between any two nodes, each way."""

    ms: int
    jitter_ms: int
    loss: float
    """Share of packets."""


class Addresses(NamedTuple):
    """Of one node, HOST:PORT each."""

    client: str
    peer: str
    admin: str
    advertise_peer: str
    """What the other nodes call."""


class Network(ABC):
    """One run's network. `open` comes first; `close` leaves nothing of it, also after a failed `open`."""

    name: str

    @abstractmethod
    async def open(self) -> list[Addresses]:
        """Build it. Raises `NetworkError`."""

    @abstractmethod
    async def close(self) -> None:
        """Take it away, when no node runs any more."""

    @abstractmethod
    async def block(self, pairs: Pairs) -> int:
        """From now on exactly these (from, to) don't get through. Returns how often something didn't until now, since
        the call before."""

    @abstractmethod
    async def delay(self, delay: Delay | None) -> int:
        """From now on everything is so slow; None: as quick as it can be. Returns how often something was slow until
        now, since the call before."""

    def prefix(self, node: int) -> Sequence[str]:
        """The command that a node's own command is put behind."""
        return ()

    def watch(self, pid: Callable[[int], int | None]) -> None:  # noqa: B027 - of use to one that must know
        """`pid(i)` says which process is node i."""


def members(addresses: Sequence[Addresses], directory: Path) -> list[Member]:
    """Nodes n1, n2, … at these addresses, with their configuration files in `directory`."""
    cluster = ",".join(f"n{number}={at.advertise_peer}" for number, at in enumerate(addresses, 1))
    planned = [
        Member(directory / f"n{number}", config.load(_flags(f"n{number}", at, cluster, directory), {}))
        for number, at in enumerate(addresses, 1)
    ]
    prepare(planned, directory)
    return planned


def _flags(name: str, at: Addresses, cluster: str, directory: Path) -> Mapping[str, str]:
    return {
        "name": name,
        "data-dir": str(directory / name),
        "client-addr": at.client,
        "peer-addr": at.peer,
        "admin-addr": at.admin,
        "advertise-peer-addr": at.advertise_peer,
        "initial-cluster": cluster,
    }

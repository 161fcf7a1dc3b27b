"""Which node to ask. Pure: time comes in."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Final

from nebuladb.addresses import split_address
from nebuladb.errors import ConfigurationError

MAX_ENDPOINTS: Final = 64
"""Addresses that a caller names, and as many that it learns, at most."""

REST: Final = 1.0
"""Seconds for which a lost node is asked last."""


class Endpoints:
    """A ring of addresses with a current one: the leader that was hinted at, or the last that answered.

    Invariants: the addresses are distinct and never empty; the current one is among them.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        """`addresses`: each HOST:PORT. The first is asked first. Raises `ConfigurationError`."""
        if isinstance(addresses, str) or not isinstance(addresses, Iterable):
            raise ConfigurationError(f"endpoints is {addresses!r}; give a list of addresses, e.g. ['127.0.0.1:7379']")
        addresses = list(addresses)
        for address in addresses:
            if not isinstance(address, str):
                raise ConfigurationError(f"endpoint {address!r} is no text; give HOST:PORT, e.g. '127.0.0.1:7379'")
        self.addresses = list(dict.fromkeys(a.strip() for a in addresses if a.strip()))
        if not self.addresses:
            raise ConfigurationError("no endpoints; name at least one node's client address, e.g. 127.0.0.1:7379")
        if len(self.addresses) > MAX_ENDPOINTS:
            raise ConfigurationError(f"{len(self.addresses)} endpoints; name at most {MAX_ENDPOINTS}")
        for address in self.addresses:
            try:
                split_address(address)
            except ConfigurationError as error:
                raise ConfigurationError(f"endpoint {error.message}") from error
        self._named = tuple(self.addresses)
        self.current = self.addresses[0]
        self._resting: dict[str, float] = {}

    def pick(self, tried: Container[str], now: float) -> str:
        """The next address to ask: not one of `tried` if that can be, rather one that isn't resting."""
        start = self.addresses.index(self.current)
        ring = self.addresses[start:] + self.addresses[:start]
        fresh = [address for address in ring if address not in tried]
        for address in fresh:
            if self._resting.get(address, now) <= now:
                return address
        return (fresh or ring)[0]

    def all_tried(self, tried: Container[str]) -> bool:
        """Whether everyone has been asked."""
        return all(address in tried for address in self.addresses)

    def worked(self, address: str, *, after_failure: bool) -> None:
        """`address` answered as it should; if that was after another had failed, it is the one to stay with."""
        self._resting.pop(address, None)
        if after_failure and address in self.addresses:  # it may have been forgotten meanwhile
            self.current = address

    def lost(self, address: str, now: float) -> None:
        """`address` can't be reached."""
        if address not in self.addresses:
            return
        self._resting[address] = now + REST
        if address == self.current:
            self.current = self.pick({address}, now)

    def learn(self, addresses: Iterable[str]) -> None:
        """Ask these, too, from now on, after those that the caller named, and none that was learned before: members
        come and go, and their addresses would gather."""
        learned = list(dict.fromkeys(address for address in addresses if address))[:MAX_ENDPOINTS]
        self.addresses = list(dict.fromkeys([*self._named, *learned]))
        self._resting = {address: until for address, until in self._resting.items() if address in self.addresses}
        if self.current not in self.addresses:
            self.current = (learned or self.addresses)[0]

    def hint(self, leader: str) -> None:
        """A server named `leader` as the one to ask. Only endpoints that the caller named, or learned, are followed.

        The others may be out of reach from here, and who names one node wants that node's answers; it forwards.
        """
        if leader in self.addresses:
            self.current = leader

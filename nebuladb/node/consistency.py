"""The replicas of a shard compare their state at one log index, in the background (S28).

A leader proposes a HASH now and then; each replica takes the hash at that very index and tells all others, so that each
node finds a difference by itself, the deviating one included. A report that gets lost is not sent again: the next check
comes.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from nebuladb.env import probe
from nebuladb.node.frame import Envelope, HostMessageType
from nebuladb.node.host import Host
from nebuladb.node.replica import Replica
from nebuladb.raft import Message, StateRole

KEPT: Final = 4
"""Indexes of one shard that reports are kept for."""
VERDICT_MS: Final = 30_000
"""A difference is told after so long even if not all replicas have reported, so that it can't be said who is wrong."""


def hash_messages(replica: Replica, index: int, digest: bytes) -> Iterator[tuple[int, Envelope]]:
    """Tell all other replicas the hash (16 bytes) of the state here at `index`."""
    nonce, context = int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")
    for other, node in replica.nodes.items():
        if other != replica.id:
            message = Message(
                HostMessageType.HASH, replica.id, other, replica.raft.term, index=index, nonce=nonce, context=context
            )
            yield node, Envelope(replica.group, message)


def hash_of(message: Message) -> bytes:
    """What a HASH tells."""
    return message.nonce.to_bytes(8, "big") + message.context.to_bytes(8, "big")


class Verdict(NamedTuple):
    """What the reports at one index say."""

    group: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls on it
    deviating: tuple[int, ...]
    """Replica ids, ascending; empty: all replicas agree."""
    certain: bool = True
    """A majority of the replicas agrees against these; else they only differ from each other."""


@dataclass(slots=True)
class _Reports:
    since: int
    hashes: dict[int, bytes] = field(default_factory=dict)
    """By replica id."""
    judged: bool = False


class Consistency:
    """Says when checks are due, and gathers and compares the replicas' reports. One a process.

    `interval` in ms, 0 = this node proposes no checks, but reports and compares all the same.
    """

    def __init__(self, interval: int, now: int) -> None:
        self._interval = interval
        self._began = now
        self._reports: dict[int, OrderedDict[int, _Reports]] = {}
        self._checked: dict[int, tuple[int, int]] = {}
        """Group → (ms, applied index) at the last check that this node proposed."""

    def due(self, host: Host, now: int) -> list[int]:
        """Groups whose leader, this node, should propose a check now: not those in which nothing happened since."""
        if not self._interval:
            return []
        self._checked = {group: checked for group, checked in self._checked.items() if group in host.replicas}
        found = []
        for group, replica in host.replicas.items():
            if replica.raft.role is not StateRole.LEADER:
                self._checked.pop(group, None)
                continue
            # The shards of a node are spread over the interval: each check reads all of its data.
            first = self._began - group * 7_919 % self._interval
            when, index = self._checked.setdefault(group, (first, 0))
            if now - when >= self._interval and replica.applied > index:
                self._checked[group] = (now, replica.applied + 1)
                found.append(group)
        return found

    def report(
        self, group: int, replicas: Mapping[int, int], replica: int, index: int, digest: bytes, now: int
    ) -> Verdict | None:
        """`replica`, one of `replicas`, has this hash at `index`; what that makes of it, if it can be said by now."""
        if replica not in replicas:
            return None
        kept = self._reports.setdefault(group, OrderedDict())
        reports = kept.setdefault(index, _Reports(now))
        reports.hashes[replica] = digest
        while len(kept) > KEPT:
            kept.popitem(last=False)
        return self._judge(group, index, reports, len(replicas))

    def late(self, now: int) -> list[Verdict]:
        """Differences that are told though some replicas have not reported."""
        found = []
        for group, kept in self._reports.items():
            for index, reports in kept.items():
                if not reports.judged and now - reports.since >= VERDICT_MS and len(set(reports.hashes.values())) > 1:
                    reports.judged = True
                    found.append(Verdict(group, index, tuple(sorted(reports.hashes)), certain=False))
        return found

    def forget(self, group: int) -> None:
        """The group left this node."""
        self._reports.pop(group, None)

    def _judge(self, group: int, index: int, reports: _Reports, count: int) -> Verdict | None:
        hashes = reports.hashes
        digest, most = Counter(hashes.values()).most_common(1)[0]
        if most == len(hashes):
            return Verdict(group, index, ()) if most == count else None
        if most <= count // 2:
            if len(hashes) < count:
                return None
            reports.judged = True
            return Verdict(group, index, tuple(sorted(hashes)), certain=False)
        probe("replicas differ")
        reports.judged = True
        return Verdict(group, index, tuple(sorted(replica for replica, its in hashes.items() if its != digest)))

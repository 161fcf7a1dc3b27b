"""How much history is kept: each shard's leader compacts it, by revisions or by time, as etcd's auto-compaction does.

It only proposes; the floor is replicated state like a client's compaction, and the rows go in the background on each
replica (S23, S24). So two leaders, or two nodes with different rules, can at worst compact more often.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from typing import Final, NamedTuple

from nebuladb.errors import ConfigurationError
from nebuladb.ids import META_GROUP
from nebuladb.node.applier import GroupData
from nebuladb.node.host import Host
from nebuladb.raft import StateRole
from nebuladb.shard import Descriptor

MODES: Final = ("periodic", "revision")
SECOND_MS: Final = 1_000
MINUTE_MS: Final = 60 * SECOND_MS
HOUR_MS: Final = 60 * MINUTE_MS
SAMPLES: Final = 10
"""Looks at a shard's revision in one period: history is kept for a period and at most a tenth more."""
MIN_SAMPLE_MS: Final = 1_000
STEP_PART: Final = 10
"""History by revisions may exceed what is asked for by this part of it, or by `MIN_STEP`, before it is compacted..."""
MIN_STEP: Final = 100
IDLE_MS: Final = 300_000
"""...or by anything once so much time has passed since the last compaction; etcd looks as often."""
AGAIN_MS: Final = 10_000
"""A compaction that was proposed and not applied by then is proposed again."""
_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_DURATION: Final = re.compile(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?")


class Rule(NamedTuple):
    """What of a shard's history is kept; both 0: all of it."""

    revisions: int = 0
    period: int = 0
    """ms"""


META_RULE: Final = Rule(revisions=100)
"""Of the meta group. Nobody reads its history, nor can anybody compact it: each keyspace that was made and dropped
would leave some rows for each shard and node, in every snapshot, and for every start to pass over, for good."""


class Retention(NamedTuple):
    """The rule for all keyspaces, and those that have their own."""

    default: Rule = Rule()
    keyspaces: tuple[tuple[str, Rule], ...] = ()

    @classmethod
    def parse(cls, text: str, mode: str) -> Retention:
        """``1h``, ``1000``, ``0``, or with exceptions ``1h,users=10m,etcd=0``. A number without a unit means revisions
        in the mode `revision` and hours in `periodic`, as in etcd. Raises `ConfigurationError`."""
        default, keyspaces = Rule(), dict[str, Rule]()
        for place, part in enumerate(text.split(",")):
            name, equals, value = (piece.strip() for piece in part.rpartition("="))
            if not equals and place:
                raise ConfigurationError(f"{part!r}: only the first may stand without KEYSPACE=")
            if equals and not name:
                raise ConfigurationError(f"{part!r}: no keyspace has an empty name")
            if name in keyspaces:
                raise ConfigurationError(f"keyspace {name!r} stands there twice")
            rule = _rule(value, mode)
            if equals:
                keyspaces[name] = rule
            else:
                default = rule
        return cls(default, tuple(sorted(keyspaces.items())))

    def of(self, keyspace: str) -> Rule:
        """The rule of a keyspace."""
        return dict(self.keyspaces).get(keyspace, self.default)

    @property
    def meta(self) -> Rule:
        """The meta group's: the default, unless that keeps all."""
        return META_RULE if self.default == Rule() else self.default

    def __bool__(self) -> bool:
        return any(rule != Rule() for rule in (self.default, *dict(self.keyspaces).values()))


def _rule(text: str, mode: str) -> Rule:
    if _NUMBER.fullmatch(text):
        number = int(text)
        if mode == "revision":
            return Rule(revisions=number)
        return Rule(period=number * HOUR_MS)
    try:
        return Rule(period=milliseconds(text))
    except ConfigurationError as error:
        raise ConfigurationError(f"{text!r} is neither a number nor a time like 90s, 30m or 1h30m") from error


def milliseconds(text: str) -> int:
    """A time as a person writes it, 90s, 30m or 1h30m; 0 is 0. Raises `ConfigurationError`."""
    match = _DURATION.fullmatch(text)
    if text == "0":
        return 0
    if not text or match is None:
        raise ConfigurationError(f"{text!r} is no time with units, like 90s, 30m or 1h30m")
    hours, minutes, seconds = (int(group or 0) for group in match.groups())
    return hours * HOUR_MS + minutes * MINUTE_MS + seconds * SECOND_MS


class Compactor:
    """Says which compactions are due. One a process.

    It begins to count time when it starts, as etcd does: what was before is kept a period longer.
    """

    def __init__(self, retention: Retention, now: int) -> None:
        self._retention = retention
        self._began = now
        self._samples: dict[int, deque[tuple[int, int]]] = {}
        """Group → (ms, revision), oldest first; on followers too, so that a new leader need not begin to count."""
        self._proposed: dict[int, tuple[int, int]] = {}
        """Group → (revision, ms) of the last compaction that was proposed."""

    def due(
        self, host: Host, groups: Mapping[int, GroupData], shards: Mapping[int, Descriptor], now: int
    ) -> list[tuple[int, int]]:
        """(group, revision) of the compactions that this node, as a leader, should propose now."""
        for gone in [group for group in self._samples if group not in groups]:
            del self._samples[gone]
        self._proposed = {group: proposed for group, proposed in self._proposed.items() if group in groups}
        found: list[tuple[int, int]] = []
        for group in groups if self._retention else groups.keys() & {META_GROUP}:
            data, shard = groups[group], shards.get(group)
            if group != META_GROUP and shard is None:
                continue  # of which keyspace it is, whose rule may be to keep all, this node has yet to hear
            rule = self._retention.of(shard.keyspace) if shard else self._retention.meta
            revision, floor = data.store.revision, data.store.floor
            target = self._by_time(group, rule.period, revision, now)
            if rule.revisions:
                target = self._by_revisions(group, rule.revisions, revision, floor, now)
            replica = host.replicas.get(group)  # None: a snapshot is about to take its place
            if target <= floor or replica is None or replica.raft.role is not StateRole.LEADER:
                continue
            before, when = self._proposed.get(group, (0, now))
            if target > before or now - when >= AGAIN_MS:
                self._proposed[group] = (target, now)
                found.append((group, target))
        return found

    def _by_time(self, group: int, period: int, revision: int, now: int) -> int:
        """The revision that was the newest one `period` ago; 0 = not known, or nothing is compacted by time."""
        if not period:
            return 0
        samples = self._samples.setdefault(group, deque())
        if not samples or now - samples[-1][0] >= max(MIN_SAMPLE_MS, period // SAMPLES):
            samples.append((now, revision))
        while len(samples) > 1 and samples[1][0] <= now - period:
            samples.popleft()
        when, then = samples[0]
        return then if when <= now - period else 0

    def _by_revisions(self, group: int, keep: int, revision: int, floor: int, now: int) -> int:
        target = revision - keep
        _, when = self._proposed.get(group, (0, self._began))
        enough = target - floor >= max(MIN_STEP, keep // STEP_PART)
        return target if enough or now - when >= IDLE_MS else 0

"""Bounds of the product made small in some seeds, so that short runs reach what a real load reaches in hours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import Final

from nebuladb.ids import DEFAULT_GROUP, ETCD_GROUP, META_GROUP
from nebuladb.kv import deletion, draft, export, loans, pin, sessions, watch
from nebuladb.kv.limits import Limits
from nebuladb.kv.store import Store
from nebuladb.node import (
    applier,
    balancer,
    batches,
    frame,
    looks,
    outgoing,
    pauses,
    peer,
    proposals,
    reads,
    replica,
    retention,
    rows_asked,
    vacuum,
)
from nebuladb.node.memory import MemoryPlan, plan
from nebuladb.node.meta import DEFAULT, ETCD
from nebuladb.node.options import NodeOptions
from nebuladb.node.retention import Retention
from nebuladb.node.tail import TailLimits
from nebuladb.raft import Config, log
from nebuladb.raft import reads as raft_reads
from nebuladb.shard import membership
from nebuladb.sim.core import Core

LEASE_READS: Final = 0.5
"""Part of the seeds in which leaders read by their lease."""

CHOICES: tuple[tuple[object, str, tuple[object, ...]], ...] = (
    (batches, "MAX_BATCH_BYTES", (200, 2_000)),
    (frame, "MAX_FRAME_BYTES", (300, 3_000)),
    (batches, "MAX_UNSYNCED_BYTES", (2_000,)),
    (batches, "MAX_BATCHES_IN_FLIGHT", (2, 3)),
    (replica, "MAX_ENTRY_COMMANDS", (1, 3)),
    # Of fewer, one that is lost for good might be half.
    (membership, "MAX_VOTERS", (3,)),
    (replica, "MAX_SLICE_BYTES", (1, 500)),
    (replica, "MAX_ENTRIES_IN_FLIGHT", (1, 8)),
    (log, "CONFLICT_SCAN", (1, 3)),
    (balancer, "STEADY_MS", (300,)),
    (balancer, "RETRY_MS", (500,)),
    (applier, "TURN_ROWS", (1, 8)),
    (applier, "BACKGROUND_ROWS", (20, 100)),
    # A message for each of the other members at least: else there would be some whom no candidate ever asks.
    (batches, "MAX_HELD", (6,)),
    (peer, "FORWARD_WINDOW", (8,)),
    (draft, "HISTORY_STRIDE", (2, 5)),
    (deletion, "MIN_RUN", (2,)),
    (sessions, "MAX_SESSIONS", (4,)),
    (sessions, "SESSION_BYTES", (100,)),
    (watch, "LARGE", (1, 2)),
    (watch, "MAX_DELIVERIES", (1, 2)),
    (raft_reads, "MAX_WAITING_READS", (2,)),
    (reads, "MAX_READS", (4,)),
    (proposals, "MAX_PENDING", (8,)),
    # One entry an append: what a leader found in its log and what it began its term with arrive, and count, apart. Few
    # on their way: each that overtakes another is refused, as none is on a stream, and all behind it come anew.
    (replica, "Config", (partial(Config, max_append_bytes=1, max_inflight_messages=8),)),
    # The store's limits and record share, where its owner gives none.
    (
        Store.__init__,
        "__defaults__",
        (
            (Limits(slice_rows=1), None),
            (Limits(slice_rows=8, slice_bytes=500, dead_rows=1), None),
            (Limits(slice_rows=8, snapshot_age=10), None),
        ),
    ),
    # A snapshot of more chunks than are on their way at once; in whole ones all that a world has fits in one.
    (export, "CHUNK_BYTES", (1_000,)),
    (outgoing, "WINDOW_CHUNKS", (2,)),
    (retention, "MIN_STEP", (3,)),
    # Rows that come from the disk in parts, or only the first of them; reads that must wait for others' to be done.
    (rows_asked, "ROWS_AT_ONCE", (1, 3)),
    (loans, "FETCH_BYTES", (100, 2_000)),
    (loans, "FIRST_READ", (1,)),
    (looks, "ROWS_AT_ONCE", (1,)),
    (looks, "FETCH_BYTES", (100,)),
    (looks, "LOOK_BYTES", (1, 1_000)),
    (looks, "ENOUGH_BYTES", (1, 100)),
    (looks, "MAX_LOOKS", (1, 3)),
    (pin, "MIN_ROWS", (1,)),
)
"""Where a bound stands and what else it may be; each keeps its own value in half of the seeds."""

SHORT: Final[tuple[tuple[object, str, int], ...]] = (
    (pauses, "FIRST_MS", 1_000),
    (pauses, "LONGEST_MS", 4_000),
    (vacuum, "PAUSE_MS", 100),
    (vacuum, "REST", 1),
    (vacuum, "FAILED_MS", 200),
)
"""Waits that would outlast what a world has left when its faults are over: these in all seeds (seed 200230)."""

NEEDED: Final = {"revivals": "Config", "halves": "__defaults__"}
"""Ambush → the bound without which what it waits for hardly happens: small in each seed that has no other faults."""
SPARED: Final = {"naps": "STEADY_MS", "echoes": "MAX_READS", "returns": "STEADY_MS"}
"""Likewise, one that stands in its way: a leader that is handed over gives up its lease, one that stood still has many
reads to take at once."""


def small_memory(rng: Random) -> MemoryPlan:
    """A node's memory; in half of its lives caches and outboxes hold next to nothing, some caches nothing at all."""
    whole = plan()
    if not rng.randrange(2):
        return whole
    return whole._replace(records=rng.choice((0, 400)), recent_entries=4_000, outboxes=2_000)


def small_tail(rng: Random) -> TailLimits:
    """How much of its logs a node keeps; in half of its lives next to nothing."""
    if rng.randrange(2):
        return TailLimits()
    entries = rng.choice((1, 5, 30))
    return TailLimits(entries=entries, cut_entries=rng.choice((1, 3, 30)))


def small_options(rng: Random, core: Core) -> NodeOptions:
    """How a node is set: in some of its lives it compacts by a rule, compares replicas, is impatient with its disk. All
    nodes of a cluster, and all their lives, have the same lease reads."""
    tail, ambush = small_tail(rng), core.drawn.ambush
    retention = Retention.parse(*rng.choice(RETENTIONS))
    for group, keyspace in ((0, ""), (DEFAULT_GROUP, DEFAULT), (ETCD_GROUP, ETCD)):
        core.floors.rule(retention.of(keyspace), group)
    core.floors.rule(retention.meta, META_GROUP)
    return NodeOptions(
        retention=retention,
        tail=TailLimits(entries=1, cut_entries=1) if ambush == "strays" else tail,
        stall=rng.choice((0, 300, 1_000)),
        lease_reads=core.stream("lease reads").random() < LEASE_READS or ambush in ("naps", "handovers", "returns"),
        check=rng.choice((0, 500)),
    )


RETENTIONS: Final = (
    ("0", "periodic"),
    ("3", "revision"),
    ("1s", "periodic"),
    ("2s,etcd=0", "periodic"),
    ("0,default=3,etcd=1s", "revision"),
)
"""Which history a node keeps, as its operator writes it."""


@contextmanager
def small_bounds(rng: Random, ambush: str = "") -> Iterator[None]:
    """For the time of one world, whose only fault is perhaps `ambush`."""
    kept = [(module, name, getattr(module, name)) for module, name, _ in (*CHOICES, *SHORT)]
    try:
        for module, name, span in SHORT:
            setattr(module, name, span)
        for module, name, values in CHOICES:
            small = rng.randrange(2) and name != SPARED.get(ambush)
            if small or name == NEEDED.get(ambush):
                setattr(module, name, rng.choice(values))
        yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)

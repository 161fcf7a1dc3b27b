"""How bad the world is: rates drawn once per seed, so that each seed has a mix of its own (swarm testing)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from random import Random


@dataclass(frozen=True, slots=True)
class Faults:
    """Shares are of 1; the means of times between two faults are in ms, 0 = never."""

    grain: int = 1
    """Time goes in steps of so many ms: in a coarse one much happens at once, in any order."""
    calm: int = 0
    """Nobody does harm before this many ms: else most of a short run is about founding a cluster."""
    delay: int = 2
    """A frame's usual delay is 0 to this many ms."""
    late: float = 0.0
    """Share of frames that take up to `LATE_MS`: they arrive out of order, perhaps in the receiver's next life."""
    loss: float = 0.0
    duplication: float = 0.0
    damage: float = 0.0
    """Share of frames with a flipped bit."""
    astray: float = 0.0
    """Share of frames that arrive anywhere, also where they came from."""
    breaks: float = 0.0
    """Share of clients' requests, and of the answers to them, under which the connection breaks."""
    sync: int = 2
    """A sync's or flush's usual time is 0 to this many ms."""
    slow_sync: float = 0.0
    """Share of syncs that take up to `SLOW_SYNC_MS`."""
    flush_every: int = 1_000
    crash_every: int = 0
    down: int = 1_000
    """The longest that a dead node stays dead, ms: one that is back at once meets the election that it voted in."""
    partition_every: int = 0
    """Halves, one node alone, a leader alone, one direction only, a ring without chords, and flapping ones."""
    ambush_every: int = 0
    """Times when somebody lies in wait for an election (`Ambush`)."""
    ambush: str = ""
    """For what, if always for the same."""
    reset_every: int = 0
    """Links that break although both nodes live."""
    stall_every: int = 0
    """Engines that refuse writes for a while."""
    hang_every: int = 0
    """Disks whose syncs don't end for a while."""
    slow_every: int = 0
    """Disks all of whose syncs are slow for a while."""
    pause_every: int = 0
    """Processes that stand still, and machines that are suspended (S12)."""
    jump_every: int = 0
    """Monotonic clocks that jump ahead."""
    transfer_every: int = 0
    """Leadership transfers that somebody orders."""
    cold: float = 0.0
    """Share of look-ups in the data that take the disk."""
    drift: float = 0.0
    """Clocks run faster or slower by up to this share."""
    full_every: int = 0
    """Disks without room: the node stops, and comes back when there is some. This and the next two: of a minority."""
    short_every: int = 0
    """Disks short of space: the node takes no writes that grow the data, or doesn't even append them (S33)."""
    flip_every: int = 0
    """Disks with a flipped bit: the node stops for good."""
    wipe_every: int = 0
    """Nodes that come back with an empty directory, and are refused (S14)."""
    forget_every: int = 0
    """Nodes that lose their data and keep their log (S15)."""
    away_every: int = 0
    """Nodes that are away until the others have cut their logs."""
    keyspaces: int = 0
    """Keyspaces that a user makes, beside `default` and `etcd`: half of all seeds have three or more."""
    churn_every: int = 0
    """Keyspaces that users drop, and make anew."""
    alarms_every: int = 0
    """Alarms that somebody declares for the whole cluster, and takes back."""
    members_every: int = 0
    """Nodes that an operator adds, removes and replaces. Then no disk is full, damaged or emptied: which nodes may be
    lost besides would have to be known."""
    replaces: bool = False
    """That operator only replaces nodes, and only such as live."""

    @classmethod
    def draw(cls, rng: Random) -> Faults:
        """A mix: each kind is absent from some seeds, rare in others, frequent in the rest."""

        def some(*choices: float) -> float:
            return rng.choice(choices)

        if not rng.randrange(LONE):
            # Several elections must go as they are meant to, so nothing else may happen meanwhile.
            delay, sync, drift = rng.choice((1, 3, 10)), rng.choice((1, 5, 20)), some(0, MAX_DRIFT)
            ambush = draw_ambush(rng, rng)
            changes = ambush == "laggards"
            return cls(
                delay=delay, sync=sync, drift=drift, down=100, ambush_every=200, ambush=ambush,
                members_every=200 * changes, replaces=changes,
            )  # fmt: skip
        drawn = cls(
            grain=rng.choice((1, 5, 10, 20)),
            calm=rng.choice((0, 1_800, 1_800, 1_800)),
            delay=rng.choice((1, 3, 10, 40)),
            late=some(0, 0.002, 0.02),
            loss=some(0, 0, 0.01, 0.1),
            duplication=some(0, 0.01, 0.1),
            damage=some(0, 0, 0.003, 0.03),
            astray=some(0, 0, 0.003, 0.03),
            sync=rng.choice((1, 5, 20)),
            slow_sync=some(0, 0.01, 0.1),
            flush_every=rng.choice((100, 700, 5_000)),
            crash_every=rng.choice((0, 700, 2_000, 5_000)),
            down=rng.choice((40, 400, 1_200)),
            partition_every=rng.choice((0, 0, 1_500, 5_000)),
            ambush_every=rng.choice((0, 0, 300, 1_000)),
            reset_every=rng.choice((0, 500, 3_000)),
            stall_every=rng.choice((0, 0, 1_000)),
            hang_every=rng.choice((0, 0, 2_000)),
            slow_every=rng.choice((0, 0, 2_000)),
            pause_every=rng.choice((0, 0, 2_000)),
            jump_every=rng.choice((0, 0, 2_000)),
            transfer_every=rng.choice((0, 1_000, 4_000)),
            drift=some(0, 0.001, 0.01, 0.05),
            cold=some(0, 0, 0.1, 1),
            full_every=rng.choice((0, 0, 0, 3_000)),
            flip_every=rng.choice((0, 0, 0, 4_000)),
            wipe_every=rng.choice((0, 0, 0, 4_000)),
            keyspaces=rng.choice((0, 1, 1, 2, 1)),
            churn_every=rng.choice((0, 0, 1_500)),
            members_every=rng.choice((0, 0, 600)),
            forget_every=rng.choice((0, 0, 3_000)),
            away_every=rng.choice((0, 0, 2_000)),
            short_every=rng.choice((0, 0, 1_500)),
            alarms_every=rng.choice((0, 0, 0, 1_000)),
            breaks=some(0, 0.003, 0.03),
        )
        mild = replace(drawn, full_every=0, flip_every=0, wipe_every=0, forget_every=0)
        return mild if drawn.members_every else drawn

    def without(self, names: Collection[str]) -> Faults:
        """These kinds left out."""
        calm = Faults()
        return replace(self, **{field.name: getattr(calm, field.name) for field in fields(self) if field.name in names})


def draw_ambush(rng: Random, newer: Random) -> str:
    """One of the kinds; `newer` decides whether it is one of those that came later."""
    kind, share = rng.choice(AMBUSHES[:OLDER]), newer.random()
    if share < NEWER:
        return newer.choice(AMBUSHES[OLDER:-1])
    return AMBUSHES[-1] if share < NEWER + NEWEST else kind


LONE = 3
"""One seed in so many has ambushes and no other faults."""
AMBUSHES = (
    "voters", "leaders", "revivals", "tails", "naps", "strays", "laggards", "halves", "echoes", "losses", "sleeps",
    "handovers", "returns",
)  # fmt: skip
OLDER = 9
"""The first of them, which were drawn from before there were others: most seeds keep what they had."""
NEWER = 0.2
"""Share of the others, but for the last."""
NEWEST = 0.07
"""Share of the last, at the cost of the older ones."""
LATE_MS = 3_000
SLOW_SYNC_MS = 300
FETCH_MS = 50
"""The longest that rows take to come from the disk."""
MAX_DRIFT = 0.05
"""The greatest `Faults.drift`."""

"""A machine stands in for the daemon's pump: what leaves a node when."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields

from nebuladb.ids import DEFAULT_GROUP
from nebuladb.raft import StateRole
from nebuladb.sim.faults import Faults
from nebuladb.sim.links import NOTICE_MS
from nebuladb.sim.machine import Machine
from nebuladb.sim.world import World
from nebuladb.storage.memory import ALWAYS, Fault

CALM = tuple(field.name for field in fields(Faults))
SERVES_MS = 2_500
"""By then a cluster that nobody harms is founded, and clients work."""
SEEDS = range(1, 6)


def frames_of_the_last_turn(seed: int) -> int:
    """How many frames leave a leader in the turn in which it finds its disk full, and gives up."""
    world = World(seed, without=CALM)
    scheduler = world.core.scheduler
    scheduler.run(SERVES_MS)
    leader = next(
        machine
        for machine in world.machines
        if machine.node and machine.node.host.replicas[DEFAULT_GROUP].raft.role is StateRole.LEADER
    )
    sent: Counter[int] = Counter()
    deaths: list[int] = []
    send = leader._send

    def count(place: int, node: int, frame: bytes) -> None:
        sent[scheduler.steps] += 1
        send(place, node, frame)

    def died(machine: Machine) -> None:
        deaths.append(scheduler.steps)
        scheduler.stop()

    leader._send, leader.died = count, died
    leader.full = True
    leader.disk.log.fail(Fault.FULL, ALWAYS)
    scheduler.run(2 * SERVES_MS)
    return sent[deaths[0]]


def test_a_turn_that_ends_its_node_may_have_sent_some_frames_before() -> None:
    assert len({frames_of_the_last_turn(seed) for seed in SEEDS}) > 1


def test_the_link_to_a_node_that_is_wiped_falls_under_the_name_that_it_had() -> None:
    world = World(1, without=CALM)
    world.core.scheduler.run(SERVES_MS)
    wiped, *others = world.machines
    lost = wiped.node_id
    wiped.wipe()
    world.core.scheduler.run(SERVES_MS + NOTICE_MS + 100)
    assert wiped.node_id != lost
    peers = [machine.node.host.peers[lost] for machine in others if machine.node]
    assert [peer.connected for peer in peers] == [False, False]

"""Where many groups write, each gathers what comes while its last entry is in flight."""

from __future__ import annotations

import pytest

from nebuladb.ids import DEFAULT_GROUP, ETCD_GROUP, META_GROUP
from nebuladb.kv.command import Command, Kind
from nebuladb.node import host
from nebuladb.node.entry import encode_command
from nebuladb.node.output import Request
from nebuladb.node.replica import MAX_ENTRIES_IN_FLIGHT, Replica
from tests.unit.node.lone import PUT, SECONDS, Lone
from tests.unit.node.test_lease_line import GROUP, NOW, new_leader, write


def proposes(one: Replica, request: int, *, crowd: bool) -> int:
    """How many entries a further write makes."""
    one.proposals.add(Request(request, GROUP, encode_command(Command(Kind.PUT, b"")), NOW + 1_000))
    last = one.raft.last_index
    one.propose(NOW, lambda _: True, request, crowd=crowd)
    return one.raft.last_index - last


def test_one_entry_is_in_flight_in_a_crowd_and_more_without() -> None:
    one, log = new_leader()
    write(one, log)
    taken = one.next_slice(NOW)
    assert taken is not None
    one.slice_applied(taken.works[-1].index)
    assert [proposes(one, request, crowd=True) for request in (1, 2, 3)] == [1, 0, 0]
    write(one, log)
    assert proposes(one, 4, crowd=True) == 1, "what had gathered goes together once it is committed"
    assert [proposes(one, request, crowd=False) for request in range(5, 8)] == [1] * (MAX_ENTRIES_IN_FLIGHT - 1) + [
        0
    ] * (4 - MAX_ENTRIES_IN_FLIGHT)


@pytest.mark.parametrize(
    ("groups", "crowd"), [((DEFAULT_GROUP,), False), ((DEFAULT_GROUP, ETCD_GROUP, META_GROUP), True)]
)
async def test_a_crowd_is_many_groups_in_one_turn(
    groups: tuple[int, ...], crowd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lone = Lone()
    await lone.serve()
    monkeypatch.setattr(host, "CROWD", 3)
    crowds: list[bool] = []
    propose = Replica._propose_here

    def see(replica: Replica, boottime: int, most: int) -> object:
        crowds.append(most == 1)
        return propose(replica, boottime, most)

    monkeypatch.setattr(Replica, "_propose_here", see)
    await lone.pump.stop()
    for group in groups:
        lone.node.submit(group, PUT, int(SECONDS * 1000) + lone.clock.time)
    while lone.node.host.batches.crowded(lone.node.host._ticks):
        lone.node.host.durable(lone.node.log.last_batch)
    lone.node.turn()
    assert crowds
    assert set(crowds) == {crowd}

"""A data store that takes no writes: its node leads nothing, says why, and refuses what it can't answer (S32, S33)."""

from __future__ import annotations

import pytest

from nebuladb.errors import Unavailable
from nebuladb.ids import DEFAULT_GROUP
from nebuladb.kv.answer import Answer
from nebuladb.kv.command import Command, Kind
from nebuladb.node.node import Node
from nebuladb.node.options import NodeOptions
from nebuladb.storage.memory import ALWAYS, Fault, MemoryEngine
from tests.unit.node.trio import Trio
from tests.unit.node.wire import put_request

PUT = Command(Kind.PUT, put_request(b"k", b"v"))
STALL = 1_000


@pytest.fixture
def trio() -> Trio:
    return Trio.started(options=NodeOptions(stall=STALL))


def engine(node: Node) -> MemoryEngine:
    assert isinstance(node.data, MemoryEngine)
    return node.data


def test_a_node_whose_data_store_takes_no_writes_leads_nothing_and_says_why(
    trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = trio.leader(DEFAULT_GROUP)
    assert place is not None
    node = trio.node(place)
    monkeypatch.setattr(node.data, "trouble", lambda: "No space left on device")
    engine(node).fail(Fault.STALL, ALWAYS)
    node.submit(DEFAULT_GROUP, PUT, trio.time + 60_000)
    trio.run(STALL - 200)
    assert not node.alarms()
    trio.run(3_000)
    assert all(trio.leader(group) != place for group in (1, 2, 3))
    name = node.identity.name
    assert node.alarms() == [
        f"{name}: the data store has taken no writes for {STALL} ms or more: No space left on device"
    ]
    with pytest.raises(Unavailable, match="ask another node"):
        node.submit(DEFAULT_GROUP, PUT, trio.time + 1_000)
    other = (place + 1) % 3
    request = trio.node(other).submit(DEFAULT_GROUP, PUT, trio.time + 10_000)
    trio.until(lambda: isinstance(trio.machines[other].answers.get(request), Answer), "an answer")
    engine(node).heal()
    trio.run(3_000)
    assert node.alarms() == []
    assert not node.host.disk.status
    request = node.submit(DEFAULT_GROUP, PUT, trio.time + 10_000)
    trio.until(lambda: isinstance(trio.machines[place].answers.get(request), Answer), "an answer here, too")


def test_a_data_store_that_refuses_now_and_then_is_slow_and_not_stuck(trio: Trio) -> None:
    place = trio.leader(DEFAULT_GROUP)
    assert place is not None
    node = trio.node(place)
    for _ in range(6):
        engine(node).fail(Fault.STALL, ALWAYS)
        node.submit(DEFAULT_GROUP, PUT, trio.time + 60_000)
        trio.run(STALL - 200)
        engine(node).heal()
        trio.run(50)
    assert not node.alarms()
    assert trio.leader(DEFAULT_GROUP) == place

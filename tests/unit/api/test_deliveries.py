"""What watches hand to the transport has a bound for all of a node together."""

from __future__ import annotations

import asyncio

from nebuladb.api.deliveries import SMALL_BYTES, Deliveries

LARGE = SMALL_BYTES + 1


def test_large_deliveries_wait_in_order_and_small_ones_do_not() -> None:
    deliveries = Deliveries(2 * LARGE)
    rooms = [asyncio.Event() for _ in range(4)]
    assert [deliveries.admits(LARGE, room) for room in rooms] == [True, True, False, False]
    assert deliveries.admits(SMALL_BYTES, asyncio.Event())
    deliveries.give(LARGE)
    assert [room.is_set() for room in rooms] == [False, False, True, False]
    assert not deliveries.admits(LARGE, rooms[3])
    deliveries.forget(rooms[2])
    assert rooms[3].is_set()
    assert deliveries.admits(LARGE, rooms[3])
    deliveries.give(LARGE)
    deliveries.give(LARGE)
    assert deliveries.used == 0
    assert deliveries.admits(100 * LARGE, rooms[0])
    assert not deliveries.admits(LARGE, rooms[1])

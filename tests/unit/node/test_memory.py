from __future__ import annotations

import pytest

from nebuladb.node import memory
from nebuladb.node.memory import DEFAULT_MEMORY, MIN_MEMORY, plan
from nebuladb.storage import rocks


@pytest.mark.parametrize("total", [MIN_MEMORY, 128 << 20, DEFAULT_MEMORY, (1 << 40) + 12345])
def test_the_shares_are_the_budget(total: int) -> None:
    assert total - memory.PARTS < sum(plan(total)) <= total


def test_the_smallest_budget_holds_the_largest_request() -> None:
    smallest = plan(MIN_MEMORY)
    assert min(smallest.writes, smallest.unsynced, smallest.outboxes) > 1_572_864
    assert smallest.log_memtable > 2 << 20


def test_memtables_keep_to_their_share() -> None:
    assert memory.MEMTABLES == rocks.MEMTABLES
    made = plan(128 << 20)
    assert made.data_memtable * memory.MEMTABLES <= made.data_memtables
    assert made.flush_bytes * 2 <= made.data_memtable

"""What an expired request leaves behind: nothing."""

from __future__ import annotations

from nebuladb.node.output import Request
from nebuladb.node.proposals import Proposals
from nebuladb.node.reads import Reads

LEADER = 77


def test_a_forward_that_nobody_waits_for_any_more_is_forgotten() -> None:
    """Its frame or its reply was lost while the link stood: neither will ever end it."""
    proposals = Proposals()
    for number, deadline in ((1, 10), (2, 20)):
        proposals.add(Request(number, 2, b"wire", deadline))
        proposals.sent(proposals.take(1, 100), number, LEADER)
    assert len(proposals.expire(10)) == 1
    assert proposals.forwards == 1
    assert len(proposals.expire(20)) == 1
    assert proposals.forwards == 0


def test_each_late_read_has_an_error_of_its_own() -> None:
    """One that is raised in thousands of tasks would collect all their tracebacks."""
    reads = Reads()
    reads.add(1, 10)
    reads.add(2, 10)
    [(_, one), (_, other)] = reads.expire(10)
    assert one is not None
    assert one is not other

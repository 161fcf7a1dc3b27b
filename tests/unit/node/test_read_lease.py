"""Reads by lease: when it holds, and that two leaders never read at once what only one of them has (S9, S10)."""

from __future__ import annotations

from nebuladb.env import probe
from nebuladb.ids import DEFAULT_GROUP
from nebuladb.kv.answer import Answer
from nebuladb.kv.command import Command, Kind
from nebuladb.node.options import NodeOptions
from nebuladb.node.read_lease import MAX_ASKED, ReadLease, lease_length
from nebuladb.raft import Configuration, StateRole
from tests.unit.node.trio import Trio
from tests.unit.node.wire import put_request

LENGTH = lease_length(10)
ONE, TWO = Configuration((1, 2, 3)), Configuration((1, 2, 3, 4))


def confirmed(lease: ReadLease, context: int, at: int, term: int = 3) -> None:
    lease.asked(context, at, term, ONE)
    lease.confirmed(context)


def test_a_lease_counts_from_the_sending_and_ends_before_the_least_election_timeout() -> None:
    lease = ReadLease(LENGTH)
    assert LENGTH == 360
    assert not lease.holds(1_000, 3, ONE)
    lease.asked(1, 1_000, 3, ONE)
    assert not lease.holds(1_001, 3, ONE)
    lease.confirmed(1)
    assert lease.holds(1_359, 3, ONE)
    assert not lease.holds(1_360, 3, ONE)


def test_it_is_of_one_term_and_one_configuration_and_not_regained_after_a_transfer() -> None:
    lease = ReadLease(LENGTH)
    confirmed(lease, 1, 1_000)
    assert not lease.holds(1_001, 4, ONE)
    assert not lease.holds(1_001, 3, TWO)
    lease.give_up(3)
    assert not lease.holds(1_001, 3, ONE)
    confirmed(lease, 2, 1_100)
    assert not lease.holds(1_101, 3, ONE)
    confirmed(lease, 3, 1_200, term=4)
    assert lease.holds(1_201, 4, ONE)


def test_each_round_of_a_term_makes_it_longer() -> None:
    """Else it was over for good once the term's first round was a while ago, and each read waited for a round trip."""
    lease = ReadLease(LENGTH)
    confirmed(lease, 1, 1_000)
    confirmed(lease, 2, 1_300)
    assert lease.holds(1_300 + LENGTH - 1, 3, ONE)
    assert not lease.holds(1_300 + LENGTH, 3, ONE)


def test_so_many_rounds_are_remembered() -> None:
    lease = ReadLease(LENGTH)
    for context in range(MAX_ASKED + 1):
        lease.asked(context, 1_000, 3, ONE)
    lease.confirmed(0)
    assert not lease.holds(1_001, 3, ONE), "it is forgotten: the oldest one of too many"
    lease.confirmed(1)
    assert lease.holds(1_001, 3, ONE)


def test_switched_off_it_never_holds() -> None:
    lease = ReadLease(0)
    confirmed(lease, 1, 1_000)
    assert not lease.holds(1_000, 3, ONE)


def reading(trio: Trio, place: int) -> bool:
    """Whether a read through a node is answered at this very instant, with no message to anybody."""
    node = trio.node(place)
    request = node.read(DEFAULT_GROUP, trio.time + 10_000)
    turn = node.turn()
    return (request, None) in turn.reads


def leased(trio: Trio) -> int:
    """A leader that was just confirmed."""
    place = trio.leader(DEFAULT_GROUP)
    assert place is not None
    node = trio.node(place)
    node.submit(DEFAULT_GROUP, Command(Kind.PUT, put_request(b"k", b"v")), trio.time + 10_000)
    node.read(DEFAULT_GROUP, trio.time + 10_000)
    trio.settle()
    return place


def founded(*, on: bool = True) -> Trio:
    return Trio.started(options=NodeOptions(lease_reads=on))


def test_a_confirmed_leader_answers_at_once_for_a_while() -> None:
    trio = founded()
    place = leased(trio)
    before = probe.hits["read by lease"]
    assert reading(trio, place)
    assert probe.hits["read by lease"] == before + 1
    trio.time += LENGTH
    trio.node(place).host.boottime = trio.time
    assert not reading(trio, place)


def test_switched_off_every_read_asks() -> None:
    trio = founded(on=False)
    assert not reading(trio, leased(trio))


def test_a_leader_that_nobody_hears_reads_nothing_once_another_may_be_elected() -> None:
    trio = founded()
    old = leased(trio)
    alone = trio.node(old).identity.node
    trio.lose = lambda sender, receiver, frame: alone in (sender, receiver)
    others = [machine for machine in trio.machines if machine.place != old]

    def succeeded() -> bool:
        return any(
            machine.node is not None and machine.node.host.replicas[DEFAULT_GROUP].raft.role is StateRole.LEADER
            for machine in others
        )

    for _ in range(40):
        if succeeded():
            break
        reading(trio, old)
        trio.run(50)
    assert succeeded()
    assert not reading(trio, old)


def test_a_leader_that_hands_over_reads_by_lease_no_more() -> None:
    trio = founded()
    place = leased(trio)
    assert reading(trio, place)
    host = trio.node(place).host
    host.transfer_leadership(DEFAULT_GROUP, trio.node((place + 1) % 3).identity.node)
    assert not reading(trio, place)


def test_a_replica_does_not_vote_just_after_its_start() -> None:
    """The leader is cut off; one of the two voters that confirmed it restarts, and has forgotten. Were it to vote at
    once, the other could be elected while the lease still holds."""
    trio = founded()
    old = leased(trio)
    voter, other = (old + 1) % 3, (old + 2) % 3
    alone = trio.node(old).identity.node
    trio.lose = lambda sender, receiver, frame: alone in (sender, receiver)
    trio.crash(voter)
    trio.start(voter)
    raft = trio.node(other).host.replicas[DEFAULT_GROUP].raft
    raft.campaign(transfer=False)
    trio.settle()
    candidate = trio.node(other).host.replicas[DEFAULT_GROUP]
    assert candidate.raft.role is not StateRole.LEADER
    assert reading(trio, old), "its lease holds still"
    trio.until(lambda: trio.leader(DEFAULT_GROUP) not in (None, old), "another leader")
    assert not reading(trio, old)
    machine = trio.machines[other]
    request = trio.node(other).submit(DEFAULT_GROUP, Command(Kind.PUT, put_request(b"k", b"w")), trio.time + 10_000)
    trio.until(lambda: request in machine.answers, "a write")
    assert isinstance(machine.answers[request], Answer)


def stands(trio: Trio, place: int) -> None:
    """A replica's patience is over."""
    host = trio.node(place).host
    host.replicas[DEFAULT_GROUP].raft.campaign()
    host._dirty[DEFAULT_GROUP] = None


def test_who_answered_a_leader_elects_nobody_though_it_hears_of_a_later_term() -> None:
    """The leader stands still, and doesn't reach one of the others, which stands: its frames are slow. The voter asks
    that one for its vote in turn, and hears from the leader again, which reads by its lease from then on. The slow
    one's answer tells the voter the later term; were it free then, the next request would elect a second leader."""
    trio = founded()
    old = leased(trio)
    voter, other = (old + 1) % 3, (old + 2) % 3
    ids = [trio.node(place).identity.node for place in range(3)]
    rafts = [trio.node(place).host.replicas[DEFAULT_GROUP].raft for place in range(3)]
    for raft in rafts:
        raft._election.timeout = 1_000  # who stands, and when, is told here
    cut, late = {(old, other), (other, old)}, list[bytes]()

    def lost(sender: int, receiver: int, frame: bytes) -> bool:
        way = ids.index(sender), ids.index(receiver)
        if way == (other, voter) and rafts[other].role is StateRole.CANDIDATE:
            late.append(frame)
        return way in cut or frame in late

    trio.lose = lost
    trio.hung.add(old)
    trio.run(500)
    stands(trio, other)
    trio.settle()
    stands(trio, voter)
    trio.settle()
    trio.hung.clear()
    trio.run(100)
    trio.node(old).read(DEFAULT_GROUP, trio.time + 10_000)
    trio.settle()
    assert reading(trio, old), "the voter has confirmed it"
    cut |= {(old, voter), (voter, old)}
    for frame in late:
        trio.node(voter).host.receive(ids[other], frame)
    assert rafts[voter].term == rafts[other].term > rafts[old].term
    trio.lose = lambda sender, receiver, frame: ids[old] in (sender, receiver)
    stands(trio, other)
    trio.settle()
    assert reading(trio, old), "its lease holds still"
    assert rafts[other].role is not StateRole.LEADER
    trio.run(500)
    stands(trio, other)
    trio.settle()
    assert rafts[other].role is StateRole.LEADER
    assert not reading(trio, old)

"""Progress, inflights and the tracker by example; quorums and configuration changes by brute force."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nebuladb.errors import InvalidArgument, InvariantViolation
from nebuladb.raft import Configuration
from nebuladb.raft.confchange import Change, Changer, ChangeType, check
from nebuladb.raft.progress import Progress, ProgressState
from nebuladb.raft.quorum import VoteResult, committed, vote_result
from nebuladb.raft.tracker import ProgressTracker


def progress(following: int = 5, max_count: int = 3, max_bytes: int = 100) -> Progress:
    return Progress(following, max_count, max_bytes)


class TestProgress:
    def test_a_probe_pauses_after_one_append_and_turns_into_a_stream_when_it_is_answered(self) -> None:
        one = progress(5)
        one.sent(9, 10)
        assert one.paused
        assert one.acknowledged(9)
        assert (one.state, one.match, one.next, one.paused) == (ProgressState.REPLICATE, 9, 10, False)

    def test_a_probe_that_is_answered_with_the_match_streams_too(self) -> None:
        one = progress(1)
        one.sent(0, 0)
        assert not one.acknowledged(0)
        assert one.state is ProgressState.REPLICATE

    def test_a_stream_is_bounded_by_count(self) -> None:
        one = progress(1, max_count=2)
        one.acknowledged(0)
        one.sent(1, 10)
        assert (one.inflight_bytes, one.paused) == (10, False)
        one.sent(2, 10)
        assert (one.inflight_bytes, one.paused) == (20, True)
        one.acknowledged(1)
        assert (one.inflight_bytes, one.paused) == (10, False)

    def test_a_stream_is_bounded_by_bytes(self) -> None:
        one = progress(1)
        one.acknowledged(0)
        one.sent(1, 500)
        assert (one.inflight_bytes, one.paused) == (500, True)
        one.acknowledged(1)
        assert (one.inflight_bytes, one.paused) == (0, False)

    def test_a_stream_is_optimistic_and_falls_back_to_its_match(self) -> None:
        one = progress(5)
        one.acknowledged(4)
        for last in (5, 6, 7):
            one.sent(last, 10)
        assert (one.next, one.paused) == (8, True)
        assert one.rejected(7, 3)
        assert (one.state, one.next, one.inflight_bytes) == (ProgressState.PROBE, 5, 0)

    def test_stale_answers_change_nothing(self) -> None:
        one = progress(5)
        one.acknowledged(4)
        assert not one.acknowledged(3)
        assert not one.rejected(4, 0)
        one.become_probe()
        assert not one.rejected(9, 0), "not what is being probed"
        assert (one.match, one.next) == (4, 5)

    @pytest.mark.parametrize(("hint", "following"), [(9, 9), (3, 4), (0, 1)])
    def test_a_rejected_probe_goes_back_to_the_hint_and_at_least_by_one(self, hint: int, following: int) -> None:
        one = progress(10)
        one.sent(12, 10)
        assert one.rejected(9, hint)
        assert (one.next, one.paused) == (following, False)

    def test_a_snapshot_stops_the_stream_until_it_is_in(self) -> None:
        one = progress(5)
        one.become_snapshot(20)
        assert one.paused
        assert not one.rejected(4, 0)
        assert one.acknowledged(7)
        assert one.paused
        assert one.acknowledged(20)
        assert (one.state, one.next) == (ProgressState.REPLICATE, 21)

    def test_after_a_snapshot_that_may_be_in_it_is_probed_behind_it(self) -> None:
        one = progress(5)
        one.become_snapshot(20)
        one.become_probe()
        assert (one.next, one.match) == (21, 0)

    def test_stalled_means_nothing_moved_between_two_heartbeats(self) -> None:
        one = progress(5)
        one.acknowledged(4)
        seen = []
        for acknowledged, sent in [(0, 5), (5, 6), (0, 0), (6, 0), (0, 0)]:
            if acknowledged:
                one.acknowledged(acknowledged)
            if sent:
                one.sent(sent, 10)
            one.heartbeat()
            seen.append(one.stalled)
        assert seen == [False, False, True, False, False]

    def test_a_round_that_has_only_begun_proves_nothing(self) -> None:
        """Who is taken to have caught up becomes a voter, and stops the group for as long as it lags (S13)."""
        behind = progress(1)
        for last in range(10, 20):
            behind.measure(last, 2, 10)
            assert not behind.caught_up, "it holds nothing yet"
        behind.match = 19
        behind.measure(30, 2, 10)
        assert not behind.caught_up, "that round took too long"
        behind.measure(30, 2, 10)
        assert not behind.caught_up, "the next is young, and it doesn't hold what it is of"
        behind.match = 30
        behind.measure(30, 2, 10)
        assert behind.caught_up


class TestTracker:
    def test_replicas_that_stay_keep_their_progress(self) -> None:
        tracker = ProgressTracker(1, 3, 100)
        tracker.configure(Configuration((1, 2)), 5)
        tracker.progress[2].acknowledged(4)
        tracker.configure(Configuration((1, 2), learners=(3,)), 9)
        assert [(r, p.match, p.next) for r, p in tracker.progress.items()] == [(1, 0, 5), (2, 4, 5), (3, 0, 9)]
        assert [r for r, _ in tracker.peers] == [2, 3]
        assert (tracker.votes(3), tracker.votes(2)) == (False, True)
        tracker.configure(Configuration((1, 3)), 9)
        assert [r for r, _ in tracker.peers] == [3]

    def test_joint_configurations_hold_back_commit_and_count_everybody(self) -> None:
        tracker = ProgressTracker(1, 3, 100)
        tracker.configure(Configuration((1, 2, 3), outgoing=(3, 4, 5)), 1)
        for replica, match in {1: 9, 2: 8, 3: 7, 4: 2, 5: 1}.items():
            tracker.progress[replica].acknowledged(match)
        assert committed(tracker.configuration, tracker.progress) == 2
        assert tracker.lowest_match() == 1

    def test_check_finds_a_follower_beyond_the_log(self) -> None:
        tracker = ProgressTracker(1, 3, 100)
        tracker.configure(Configuration((1, 2)), 1)
        tracker.check(0)
        tracker.progress[2].acknowledged(4)
        with pytest.raises(InvariantViolation):
            tracker.check(3)


REPLICAS = range(1, 6)
HALVES = st.sets(st.sampled_from(REPLICAS)).map(lambda ids: tuple(sorted(ids)))


def majorities(voters: tuple[int, ...]) -> list[set[int]]:
    return [
        set(some) for n in range(len(voters) // 2 + 1, len(voters) + 1) for some in itertools.combinations(voters, n)
    ]


@settings(deadline=None)
@given(HALVES.filter(bool), HALVES, st.dictionaries(st.sampled_from(REPLICAS), st.integers(0, 5)))
def test_committed_is_what_some_majority_of_each_half_holds(
    voters: tuple[int, ...], outgoing: tuple[int, ...], match: dict[int, int]
) -> None:
    def held(half: tuple[int, ...], index: int) -> bool:
        return not half or any(all(match.get(r, 0) >= index for r in some) for some in majorities(half))

    expected = max(index for index in range(6) if held(voters, index) and held(outgoing, index))
    known = {replica: progress() for replica in REPLICAS}
    for replica, index in match.items():
        known[replica].match = index
    assert committed(Configuration(voters, outgoing), known) == expected


@settings(deadline=None)
@given(HALVES, HALVES, st.dictionaries(st.sampled_from(REPLICAS), st.booleans()))
def test_a_vote_is_won_or_lost_once_no_further_answer_can_change_it(
    voters: tuple[int, ...], outgoing: tuple[int, ...], votes: dict[int, bool]
) -> None:
    def won(half: tuple[int, ...], yes: set[int]) -> bool:
        return not half or any(some <= yes for some in majorities(half))

    yes = {r for r, granted in votes.items() if granted}
    hopeful = set(REPLICAS) - {r for r, granted in votes.items() if not granted}
    expected = VoteResult.PENDING
    if won(voters, yes) and won(outgoing, yes):
        expected = VoteResult.WON
    elif not (won(voters, hopeful) and won(outgoing, hopeful)):
        expected = VoteResult.LOST
    assert vote_result(Configuration(voters, outgoing), votes) is expected


CHANGES = st.lists(st.builds(Change, st.sampled_from(ChangeType), st.integers(0, 6)), max_size=5)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["simple", "enter", "leave"]), CHANGES), max_size=8))
def test_majorities_of_consecutive_configurations_overlap(steps: list[tuple[str, list[Change]]]) -> None:
    """Thesis §4.1, §4.3: else two leaders could be elected in one term."""
    now = Configuration((1, 2, 3))
    for what, changes in steps:
        changer = Changer(now)
        try:
            if what == "simple":
                following = changer.simple(changes)
            elif what == "enter":
                following = changer.enter_joint(changes, auto_leave=True)
            else:
                following = changer.leave_joint()
        except InvalidArgument:
            continue
        check(following)
        for half in [h for h in (now.voters, now.outgoing) if h]:
            shared = half in (following.voters, following.outgoing)
            overlap = all(a & b for a in majorities(half) for b in majorities(following.voters))
            assert shared or overlap or now.outgoing, "some half stays, or all majorities meet"
        now = following


@pytest.mark.parametrize(
    "wrong",
    [
        Configuration((1,), learners=(1,)),
        Configuration((1,), learners_next=(2,)),
        Configuration((1,), (1, 2), learners_next=(1,)),
        Configuration((1,), auto_leave=True),
    ],
)
def test_a_malformed_configuration_is_refused(wrong: Configuration) -> None:
    with pytest.raises(InvalidArgument):
        check(wrong)

"""The checker against a model of a database that is right, and against each way of being wrong."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.integration.checker import Kind, Observation, Operation, Result, check, drop_acknowledged

ACK, FAILED, UNKNOWN = Result.ACKNOWLEDGED, Result.FAILED, Result.UNKNOWN


def put(key: str, value: str, revision: int, floor: int = 1) -> Operation:
    return Operation(key, Kind.PUT, ACK, floor, revision, value)


def seen(after: int, revision: int, **keys: tuple[str, int]) -> Observation:
    return Observation(after, revision, keys)


def test_an_honest_history_passes() -> None:
    history = [
        put("a", "1", 2),
        Operation("a", Kind.CAS, ACK, 2, 3, "2"),
        Operation("a", Kind.CAS, ACK, 3, 3, "no", matching=False, succeeded=False),
        Operation("a", Kind.GET, ACK, 3, 3, "2", mod_revision=3),
        Operation("a", Kind.DELETE, ACK, 3, 4),
        Operation("a", Kind.GET, ACK, 4, 4),
        Operation("a", Kind.DELETE, ACK, 4, 4, succeeded=False),
        Operation("b", Kind.PUT, FAILED, 4, 0, "no"),
        Operation("c", Kind.PUT, UNKNOWN, 4, 0, "maybe"),
    ]
    assert check(history, [seen(9, 4), seen(9, 5, c=("maybe", 5))]) == []


@pytest.mark.parametrize(
    ("history", "observation", "told"),
    [
        ([put("a", "1", 2)], seen(1, 2), "a is None of revision 0, but must be 1 of revision 2"),
        ([put("a", "1", 2), put("a", "2", 3)], seen(2, 3, a=("1", 2)), "must be 2 of revision 3"),
        ([put("a", "1", 2)], seen(1, 3, a=("1", 3)), "must be 1 of revision 2"),
        ([Operation("a", Kind.PUT, FAILED, 1, 0, "x")], seen(1, 2, a=("x", 2)), "a holds a refused write"),
        ([put("a", "1", 2), Operation("a", Kind.DELETE, ACK, 2, 3)], seen(2, 3, a=("1", 2)), "must be None"),
        ([], seen(0, 2, z=("1", 2)), "z is there, and nobody wrote it"),
        ([put("a", "1", 9, floor=9)], seen(1, 9, a=("1", 9)), "revision 9 had been told before"),
        ([put("a", "1", 2), put("b", "2", 2)], seen(2, 2, a=("1", 2), b=("2", 2)), "has the revision of"),
        ([put("a", "1", 5)], seen(1, 4, a=("1", 5)), "above the shard's 4"),
        ([Operation("a", Kind.CAS, ACK, 1, 1, "x", succeeded=False)], seen(1, 1), "its compare was right"),
        ([Operation("a", Kind.CAS, ACK, 1, 2, "x", matching=False)], seen(1, 2, a=("x", 2)), "its compare was wrong"),
        (
            [put("a", "1", 2), Operation("a", Kind.CAS, ACK, 2, 2, "x", matching=False, succeeded=False)],
            seen(2, 3, a=("x", 3)),
            "a holds a refused write",
        ),
        ([Operation("a", Kind.DELETE, ACK, 1, 2)], seen(1, 2), "it says deleted=True, but the key held None"),
        ([put("a", "1", 2), Operation("a", Kind.GET, ACK, 2, 2)], seen(2, 2, a=("1", 2)), "saw None of revision 0"),
        (
            [put("a", "1", 5), Operation("a", Kind.GET, ACK, 5, 4, "1", mod_revision=5)],
            seen(2, 5, a=("1", 5)),
            "revision 5 had been told before it began",
        ),
        (
            [Operation("a", Kind.CAS, UNKNOWN, 1, 0, "x", matching=False)],
            seen(1, 2, a=("x", 2)),
            "a is x of revision 2",
        ),
    ],
)
def test_each_fault_is_found(history: list[Operation], observation: Observation, told: str) -> None:
    violations = check(history, [observation])
    assert len(violations) == 1
    assert told in violations[0]


def test_an_unknown_write_that_was_seen_has_to_stay() -> None:
    history = [put("a", "1", 2), Operation("a", Kind.PUT, UNKNOWN, 2, 0, "2")]
    assert check(history, [seen(2, 3, a=("1", 2)), seen(2, 3, a=("2", 3)), seen(2, 3, a=("2", 3))]) == []
    assert (
        "a is 1 of revision 2, but must be put a 2"
        in check(history, [seen(2, 3, a=("2", 3)), seen(2, 3, a=("1", 2))])[0]
    )


def test_an_unknown_delete_that_was_seen_has_to_stay() -> None:
    history = [put("a", "1", 2), Operation("a", Kind.DELETE, UNKNOWN, 2)]
    assert check(history, [seen(2, 3, a=("1", 2)), seen(2, 3)]) == []
    assert len(check(history, [seen(2, 3), seen(2, 3, a=("1", 2))])) == 1


def test_an_unknown_write_cannot_undo_an_earlier_revision() -> None:
    history = [put("a", "1", 5), Operation("a", Kind.PUT, UNKNOWN, 5, 0, "2")]
    assert len(check(history, [seen(2, 5, a=("2", 4))])) == 1


def test_a_history_that_goes_on_after_unknown_is_not_ours() -> None:
    with pytest.raises(ValueError, match="goes on with a after an unknown"):
        check([Operation("a", Kind.PUT, UNKNOWN, 1), put("a", "1", 2)], [])


def honest(seed: int, length: int) -> tuple[list[Operation], list[Observation]]:
    """A history of a perfect database, with some unknown outcomes, quiet moments among it."""
    rng = random.Random(seed)
    state: dict[str, tuple[str, int]] = {}
    history: list[Operation] = []
    observations: list[Observation] = []
    revision, names = 1, [f"k{number}" for number in range(5)]
    for number in range(length):
        place = rng.randrange(len(names))
        key, kind, floor = names[place], rng.choice(list(Kind)), revision
        result = rng.choices([ACK, FAILED, UNKNOWN], [8, 1, 1])[0]
        held = state.get(key)
        matching = kind is not Kind.CAS or rng.random() < 0.7
        effect = result is ACK or (result is UNKNOWN and rng.random() < 0.5)
        happens = matching and kind is not Kind.GET and (kind is not Kind.DELETE or held is not None)
        value = None if kind is Kind.DELETE else f"v{number}"
        if effect and happens:
            revision += 1
            if value is None:
                del state[key]
            else:
                state[key] = (value, revision)
        operation = Operation(key, kind, result, floor, revision if result is ACK else 0, value, matching, happens)
        if kind is Kind.GET:
            operation = replace(operation, value=held and held[0], mod_revision=held[1] if held else 0, succeeded=True)
        history.append(operation)
        if result is UNKNOWN:
            names[place] = f"k{number}'"
        if rng.random() < 0.1:
            observations.append(Observation(len(history), revision, dict(state)))
    observations.append(Observation(len(history), revision, dict(state)))
    return history, observations


@given(st.integers(0, 2**32), st.integers(0, 120))
def test_a_perfect_database_passes(seed: int, length: int) -> None:
    history, observations = honest(seed, length)
    assert check(history, observations) == []


@given(st.integers(0, 2**32), st.integers(20, 120))
def test_one_acknowledged_write_dropped_is_found(seed: int, length: int) -> None:
    history, observations = honest(seed, length)
    dropped = drop_acknowledged(history, observations[-1])
    if dropped is not None:
        assert check(history, [*observations[:-1], dropped])

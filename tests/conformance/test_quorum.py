"""Every case of the quorum conformance data (see its README): majorities, joint ones, votes and committed indexes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from nebuladb.raft.configuration import Configuration
from nebuladb.raft.progress import Progress
from nebuladb.raft.quorum import UNBOUNDED, VoteResult, committed, majority_committed, majority_vote, vote_result

SHARED = Path(os.environ.get("NEBULA_SHARED", Path(__file__).parents[3] / "shared"))
DATA = SHARED / "conformance" / "quorum"
ARGUMENT = re.compile(r"(\w+)=(?:\(([^)]*)\)|(\w+))")
RESULTS = {"VoteWon": VoteResult.WON, "VoteLost": VoteResult.LOST, "VotePending": VoteResult.PENDING}


def cases() -> list[tuple[str, str, list[str]]]:
    """(file:line, command, expected lines); a blank line ends the expectation."""
    found = []
    for path in sorted(DATA.glob("*.txt")):
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            if line == "----":
                end = next((i for i in range(number, len(lines)) if not lines[i].strip()), len(lines))
                found.append((f"{path.stem}:{number}", lines[number - 1], lines[number + 1 : end]))
    return found


CASES = cases()


def arguments(command: str) -> dict[str, list[str]]:
    return {
        name: [item.strip() for item in inside.split(",") if item.strip()] if not word else []
        for name, inside, word in ARGUMENT.findall(command)
    }


def spread(values: list[str], voters: tuple[int, ...], outgoing: tuple[int, ...]) -> dict[int, str]:
    """The data lists one value a replica, in the order in which the two halves name them; `_` is unknown."""
    replicas = list(dict.fromkeys((*voters, *outgoing)))
    assert len(values) == len(replicas), "the case doesn't give one value a replica"
    return {replica: value for replica, value in zip(replicas, values, strict=True) if value != "_"}


@pytest.mark.skipif(not CASES, reason=f"no conformance data at {DATA}; set NEBULA_SHARED")
@pytest.mark.parametrize(("command", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_quorum_case(command: str, expected: list[str]) -> None:
    given = arguments(command)
    voters = tuple(int(item) for item in given.get("cfg", []))
    outgoing = tuple(int(item) for item in given.get("cfgj", []))
    configuration = Configuration(voters, outgoing)
    if command.startswith("vote"):
        votes = {r: value == "y" for r, value in spread(given.get("votes", []), voters, outgoing).items()}
        result = RESULTS[expected[-1]]
        assert vote_result(configuration, votes) is result
        assert vote_result(Configuration(outgoing, voters), votes) is result, "the halves are equal"
        if not outgoing:
            assert majority_vote(voters, votes) is result
    else:
        assert command.startswith("committed")
        progress = {replica: Progress(1, 1, 1) for replica in (*voters, *outgoing)}
        for replica, value in spread(given.get("idx", []), voters, outgoing).items():
            progress[replica].match = int(value)
        index = UNBOUNDED if expected[-1].endswith("∞") else int(expected[-1])
        assert committed(configuration, progress) == index
        assert committed(Configuration(outgoing, voters), progress) == index
        if not outgoing:
            assert majority_committed(voters, progress) == index


@pytest.mark.skipif(not CASES, reason=f"no conformance data at {DATA}; set NEBULA_SHARED")
def test_no_quorum_case_is_overlooked() -> None:
    written = sum(path.read_text().count("\n----\n") for path in DATA.glob("*.txt"))
    assert len(CASES) == written > 100

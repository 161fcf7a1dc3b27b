"""Every case of the configuration-change conformance data: simple changes, joint ones, learners (see its README)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nebuladb.errors import InvalidArgument
from nebuladb.raft.confchange import Change, Changer, ChangeType
from nebuladb.raft.configuration import Configuration
from nebuladb.raft.tracker import ProgressTracker

SHARED = Path(os.environ.get("NEBULA_SHARED", Path(__file__).parents[3] / "shared"))
FILES = sorted((SHARED / "conformance" / "confchange").glob("*.txt"))


def cases(path: Path) -> Iterator[tuple[int, str, list[Change], str]]:
    """(line, command, changes, expected) of each case; `#` begins a comment, a blank line ends a case."""
    for number, block in enumerate(path.read_text().split("\n\n")):
        lines = [line for line in block.splitlines() if line.strip() and not line.startswith("#")]
        if not lines:
            continue
        middle = lines.index("----")
        words = " ".join(lines[1:middle]).split()
        # etcd's core also takes changes that change nothing: of type `u`, and of replica 0. Ours has no use for them.
        changes = [Change(ChangeType(word[0]), int(word[1:])) for word in words if word[0] != "u" and word[1:] != "0"]
        yield number, lines[0], changes, "\n".join(lines[middle + 1 :])


def shown(tracker: ProgressTracker) -> str:
    """A configuration and its progress as the data writes them."""
    voters, outgoing, learners, learners_next, auto_leave = tracker.configuration

    def ids(replicas: tuple[int, ...]) -> str:
        return f"({' '.join(map(str, replicas))})"

    line = "voters=" + ids(voters)
    line += f"&&{ids(outgoing)}" if outgoing else ""
    line += f" learners={ids(learners)}" if learners else ""
    line += f" learners_next={ids(learners_next)}" if learners_next else ""
    line += " autoleave" if auto_leave else ""
    progress = [
        f"{replica}: State{one.state.value.capitalize()} match={one.match} next={one.next}"
        + (" learner" if replica in learners else "")
        for replica, one in tracker.progress.items()
    ]
    return "\n".join([line, *progress])


def change(configuration: Configuration, command: str, changes: list[Change]) -> Configuration:
    changer = Changer(configuration)
    name, _, option = command.partition(" ")
    if name == "simple":
        return changer.simple(changes)
    if name == "enter-joint":
        return changer.enter_joint(changes, auto_leave=option == "autoleave=true")
    assert command == "leave-joint"
    return changer.leave_joint()


@pytest.mark.skipif(not FILES, reason=f"no conformance data under {SHARED}; set NEBULA_SHARED")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_confchange_file(path: Path) -> None:
    tracker = ProgressTracker(0, max_count=10, max_bytes=1)
    ran = 0
    # In the data the log grows by one entry a command, and a new replica is probed from its end.
    for last, (number, command, changes, expected) in enumerate(cases(path)):
        try:
            configuration = change(tracker.configuration, command, changes)
        except InvalidArgument as refused:
            result = refused.message
        else:
            tracker.configure(configuration, last)
            result = shown(tracker)
        assert result == expected, f"{path.name}, case {number}: {command}"
        ran += 1
    assert ran == path.read_text().count("\n----\n")


@pytest.mark.skipif(not FILES, reason=f"no conformance data under {SHARED}; set NEBULA_SHARED")
def test_no_confchange_file_is_missing() -> None:
    assert len(FILES) == 9

"""Nodes come, go and are replaced while clients write; nothing acknowledged is lost, and who was removed stops."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

from tests.integration.checker import Observation, check
from tests.integration.cluster import ClusterError
from tests.integration.load import Load
from tests.integration.members import REMOVED_EXIT, Growing

WRITES = 60
"""Acknowledged ones between two changes."""
SECONDS = 60.0


async def under_load(cluster: Growing, changes: list[Callable[[], None]]) -> Load:
    """Each change with writes before, meanwhile and after it; then every key is read through every node that runs."""
    load = Load(cluster.endpoints, random.Random(1))
    load.start()
    try:
        for change in changes:
            await _progress(load)
            await asyncio.to_thread(change)
        await _progress(load)
        await load.pause()
        observations: list[Observation] = [await load.observe(place) for place in cluster.running]
        assert check(load.history, observations) == []
        await asyncio.to_thread(cluster.same_everywhere)
    finally:
        await load.close()
    return load


async def _progress(load: Load) -> None:
    if not await load.wait_acknowledged(load.acknowledged + WRITES, SECONDS):
        raise ClusterError("the load got no further")


def remove(cluster: Growing, place: int, through: int) -> None:
    """Remove a node that runs: it stops by itself, and says why."""
    cluster.done("member", "remove", cluster.name(place), through=through)
    assert cluster.wait_exit(place) == REMOVED_EXIT
    assert "was removed from its cluster" in cluster.log_file(place).read_text()


def test_from_one_node_to_three_to_five_and_back_to_three_under_load(tmp_path: Path) -> None:
    with Growing(tmp_path, 1, 5) as cluster:
        cluster.start(0)
        cluster.wait_ready(0)

        def remove_the_leader() -> None:
            leader = cluster.leader()
            remove(cluster, leader, next(place for place in cluster.running if place != leader))

        def remove_the_first() -> None:
            """Through itself, if it isn't gone: it answers before it stops."""
            first = cluster.running[0]
            remove(cluster, first, first)

        changes: list[Callable[[], None]] = [lambda place=place: cluster.add(place) for place in (1, 2, 3, 4)]  # type: ignore[misc]
        load = asyncio.run(under_load(cluster, [*changes, remove_the_leader, remove_the_first]))
        assert load.acknowledged > 6 * WRITES
        assert len(cluster.running) == 3
        states = {row["name"]: row["state"] for row in cluster.listed().values()}
        assert states == dict.fromkeys(map(cluster.name, cluster.running), "member")


def test_a_wiped_node_is_replaced_by_a_fresh_one(tmp_path: Path) -> None:
    with Growing(tmp_path, 3, 4) as cluster:
        cluster.start(0, 1, 2)
        cluster.wait_ready(0, 1, 2)

        def replace() -> None:
            cluster.kill(0)
            cluster.wipe(0)
            cluster.start(0)
            assert cluster.wait_exit(0) == 1
            assert "member replace n1" in cluster.log_file(0).read_text()
            address = cluster.members[3].config.peer_addr
            command = cluster.done("member", "replace", "n1", "n4", "--peer-address", address)
            assert "nebulad start --name n4" in command
            cluster.enter(3, door=1)
            cluster.wait_member(3)
            cluster.wait_for(lambda: cluster.state(0) == "", "n1 is gone")

        asyncio.run(under_load(cluster, [replace]))
        assert cluster.running == [1, 2, 3]


def test_a_dead_node_is_removed_and_stops_when_it_comes_back(tmp_path: Path) -> None:
    with Growing(tmp_path, 3, 3) as cluster:
        cluster.start()
        cluster.wait_ready()
        victim = cluster.leader()
        cluster.kill(victim)
        others = cluster.running
        cluster.done("member", "remove", cluster.name(victim))
        cluster.start(victim)
        assert cluster.wait_exit(victim) == REMOVED_EXIT
        assert "was removed from its cluster" in cluster.log_file(victim).read_text()
        refused = cluster.cli("member", "remove", cluster.name(others[0]), through=others[1])
        assert refused.returncode == 0, refused.stderr
        assert cluster.wait_exit(others[0]) == REMOVED_EXIT
        last = cluster.cli("member", "remove", cluster.name(others[1]))
        assert (last.returncode, "last member" in last.stderr) == (1, True)
        assert cluster.done("put", "k", "v", through=others[1]) == "OK\n"


def test_what_is_unsafe_is_refused_with_the_reason(tmp_path: Path) -> None:
    with Growing(tmp_path, 3, 3) as cluster:
        cluster.start()
        cluster.wait_ready()
        free = "127.0.0.1:9"
        for arguments, reason in (
            (["remove", "n9"], "there is no node 'n9'"),
            (["add", "n2", "--peer-address", free], "choose another name"),
            (["add", "n4", "--peer-address", cluster.members[0].config.peer_addr], "has the peer address"),
            (["replace", "n1", "n2", "--peer-address", free], "a name of its own"),
            (["promote", "n9"], "there is no node 'n9'"),
        ):
            refused = cluster.cli("member", *arguments)
            assert (refused.returncode, reason in refused.stderr) == (1, True), refused.stderr
        cluster.kill(2)
        cluster.wait_for(
            lambda: "no live majority" in cluster.cli("member", "remove", "n1", through=1).stderr, "refused"
        )
        assert sorted(cluster.listed()) == ["n1", "n2", "n3"]


def test_who_missed_a_replacement_and_the_new_member_are_a_majority(tmp_path: Path) -> None:
    """Neither of the two others is left to tell it who came."""
    with Growing(tmp_path, 3, 4) as cluster:
        cluster.start(0, 1, 2)
        cluster.wait_ready(0, 1, 2)
        cluster.kill(1)
        cluster.done("member", "replace", "n3", "n4", "--peer-address", cluster.members[3].config.peer_addr)
        cluster.enter(3, door=0)
        cluster.wait_member(3)
        assert cluster.wait_exit(2) == REMOVED_EXIT
        assert cluster.done("put", "k", "v", through=0) == "OK\n"
        cluster.kill(0)
        cluster.start(1)
        cluster.wait_ready(1, 3)
        assert cluster.done("get", "k", through=1) == "v\n"

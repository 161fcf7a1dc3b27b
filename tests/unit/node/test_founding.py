"""How fresh nodes become one cluster, and who must not take part (S14)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nebuladb.errors import IdentityError
from nebuladb.node.founding import FreshNode, Hello, Step, answer_hello
from nebuladb.node.identity import Founding, Identity, initial_cluster_hash

MEMBERS = {"n1": "a:1", "n2": "b:2", "n3": "c:3"}
HASH = initial_cluster_hash(MEMBERS)


def fresh(name: str, node: int) -> FreshNode:
    return FreshNode(Identity(node, name), MEMBERS)


def hello(name: str, node: int, **fields: Any) -> Hello:
    """A reply of a fresh node that was told the same, but for `fields`."""
    return Hello(0, node, name, HASH, has_data=False)._replace(**fields)


def test_the_node_with_the_least_name_founds_and_the_others_fetch() -> None:
    first, second = fresh("n1", 11), fresh("n2", 12)
    for name, node in (("n2", 12), ("n3", 13)) * 2:
        first.replied(name, hello(name, node))
    for name, node in (("n1", 11), ("n3", 13)):
        second.replied(name, hello(name, node))
    assert first.next() == (Step.FOUND, "n1")
    assert second.next() == (Step.FETCH, "n1")
    founding = first.found(99)
    assert [(node.name, node.node, node.peer_address) for node in founding.nodes] == [
        ("n1", 11, "a:1"), ("n2", 12, "b:2"), ("n3", 13, "c:3")
    ]  # fmt: skip
    second.accept(founding)


def test_who_answered_long_ago_is_asked_once_more_before_the_founding() -> None:
    """A node that was emptied while others were waited for was founded under its former id, and so never got in; with
    two such of five, the cluster had no majority for ever."""
    node = fresh("n1", 11)
    node.replied("n2", hello("n2", 12))
    node.replied("n3", hello("n3", 13))
    assert node.next() == (Step.ASK, "n2")
    assert node.unheard == ["n2", "n3"]
    node.replied("n3", hello("n3", 13))
    node.missed()
    assert node.unheard == ["n2", "n3"], "all in one round"
    node.replied("n3", hello("n3", 13))
    node.replied("n2", hello("n2", 22))
    assert node.unheard == ["n2", "n3"], "n2 was emptied"
    node.replied("n2", hello("n2", 22))
    node.replied("n3", hello("n3", 13))
    assert node.next() == (Step.FOUND, "n1")
    assert [founder.node for founder in node.found(99).nodes] == [11, 22, 13]


def test_a_single_node_founds_at_once() -> None:
    alone = FreshNode(Identity(11, "n1"), {"n1": "a:1"})
    assert alone.next() == (Step.FOUND, "n1")
    assert [node.node for node in alone.found(99).nodes] == [11]


def test_silence_is_not_fresh() -> None:
    node = fresh("n1", 11)
    assert node.silent == ["n2", "n3"]
    assert node.next() == (Step.ASK, "n2")
    node.replied("n2", hello("n2", 12))
    assert node.next() == (Step.ASK, "n3")


def test_a_wiped_node_is_refused_by_whoever_knows_it_with_data() -> None:
    node = fresh("n1", 11)
    reply = hello("n2", 12, cluster=99, has_data=True, known_node=7)
    with pytest.raises(IdentityError, match=r"empty, but n2 knows a node 'n1' with data.*member replace n1"):
        node.replied("n2", reply)


def test_a_node_that_was_wiped_between_its_answer_and_the_founding_learns_of_it() -> None:
    """The founder's document lists its former id, so it is given none; what it was told before does not say why."""
    founders = Founders()
    for other in ("n2", "n3") * 2:
        founders.step("n1", other)
    founders.wipe("n2")
    for other in ("n1", "n3"):
        founders.step("n2", other)
    founders.step("n1", "n1")
    assert founders.disks["n1"].founding is not None
    for _ in range(3):
        founders.step("n2", "n1")
    assert founders.stopped == {"n2"}


def test_a_stranger_is_told_how_to_join() -> None:
    node = fresh("n1", 11)
    told = "`nebula-cli member add n1 --peer-address a:1` and start it with --join b:2"
    with pytest.raises(IdentityError, match=told):
        node.replied("n2", hello("n2", 12, cluster=99, has_data=True, known_node=0))


def test_a_node_that_crashed_before_it_fetched_goes_on() -> None:
    node = fresh("n3", 13)
    node.replied("n2", hello("n2", 12, cluster=99, has_data=True, known_node=13))
    assert node.next() == (Step.FETCH, "n2"), "n1 may be down: the document is with n2 too"


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (hello("n3", 12), "is 'n3', not 'n2'"),
        (hello("n2", 12, initial_cluster_hash=b"other"), "another --initial-cluster"),
    ],
    ids=["another name", "another cluster"],
)
def test_what_was_set_up_wrong_is_named(reply: Hello, text: str) -> None:
    with pytest.raises(IdentityError, match=text):
        fresh("n1", 11).replied("n2", reply)


def test_a_copied_data_directory_founds_nothing() -> None:
    node = fresh("n1", 11)
    node.replied("n2", hello("n2", 11))
    node.replied("n3", hello("n3", 13))
    with pytest.raises(IdentityError, match="copy"):
        node.found(99)


def test_a_document_that_lists_another_id_is_refused() -> None:
    node = fresh("n1", 11)
    node.replied("n2", hello("n2", 12))
    node.replied("n3", hello("n3", 13))
    with pytest.raises(IdentityError, match="does not list this node"):
        fresh("n2", 22).accept(node.found(99))


def test_what_a_node_answers() -> None:
    identity, founding = Identity(12, "n2", 99), Founding(99, ())
    assert answer_hello(Identity(12, "n2"), None, HASH, "n1") == hello("n2", 12)
    assert answer_hello(identity, founding, HASH, "n1") == hello("n2", 12, cluster=99, has_data=True)


class Disk:
    """A node's directory: what survives a crash."""

    def __init__(self, name: str, node: int) -> None:
        self.identity = Identity(node, name)
        self.founding: Founding | None = None


class Founders:
    """Nodes that follow `FreshNode` one step at a time, and lose their memory, or their disk, at any point."""

    def __init__(self) -> None:
        self.ids = 0
        self.clusters = 0
        self.disks: dict[str, Disk] = {}
        self.memory: dict[str, FreshNode] = {}
        self.stopped: set[str] = set()
        for name in MEMBERS:
            self.wipe(name)

    def wipe(self, name: str) -> None:
        """A new, empty directory."""
        self.ids += 1
        self.disks[name] = Disk(name, self.ids)
        self.crash(name)

    def crash(self, name: str) -> None:
        """Start again with what the directory has."""
        self.memory[name] = FreshNode(self.disks[name].identity, MEMBERS)
        self.stopped.discard(name)

    def step(self, name: str, other: str) -> None:
        """One Hello to `other`, if `name` wants one, or what comes next."""
        disk, node = self.disks[name], self.memory[name]
        if disk.founding is not None or name in self.stopped:
            return
        try:
            if other in node.unheard:
                peer = self.disks[other]
                node.replied(other, answer_hello(peer.identity, peer.founding, HASH, name))
                return
            step, source = node.next()
            if step is Step.FOUND:
                self.clusters += 1
                disk.founding = node.found(self.clusters)
            elif step is Step.FETCH:
                founding = self.disks[source].founding
                # As the daemon answers: only to a node that the document lists.
                if founding is not None and founding.node_of(name) == disk.identity.node:
                    node.accept(founding)
                    disk.founding = founding
                else:
                    node.forget(source)
        except IdentityError:
            self.stopped.add(name)  # the process ends; only a person changes that

    def check(self) -> None:
        """No two documents; and each lists its holder under the id that the directory has."""
        documents = [disk.founding for disk in self.disks.values() if disk.founding is not None]
        assert len(set(documents)) <= 1
        for name, disk in self.disks.items():
            assert disk.founding is None or disk.founding.node_of(name) == disk.identity.node


names = st.sampled_from(sorted(MEMBERS))
steps = st.tuples(st.just("step"), names, names)
crashes = st.tuples(st.just("crash"), names, names)
wipes = st.tuples(st.just("wipe"), names, names)


@settings(deadline=None)
@given(st.lists(st.one_of(steps, steps, steps, crashes), max_size=60))
def test_crashes_at_any_point_lead_to_one_cluster(schedule: list[tuple[str, str, str]]) -> None:
    founders = Founders()
    for what, name, other in schedule:
        if what == "step":
            founders.step(name, other)
        else:
            founders.crash(name)
        founders.check()
    for _ in range(6):
        for name in MEMBERS:
            for other in MEMBERS:
                founders.step(name, other)
                founders.check()
    assert not founders.stopped
    assert all(disk.founding is not None for disk in founders.disks.values())


@settings(deadline=None)
@given(st.lists(st.one_of(steps, steps, steps, steps, crashes, wipes), max_size=80))
def test_wiped_nodes_never_make_a_second_cluster(schedule: list[tuple[str, str, str]]) -> None:
    founders = Founders()
    for what, name, other in schedule:
        if what == "step":
            founders.step(name, other)
        elif what == "crash":
            founders.crash(name)
        else:
            founders.wipe(name)
        founders.check()

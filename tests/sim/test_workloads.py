"""Each workload's oracle objects to what it is there to find, and to nothing else."""

from __future__ import annotations

import pytest

from nebuladb.kv.answer import KeyValue, RangeResult
from nebuladb.kv.watcher import Event, EventBatch
from nebuladb.sim.faults import Faults
from nebuladb.sim.invariants.changes import Asked, Changes
from nebuladb.sim.invariants.changes import Event as Change
from nebuladb.sim.linearizability.register import CompareAndSet, Read, Write
from nebuladb.sim.probes import all_probes
from nebuladb.sim.report import Report
from nebuladb.sim.shrink import shrink
from nebuladb.sim.violation import Violation
from nebuladb.sim.workloads.bank import ACCOUNTS, OPENING, Bank
from nebuladb.sim.workloads.register import Registers
from nebuladb.sim.workloads.set import Sets
from nebuladb.sim.workloads.unique import Ids
from nebuladb.sim.world import Result

ALL, A = Asked(b"\0", b"\xff"), Asked(b"a", b"b")


def test_registers_are_checked_and_the_prefix_is_shown() -> None:
    registers = Registers(2)
    registers.add(1, 1, 2, Write(b"a", b"k"), output=True)
    registers.add_unknown(2, 3, CompareAndSet(b"a", b"b", b"k"))
    registers.add(3, 4, 5, Read(b"k"), b"b")
    registers.check()
    registers.add(3, 6, 7, Read(b"k"), b"a")
    with pytest.raises(Violation, match="not linearizable"):
        registers.check()


def _accounts(*balances: int) -> RangeResult:
    kvs = tuple(KeyValue(b"bank/%d" % n, 2, 2, 1, 0, b"%d" % balance) for n, balance in enumerate(balances))
    return RangeResult(kvs, len(kvs), more=False)


def test_money_neither_comes_nor_goes() -> None:
    bank = Bank(2)
    bank.saw(_accounts(), "a read", opened=False)
    bank.saw(_accounts(*[OPENING] * (ACCOUNTS - 2), 0, 2 * OPENING), "a read", opened=True)
    for wrong in (_accounts(), _accounts(*[OPENING] * (ACCOUNTS - 1)), _accounts(*[OPENING + 1] * ACCOUNTS)):
        with pytest.raises(Violation):
            bank.saw(wrong, "a read", opened=True)


def test_an_id_is_handed_out_once_and_rises() -> None:
    ids = Ids(2)
    ids.took(1, 0, "a")
    ids.took(2, 1, "b")
    with pytest.raises(Violation, match="to a and to c"):
        ids.took(1, 0, "c")
    with pytest.raises(Violation, match="after 3"):
        ids.took(3, 3, "c")


def test_a_set_loses_nothing_but_as_a_whole() -> None:
    sets = Sets(2)
    of = sets.current()
    of.certain |= {b"a", b"b"}
    of.open.add(b"c")
    sets.saw(of, {b"a", b"b", b"c"}, set(of.certain), "a read", swept=False)
    for wrong in ({b"a", b"b"}, {b"a", b"b", b"c", b"d"}):
        with pytest.raises(Violation):
            sets.saw(of, wrong, set(of.certain), "a read", swept=False)
    of.sweeping = True
    sets.saw(of, {b"a", b"b", b"c"}, set(of.certain), "a read", swept=False)
    sets.saw(of, set(), set(of.certain), "a read", swept=True)
    with pytest.raises(Violation, match="2 are swept"):
        sets.saw(of, {b"a"}, set(of.certain), "a read", swept=False)
    with pytest.raises(Violation, match="although it was swept"):
        sets.saw(of, {b"a", b"b", b"c"}, set(of.certain), "a read", swept=True)


class Published:
    """Stands for a store that has published these changes."""

    def __init__(self, changes: Changes, *revisions: tuple[int, bytes]) -> None:
        changes.published(9, _Empty())  # type: ignore[arg-type]  # a stand-in
        known = changes._groups[9]
        for revision, key in revisions:
            known.revisions.append(revision)
            known.events[revision] = (Change(_key_value(revision, key), deleted=False),)
            known.highest = revision


class _Empty:
    revision = 1


def _key_value(revision: int, key: bytes) -> KeyValue:
    return KeyValue(key, revision, revision, 1, 0, b"v")


def _batch(revision: int, key: bytes) -> EventBatch:
    return EventBatch(revision, (Event(_key_value(revision, key), deleted=False),))


def test_a_watch_gets_every_event_once_in_order() -> None:
    changes = Changes()
    Published(changes, (2, b"a"), (3, b"b"), (4, b"a"))
    changes.told(9, _batch(2, b"a"), 1, ALL, 0, "w")
    changes.told(9, _batch(4, b"a"), 2, A, 0, "w")
    changes.complete(9, 2, 3, A, "w")
    with pytest.raises(Violation, match="never told of revision 3"):
        changes.told(9, _batch(4, b"a"), 2, ALL, 0, "w")
    with pytest.raises(Violation, match="never told of revision 4"):
        changes.complete(9, 3, 4, ALL, "w")
    with pytest.raises(Violation, match="is told after 4"):
        changes.told(9, _batch(4, b"a"), 4, ALL, 0, "w")
    with pytest.raises(Violation, match="before it was published"):
        changes.told(9, _batch(5, b"a"), 4, ALL, 0, "w")
    with pytest.raises(Violation, match="it was"):
        changes.told(9, _batch(3, b"a"), 2, ALL, 0, "w")
    changes.acknowledged(9, [2, 4], dropped=False)
    with pytest.raises(Violation, match="no replica published"):
        changes.acknowledged(9, [5], dropped=False)
    changes.acknowledged(9, [5], dropped=True)


def test_a_restored_state_is_one_that_was_published() -> None:
    changes = Changes()
    Published(changes, (2, b"a"), (3, b"b"), (4, b"a"))
    then = {b"a": (2, 1, b"v"), b"b": (3, 1, b"v")}
    changes.were(9, 3, then, "a backup")
    changes.were(9, 4, then | {b"a": (4, 1, b"v")}, "a backup")
    for wrong in (
        {},
        then | {b"c": (3, 1, b"v")},
        then | {b"b": (3, 1, b"w")},
        then | {b"b": (3, 2, b"v")},
        then | {b"a": (4, 1, b"v")},
    ):
        with pytest.raises(Violation, match="it was"):
            changes.were(9, 3, wrong, "a backup")
    with pytest.raises(Violation, match="nobody has published"):
        changes.were(9, 5, then, "a backup")


def test_shrinking_leaves_what_is_needed() -> None:
    needed = {"crash_every", "own1@2"}

    def run(without: frozenset[str], seconds: float) -> Result:
        fails = not needed & without and seconds > 2
        return Result(7, Report(), "", "x" if fails else "", "oracle")

    names = ["crash_every", "loss", "late", "own1@2", "own2@2", "bank1@3", "drift"]
    found = shrink(run, run(frozenset(), 5), names, 5.0, lambda _: None)
    assert set(found.without) == set(names) - needed
    assert 2 < found.seconds < 3


def test_faults_can_be_left_out() -> None:
    faults = Faults(loss=0.1, crash_every=700)
    assert faults.without(["loss"]) == Faults(crash_every=700)


def test_the_report_names_probes_that_were_never_hit() -> None:
    report = Report()
    report.probes["log cut"] += 3
    assert "log cut" in all_probes()
    lines = report.table(all_probes())
    assert [line for line in lines if line.endswith(" 3 log cut")]
    assert [line for line in lines if line.startswith("probe    never") and "log cut" not in line]

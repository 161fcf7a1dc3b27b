"""The oracles of answers, histories and alarms agree with the product alone, without a cluster, and object to lies."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nebuladb.kv.answer import Answer, TxnResult
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.history_hash import HistoryHash
from nebuladb.kv.store import Store
from nebuladb.node.node import Node
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.sim.invariants.changes import Changes
from nebuladb.sim.report import Report
from nebuladb.sim.violation import Violation
from nebuladb.sim.workloads.explorer import Explorer
from nebuladb.sim.workloads.hashes import Hashes
from nebuladb.sim.workloads.judge import Judge
from nebuladb.sim.workloads.reclaimed import is_reclaimed
from nebuladb.sim.workloads.shapes import Shapes
from nebuladb.sim.world import World
from nebuladb.storage.engine import Engine
from tests.unit.kv.helpers import GENERATION, GROUP, Log, compact, delete, finish, fresh, put, run

ROUNDS = 400
SEEDS = 120
"""At most; alarms are declared in one of six."""


def _one(store: Store, log: Log, changes: Changes, command: Command) -> Answer:
    [answer] = run(store, log, command)
    changes.published(GROUP, store)
    return answer


def _command(shapes: Shapes, rng: Random) -> Command:
    return Command(Kind.TXN, shapes.txn().SerializeToString()) if rng.random() < 0.9 else compact(shapes.revision - 3)


@pytest.mark.parametrize("seed", range(5))
def test_a_store_answers_what_the_judge_expects(seed: int) -> None:
    rng, (store, _), log, changes = Random(seed), fresh(), Log(), Changes()
    changes.published(GROUP, store)
    judge, shapes, answers = Judge(changes, GROUP, "a test"), Shapes(rng), list[Answer]()
    for _ in range(ROUNDS):
        shapes.revision, shapes.lease = store.revision, rng.choice((0, 0, 7))  # there is no such lease
        command = _command(shapes, rng)
        answer = _one(store, log, changes, command)
        if command.kind == Kind.TXN:
            answers.append(answer)
            judge.wrote(command, answer)
            judge.read(store, shapes.txn(writes=False))
    assert judge.judged > 1.8 * len(answers)
    assert {answer.reason for answer in answers} == {0, 8, 9, 10, 18, 32}


def test_the_judge_objects_to_each_part_of_a_lie() -> None:
    (store, _), log, changes = fresh(), Log(), Changes()
    changes.published(GROUP, store)
    judge = Judge(changes, GROUP, "a test")
    request = kv_pb2.TxnRequest()
    request.success.add().txn.success.add(put=kv_pb2.TxnPut(key=b"any/1", value=b"v"))
    request.success.add(range=kv_pb2.RangeRequest(key=b"any/", range_end=b"any0"))
    command = Command(Kind.TXN, request.SerializeToString())
    first = _one(store, log, changes, command)
    second = _one(store, log, changes, command)
    judge.wrote(command, first)
    judge.wrote(command, second)
    result = cast("TxnResult", second.result)
    for lie in (
        second._replace(revision=first.revision),
        second._replace(result=first.result),
        second._replace(result=result._replace(succeeded=False)),
        second._replace(result=result._replace(results=result.results[:1])),
        Answer(second.revision, None, 32),
        Answer(second.revision, None, 10),
        Answer(second.revision, None, 8, detail=2),
        Answer(second.revision, TxnResult(succeeded=True, results=())),
    ):
        with pytest.raises(Violation):
            judge.wrote(command, lie)
    with pytest.raises(Violation, match="nobody has published"):
        judge.wrote(command, second._replace(revision=second.revision + 2))


def test_the_judge_objects_to_a_read_of_another_moment() -> None:
    (store, _), log, changes = fresh(), Log(), Changes()
    changes.published(GROUP, store)
    request = kv_pb2.TxnRequest()
    request.success.add(range=kv_pb2.RangeRequest(key=b"any/", range_end=b"any0"))
    _one(store, log, changes, put(b"any/1", b"v"))
    judge = Judge(changes, GROUP, "a test")
    judge.read(store, request)
    stale = SimpleNamespace(revision=store.revision - 1, floor=0, read=store.read)
    with pytest.raises(Violation, match="had to be"):
        judge.read(cast("Store", stale), request)


def _node(engine: Engine) -> Node:
    """As much of a node as an oracle looks at."""
    host = SimpleNamespace(replicas={GROUP: SimpleNamespace(generation=GENERATION)})
    return cast("Node", SimpleNamespace(host=host, data=engine))


def test_equal_histories_have_equal_hashes_and_others_are_told() -> None:
    hashes, log = Hashes(GROUP), Log()
    (store, engine), (other, others), (wrong, wrongs) = fresh(), fresh(), fresh()
    run(store, log, put(b"k", b"1"), put(b"k", b"2"))
    run(other, Log(), put(b"k", b"1"), put(b"k", b"2"))
    run(wrong, Log(), put(b"k", b"x"), put(b"k", b"2"))
    hashes.take(_node(engine), "n1")
    hashes.take(_node(others), "n2")
    assert hashes.compared == 1
    with pytest.raises(Violation, match="on n3"):
        hashes.take(_node(wrongs), "n3")
    work = hashes.begin(_node(engine), 2)
    assert isinstance(work, HistoryHash)
    assert work.revision == 2
    work.close()


def test_what_a_compaction_superseded_must_be_gone() -> None:
    (store, engine), log = fresh(), Log()
    run(store, log, put(b"a", b"1"), put(b"a", b"2"), put(b"b", b"1"), delete(b"b"), put(b"c", b"1"), compact(6))
    with pytest.raises(Violation, match="kept beside"):
        is_reclaimed(_node(engine), GROUP, 6, "n1")
    finish(store)
    assert store.reclaimed(6)
    is_reclaimed(_node(engine), GROUP, 6, "n1")
    is_reclaimed(_node(engine), GROUP, store.floor, "n1")


def test_worlds_have_all_of_it() -> None:
    """Whichever seeds they are: those that have an alarm differ with each change of the simulator."""
    total, judged, compared, seed = Report(), 0, 0, 0
    wanted = {
        "alarm declared",
        "alarm taken back",
        "alarm NOSPACE obeyed",
        "alarm CORRUPT obeyed",
        "physical compaction",
    }
    while seed < SEEDS and not (judged > 50 and compared > 200 and wanted <= {*total.faults}):
        seed += 1
        world = World(seed, seconds=4.0)
        result = world.run()
        assert not result.violation, f"seed {seed}: {result.violation}"
        total.add(result.report)
        judged += sum(client.judge.judged for client in world.clients if isinstance(client, Explorer))
        facts: list[Any] = list(world._board.facts.values())
        compared += sum(fact.compared for fact in facts if isinstance(fact, Hashes))
    assert judged > 50
    assert compared > 200
    assert not wanted - {*total.faults}

"""Routing of requests, before and after a node knows its cluster."""

from __future__ import annotations

import asyncio
import gc
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nebuladb.api.backend import Backend, Divided
from nebuladb.errors import InvalidArgument, KeyspaceNotFound, Outcome, Unavailable, WrongEpoch, WrongShard
from nebuladb.ids import META_GROUP
from nebuladb.kv.answer import Answer, KeyValue
from nebuladb.kv.command import Command, Kind
from nebuladb.node.host import Host
from nebuladb.node.identity import Founder, Founding
from nebuladb.node.meta import Meta, founding_request
from nebuladb.node.pump import Pump
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.raft import Configuration
from nebuladb.shard import Descriptor, Role

FOUNDING = Founding(7, (Founder("n1", 11, "a:1"), Founder("n2", 12, "a:2")))


def backend(meta: Meta) -> Backend:
    node: Any = SimpleNamespace(founding=FOUNDING, identity=SimpleNamespace(node=11), meta=meta, host=None)
    return Backend(cast(Pump, SimpleNamespace(node=node)))


def founded() -> Meta:
    request = kv_pb2.TxnRequest.FromString(founding_request(FOUNDING))
    rows = [KeyValue(o.put.key, 2, 2, 1, 0, o.put.value) for o in request.success]
    return Meta(rows)


def test_a_node_that_knows_no_keyspace_yet_says_try_again_and_not_that_there_is_none() -> None:
    with pytest.raises(Unavailable) as caught:
        backend(Meta()).route("default", b"key")
    assert caught.value.retryable


def test_a_key_is_routed_to_its_keyspaces_shard() -> None:
    assert backend(founded()).route("", b"key").group == 2
    assert backend(founded()).route("etcd", b"key").group == 3
    with pytest.raises(KeyspaceNotFound):
        backend(founded()).route("nowhere", b"key")


def test_an_old_epoch_is_refused_with_the_current_one() -> None:
    with pytest.raises(WrongEpoch) as caught:
        backend(founded()).route("default", b"key", epoch=9)
    assert caught.value.epoch == 1


def test_a_lease_is_found_by_the_keyspaces_only_shard_and_a_group_must_be_the_keyspaces() -> None:
    assert backend(founded()).route_lease("etcd", 5).group == 3
    assert backend(founded()).route_group("default", 0).group == 2
    with pytest.raises(WrongShard):
        backend(founded()).route_group("default", 3)


def test_many_groups_are_looked_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []
    shards = [Descriptor(group, "k", 1, b"", b"", (0, 0), ()) for group in range(10, 500)]

    def all_of(keyspace: str) -> list[Descriptor]:
        looks.append(keyspace)
        return shards

    monkeypatch.setattr(Backend, "routing", SimpleNamespace(shards=all_of))
    backend(founded()).check_groups("k", {shard.group: 1 for shard in shards})
    assert looks == ["k"]
    with pytest.raises(WrongShard, match="no shard 500"):
        backend(founded()).check_groups("k", {10: 1, 500: 1})


class Lagging:
    """A pump whose node hears of `news` when the meta group is asked."""

    def __init__(self, before: Meta, news: Meta) -> None:
        self.node: Any = SimpleNamespace(founding=FOUNDING, identity=SimpleNamespace(node=11), meta=before, host=None)
        self._news = news
        self.asked = 0

    async def confirm(self, group: int, timeout: float) -> None:
        assert group == META_GROUP
        self.asked += 1
        self.node.meta = self._news

    def store(self, group: int) -> None:
        pass


async def test_a_node_that_is_about_to_leave_a_shard_takes_no_write_for_it() -> None:
    """What is in flight there when its replica goes would be unknown."""
    at = backend(founded())
    taken: list[int] = []

    async def propose(group: int, command: Command, timeout: float) -> Answer:
        taken.append(group)
        return Answer(2)

    replicas = {2: SimpleNamespace(raft=SimpleNamespace(configuration=Configuration((1, 2))))}
    at.node.host = cast(Host, SimpleNamespace(replicas=replicas))
    at.pump.propose = propose  # type: ignore[method-assign, assignment]
    shard = at.route("", b"key")
    own, other = ({node: replica for replica, node in shard.replicas}[node] for node in (11, 12))
    put = Command(Kind.PUT, b"")
    await at.propose(shard, put, 1.0)
    await at.propose(shard.with_role(other, 12, Role.LEAVING), put, 1.0)
    assert taken == [2, 2]
    with pytest.raises(Unavailable, match="another node") as caught:
        await at.propose(shard.with_role(own, 11, Role.LEAVING), put, 1.0)
    assert caught.value.retryable
    assert caught.value.outcome is Outcome.FAILED
    assert taken == [2, 2]


CONTEXT: Any = SimpleNamespace(time_remaining=lambda: 1.0)


async def test_that_there_is_no_keyspace_is_said_only_when_the_meta_group_agrees() -> None:
    before, news = founded(), founded()
    lagging = Lagging(before, news)
    backend = Backend(cast(Pump, lagging))
    assert await backend.learned(KeyspaceNotFound(), before, CONTEXT), "ask again with what was learned"
    assert not await backend.learned(KeyspaceNotFound(), news, CONTEXT), "nothing new: then it is true"
    assert lagging.asked == 2
    assert await backend.learned(WrongEpoch("", 1), before, CONTEXT), "it has come in the meantime"
    assert await backend.learned(WrongShard(), before, CONTEXT), "likewise; and two shards may be one now"
    assert await backend.learned(Divided(), before, CONTEXT)
    assert not await backend.learned(InvalidArgument(), before, CONTEXT), "which it is, whatever is new"
    assert lagging.asked == 2


@pytest.mark.parametrize(("remaining", "seconds"), [(5.0, 4.75), (1.0, 0.8), (None, 5.0), (1e9, 299.75), (-1.0, -0.8)])
def test_an_answer_comes_before_the_callers_deadline(remaining: float | None, seconds: float) -> None:
    context: Any = SimpleNamespace(time_remaining=lambda: remaining)
    assert backend(founded()).answer_within(context) == pytest.approx(seconds)


async def test_what_fails_for_a_caller_that_has_gone_is_told_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended in the log as "Task exception was never retrieved", with a traceback."""
    told: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context))
    at, begun, release = backend(founded()), asyncio.Event(), asyncio.Event()

    async def fails(*_: object) -> bytes:
        begun.set()
        await release.wait()
        raise Unavailable

    async def current(*_: object) -> None: ...

    monkeypatch.setattr(at, "_with_keys", fails)
    monkeypatch.setattr(at, "current", current)
    caller = asyncio.create_task(at.lease(at.route("", b"key"), 1, 1.0, lambda *_: None, keys=True))  # type: ignore[arg-type]
    await begun.wait()
    caller.cancel()
    await asyncio.wait((caller,))
    del caller
    release.set()
    async with asyncio.timeout(10):
        await at.listing.acquire()
    gc.collect()
    assert told == []

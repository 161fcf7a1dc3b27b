"""What is said of changes that were, or may have been, done before something came in the way."""

from __future__ import annotations

import grpc.aio
import pytest

from nebuladb.api.drive import Due, drive
from nebuladb.client import AsyncClient
from nebuladb.errors import ChangeRefused, NebulaError, NoLeader, Outcome, Unavailable, UnknownOutcome
from nebuladb.ids import DEFAULT_GROUP
from nebuladb.kv.answer import Answer
from nebuladb.kv.command import Command
from nebuladb.node.members import find
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.shard import Descriptor
from tests.unit.api.served import Served, error_detail
from tests.unit.node.lone import SECONDS


async def test_a_member_that_may_have_been_added_is_not_called_a_failure(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer of the step is lost with its leader, and there is none after it."""
    backend = served.backend
    propose = backend.propose

    async def lose(shard: Descriptor, command: Command, timeout: float) -> Answer:
        await propose(shard, command, timeout)

        async def refresh(timeout: float) -> None:
            raise NoLeader

        monkeypatch.setattr(backend, "refresh", refresh)
        raise UnknownOutcome

    monkeypatch.setattr(backend, "propose", lose)
    async with AsyncClient([served.address], timeout=2.0) as client:
        with pytest.raises(NebulaError) as caught:
            await client.add_member("n9", "127.0.0.1:9")
    assert find(served.node.meta, "n9") is not None
    assert caught.value.outcome is Outcome.UNKNOWN


@pytest.mark.parametrize(
    ("met", "outcome"), [(NoLeader(), Outcome.FAILED), (UnknownOutcome(), Outcome.UNKNOWN)], ids=["failed", "unknown"]
)
async def test_what_certainly_took_no_step_has_failed(
    served: Served, monkeypatch: pytest.MonkeyPatch, met: NebulaError, outcome: Outcome
) -> None:
    async def fail(shard: Descriptor, command: Command, timeout: float) -> Answer:
        raise met

    monkeypatch.setattr(served.backend, "propose", fail)
    for unfinished in (None, unknown()):
        with pytest.raises(NebulaError) as caught:
            await drive(served.backend, lambda meta: b"step", Due(0.1), unfinished)
        assert caught.value.outcome is outcome


def unknown() -> NebulaError:
    error = Unavailable("it goes on")
    error.outcome = Outcome.UNKNOWN
    return error


async def test_a_refusal_is_told_at_once(served: Served) -> None:
    def refuse(meta: object) -> bytes | None:
        raise ChangeRefused

    with pytest.raises(ChangeRefused) as caught:
        await drive(served.backend, refuse, Due(SECONDS))
    assert caught.value.outcome is Outcome.FAILED


async def test_who_names_an_old_epoch_is_given_the_descriptor(served: Served) -> None:
    call = served.channel.unary_unary(
        "/nebula.v1.KV/Put", kv_pb2.PutRequest.SerializeToString, kv_pb2.PutResponse.FromString
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(kv_pb2.PutRequest(key=b"k", epoch=9), timeout=SECONDS)
    assert error_detail(caught.value).descriptor.group == DEFAULT_GROUP
    assert error_detail(caught.value).descriptor.epoch == 1

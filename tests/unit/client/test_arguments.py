"""What can't be asked for is refused before it is sent, with an error that says what is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from nebuladb import errors
from nebuladb.client import AsyncClient, Client
from nebuladb.client.aio import LONGEST, staleness
from tests.unit.client.fake import Node

TOO_MUCH = 1 << 63

WRONG: list[tuple[str, Callable[[AsyncClient], Any]]] = [
    ("revision is 9223372036854775808; give a smaller", lambda c: c.get(b"k", revision=TOO_MUCH)),
    ("revision is -1; give 0 or more", lambda c: c.get(b"k", revision=-1)),
    ("max_staleness is inf", lambda c: c.get(b"k", max_staleness=math.inf)),
    ("max_staleness is nan", lambda c: c.get(b"k", max_staleness=math.nan)),
    ("max_staleness is -1", lambda c: c.get(b"k", max_staleness=-1)),
    ("max_staleness is inf", lambda c: anext(c.scan(max_staleness=math.inf))),
    ("limit is -1; give 0 or more", lambda c: anext(c.scan(limit=-1))),
    ("revision is -1", lambda c: anext(c.scan(revision=-1))),
    ("page_size is -1; give a larger", lambda c: anext(c.scan(page_size=-1))),
    ("page_size is 4294967296; give a smaller", lambda c: anext(c.scan(page_size=1 << 32))),
    ("start_revision is -1", lambda c: anext(c.watch(b"k", start_revision=-1))),
    ("revision is -1", lambda c: anext(c.watch(b"k", start_revisions={2: -1}))),
    ("group is -2", lambda c: anext(c.watch(b"k", start_revisions={-2: 1}))),
    ("lease is 9223372036854775808", lambda c: c.put(b"k", b"v", lease=TOO_MUCH)),
    ("lease is 9223372036854775808", lambda c: c.session().put(b"k", b"v", lease=TOO_MUCH)),
    ("lease is 9223372036854775808", lambda c: c.txn().put(b"k", b"v", lease=TOO_MUCH).commit()),
    ("lease is -9223372036854775809; give a larger", lambda c: c.put(b"k", b"v", lease=-TOO_MUCH - 1)),
    ("ttl is 9223372036854775808", lambda c: c.grant_lease(TOO_MUCH)),
    ("lease is 9223372036854775808", lambda c: c.grant_lease(2, lease=TOO_MUCH)),
    ("lease is 9223372036854775808", lambda c: c.revoke_lease(TOO_MUCH)),
    ("lease is 9223372036854775808", lambda c: c.time_to_live(TOO_MUCH)),
    ("lease is 9223372036854775808", lambda c: c.keep_alive(TOO_MUCH).renew()),
    ("revision is -1", lambda c: c.compact(-1)),
    ("group is -1", lambda c: c.compact(1, group=-1)),
    ("limit is -1", lambda c: c.txn().get(b"k", limit=-1).commit()),
    ("compared with is 9223372036854775808", lambda c: c.compare_and_set(b"k", b"v", mod_revision=TOO_MUCH)),
    ("compared with is 9223372036854775808", lambda c: c.txn().when("version", b"k", "=", TOO_MUCH).commit()),
    ("shards is -1", lambda c: c.create_keyspace("k", shards=-1)),
    (r"name is '\\ud800', which is no valid text", lambda c: c.create_keyspace("\ud800")),
    ("group is -1", lambda c: c.state_hash(-1)),
    ("node_id is -1", lambda c: c.transfer_leadership(2, -1)),
    ("patience is -1; give seconds", lambda c: anext(c.watch(b"k", patience=-1))),
    ("patience is nan", lambda c: anext(c.watch(b"k", patience=math.nan))),
    ("timeout is -1; give seconds", lambda c: c.create_keyspace("k", timeout=-1)),
    # It would lie in the loop's heap of timers, and in that of deadlines: those that were added later come too late.
    ("timeout is nan", lambda c: c.create_keyspace("k", timeout=math.nan)),
]


@pytest.mark.parametrize(("said", "call"), WRONG)
async def test_what_no_request_can_have_is_refused(node: Node, said: str, call: Callable[[AsyncClient], Any]) -> None:
    """It was an OverflowError, a ValueError of the wire's that named no argument, or asked for what makes no sense."""
    async with AsyncClient([node.address]) as client:
        with pytest.raises(errors.InvalidArgument, match=said) as caught:
            await call(client)
    assert caught.value.outcome is errors.Outcome.FAILED
    assert not node.calls


def test_what_no_request_can_have_is_refused_by_the_synchronous_client(node: Node) -> None:
    with Client([node.address]) as client:
        with pytest.raises(errors.InvalidArgument, match="lease is"):
            client.put(b"k", b"v", lease=TOO_MUCH)
        with pytest.raises(errors.InvalidArgument, match="limit is"):
            client.scan(limit=-1)


@pytest.mark.parametrize("puts", [[b"k"], [(b"k", b"v")], b"k"])
def test_a_batch_of_what_is_no_mapping_is_refused_by_the_synchronous_client(node: Node, puts: Any) -> None:
    """A list was a ValueError of `dict`'s, one of pairs was written."""
    with Client([node.address]) as client, pytest.raises(TypeError, match="give a mapping"):
        client.batch(puts)
    assert not node.calls


async def test_a_keyspace_whose_name_is_no_text_is_refused(node: Node) -> None:
    async with AsyncClient([node.address], keyspace="\udc80") as client:
        for call in (client.get(b"k"), client.get_many([b"k"]), client.session().put(b"k", b"v"), client.leases()):
            with pytest.raises(errors.InvalidArgument, match="no valid text"):
                await call


@pytest.mark.parametrize("name", ["", None])
def test_a_keyspace_without_a_name_is_refused(name: Any) -> None:
    """`put` and `get` took it for `default`; for a session, `batch` and `get_many` there was none."""
    for kind in (AsyncClient, Client):
        with pytest.raises(errors.ConfigurationError, match=r"keyspace is .*; give its name"):
            kind(["h:1"], keyspace=name)


def test_any_staleness_that_is_a_time_can_be_asked_for() -> None:
    assert [staleness(seconds) for seconds in (0, 1e-9, 0.5)] == [0, 1, 500]
    assert staleness(1e308) == LONGEST * 1000


@pytest.mark.parametrize(
    ("endpoints", "said"),
    [
        ("127.0.0.1:7379", r"endpoints is '127.0.0.1:7379'; give a list"),
        (None, "endpoints is None; give a list"),
        (5, "endpoints is 5; give a list"),
        ([("h", 1)], r"endpoint \('h', 1\) is no text; give HOST:PORT"),
        (["h:1", b"h:2"], "endpoint b'h:2' is no text"),
    ],
)
def test_endpoints_of_another_type_are_refused(endpoints: Any, said: str) -> None:
    for kind in (AsyncClient, Client):
        with pytest.raises(errors.ConfigurationError, match=said):
            kind(endpoints)


@pytest.mark.parametrize("address", ["http://127.0.0.1:7379", "127.0.0.1", "127.0.0.1:99999"])
async def test_a_node_that_is_named_by_no_address_is_refused(node: Node, address: str) -> None:
    """It was a ValueError, or without a port "can't be reached", of port 443."""
    async with AsyncClient([node.address]) as client:
        with pytest.raises(errors.ConfigurationError, match=r"HOST:PORT|from 1 to"):
            await client.status(address)

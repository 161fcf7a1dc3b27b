"""The nemesis `churn`: members go, come and are replaced, leaders hand over, and who comes back needs a snapshot.

There are three places, each with its addresses. A node that was removed, or is replaced, leaves its place to a new one,
with an empty directory and, if it replaces, another name. One change at a time: the cluster refuses a second one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from jepsen.schedule import Change, Fault
from nebuladb.client import AsyncClient
from nebuladb.errors import ChangeRefused, NebulaError
from nebuladb.ids import DEFAULT_GROUP
from tests.integration.cluster import ClusterError
from tests.integration.members import REMOVED_EXIT
from tests.integration.test_snapshots import applied, log_start

if TYPE_CHECKING:
    from jepsen.nemesis import Field

ENVIRON: Final = {"NEBULA_LOG_KEEP_ENTRIES": "20", "NEBULA_LOG_KEEP_SIZE": "64KiB"}
"""Of the nodes: who was away for a moment, or is new, gets snapshots."""
PATIENCE: Final = 90.0
"""For one change, however often it is refused while others are down: all faults end, and then it must come true."""
CALL_SECONDS: Final = 5.0
PAUSE_SECONDS: Final = 0.2
AWAY_SECONDS: Final = 10.0
"""How long a node is away at most."""


async def churn(field: Field, fault: Fault) -> None:
    """One change of members, to its end."""
    if field.changing:
        return
    field.changing = True
    try:
        with field.take(fault) as nodes:
            if nodes:
                await _CHANGES[fault.change](field, fault, nodes[0])
    finally:
        field.changing = False


async def _rejoin(field: Field, fault: Fault, node: int) -> None:
    """Removed, gone by itself, and back as a new node under its old name."""
    name = field.cluster.members[node].config.name
    field.note(fault, f"{field.names([node])} is removed and joins again")
    async with _client(field, node) as client:
        await _asked(lambda: client.remove_member(name, timeout=CALL_SECONDS), f"{name} is removed")
        code = await asyncio.to_thread(field.cluster.wait_exit, node, PATIENCE)
        if code != REMOVED_EXIT:
            raise ClusterError(f"{name} was removed and exits with {code}; {field.cluster.log_tails()}")
        await _comes(field, client, node, name)


async def _replace(field: Field, fault: Fault, node: int) -> None:
    """Dies, its disk with it, and a new node takes its place and its addresses."""
    old = field.cluster.members[node].config.name
    new = f"n{node + 1}" if old != f"n{node + 1}" else f"{old}b"
    field.note(fault, f"{field.names([node])}, {old}, dies and is replaced by {new}")
    if node in field.cluster.running:
        field.cluster.kill(node)
    async with _client(field, node) as client:
        await _comes(field, client, node, new, replaces=old)


async def _transfer(field: Field, fault: Fault, node: int) -> None:
    """The shard's leader is asked to hand over to it."""
    async with _client(field) as client:
        try:
            members = {member.name: member.node_id for member in await client.members()}
            await client.transfer_leadership(DEFAULT_GROUP, members[field.cluster.members[node].config.name])
        except NebulaError:
            return  # it leads already, or there is no leader
    field.note(fault, f"leadership goes to {field.names([node])}")


async def _install(field: Field, fault: Fault, node: int) -> None:
    """Away until the others have cut their logs behind it."""
    cluster = field.cluster
    had = await asyncio.to_thread(applied, cluster, node)
    if node not in cluster.running or not had:
        return
    field.note(fault, f"{field.names([node])} is away until the logs are cut")
    cluster.kill(node)

    def cut() -> bool:
        return any(log_start(cluster, other) > had + 1 for other in cluster.all if other != node)

    try:
        async with asyncio.timeout(AWAY_SECONDS):
            while not await asyncio.to_thread(cut):  # noqa: ASYNC110  # other processes know it
                await asyncio.sleep(PAUSE_SECONDS)
    except TimeoutError:
        pass  # the others were down, too, or nobody writes any more
    finally:
        cluster.start(node)


async def _comes(field: Field, client: AsyncClient, node: int, name: str, replaces: str = "") -> None:
    """An empty node at this place becomes a member."""
    cluster, member = field.cluster, field.cluster.members[node]
    address = member.config.advertise_peer_addr
    await _asked(lambda: client.add_member(name, address, replaces=replaces), f"{name} is added")
    field.wipe(node)
    door = cluster.members[(node + 1) % len(cluster.members)].config.advertise_peer_addr
    config = replace(member.config, name=name, initial_cluster={}, join=door)
    cluster.members[node] = replace(member, config=config)
    member.file.write_text(config.to_toml(member.directory), encoding="utf-8")
    cluster.start(node)  # in this thread: a node dies with the thread that started it

    async def joined() -> None:
        states = {one.name: one.state for one in await client.members()}
        if states.get(name) != "member" or replaces in states:
            raise ChangeRefused(f"so far the members are {states}")

    await _asked(joined, f"{name} is a member")


async def _asked(call: Callable[[], Awaitable[object]], what: str) -> None:
    """Ask until it is done: what is refused now isn't once the others are back, and requests may be repeated."""
    loop = asyncio.get_running_loop()
    end = loop.time() + PATIENCE
    while True:
        try:
            await call()
        except NebulaError as error:
            if loop.time() > end:
                raise ClusterError(f"not within {PATIENCE:g} s: {what}: {error.message}") from error
            await asyncio.sleep(PAUSE_SECONDS)
        else:
            return


def _client(field: Field, node: int | None = None) -> AsyncClient:
    """Of all places but one."""
    endpoints = [endpoint for place, endpoint in enumerate(field.cluster.endpoints) if place != node]
    return AsyncClient(endpoints, timeout=CALL_SECONDS)


_CHANGES: Final[Mapping[Change, Callable[[Field, Fault, int], Awaitable[None]]]] = {
    Change.REJOIN: _rejoin,
    Change.REPLACE: _replace,
    Change.TRANSFER: _transfer,
    Change.INSTALL: _install,
}

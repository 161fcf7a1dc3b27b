"""member: who belongs to the cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import click

from nebuladb.addresses import MAX_PORT
from nebuladb.cli.settings import TEXT, Commands, Settings, complain, pass_settings
from nebuladb.client import AsyncClient
from nebuladb.errors import InvalidArgument, NebulaError
from nebuladb.pb.nebula.v1 import cluster_pb2

PATIENCE: Final = 60.0
"""Seconds for which a promotion or a removal is waited for."""


@click.group("member", cls=Commands)
def member() -> None:
    """The cluster's nodes.

    \b
    Example:
      nebula-cli member list
    """


@member.command("list")
@pass_settings
def member_list(settings: Settings) -> None:
    """Print all nodes: how far each is, how many replicas it has, and how many log entries it lacks at most.

    \b
    Example:
      nebula-cli member list
    """

    async def work(client: AsyncClient) -> None:
        members = await client.members()
        lags = await _lags(client, members)
        with settings.output() as output:
            for found in members:
                output.row(
                    {
                        "node_id": f"{found.node_id:016x}",
                        "name": found.name,
                        "state": _state(found),
                        "client_address": found.client_address,
                        "peer_address": found.peer_address,
                        "connected": found.connected,
                        "replicas": found.replicas,
                        "lag": lags[found.node_id],
                        "version": found.version,
                    }
                )

    settings.run(work)


@member.command("add")
@click.argument("name", type=TEXT)
@click.option("--peer-address", type=TEXT, required=True, metavar="HOST:PORT", help="Where other nodes will reach it.")
@click.option("--learner", is_flag=True, help="It gets all data, and votes only when you promote it.")
@pass_settings
def member_add(settings: Settings, name: str, peer_address: str, learner: bool) -> None:
    """Make room for a new node NAME, and print the command that starts it. It becomes a member by itself.

    \b
    Example:
      nebula-cli member add n4 --peer-address 10.0.0.4:7380
    """

    async def work(client: AsyncClient) -> None:
        await _added(settings, client, await client.add_member(name, peer_address, learner=learner))

    settings.run(work)


@member.command("replace")
@click.argument("old", type=TEXT)
@click.argument("new", type=TEXT, required=False)
@click.option(
    "--peer-address", type=TEXT, metavar="HOST:PORT", help="Of the new node; the old one's, if it is not given."
)
@pass_settings
def member_replace(settings: Settings, old: str, new: str | None, peer_address: str | None) -> None:
    """Put a new node NEW (OLD and a b, if it is not given), with an empty data directory, in the place of OLD, dead or
    alive, and print the command that starts it. OLD goes when NEW has all that it had.

    \b
    Example:
      nebula-cli member replace n1 n1b --peer-address 10.0.0.5:7380
    """

    async def work(client: AsyncClient) -> None:
        members = await client.members()
        # One that isn't there is refused by the server, with the reason.
        address = named(members, old).peer_address if peer_address is None else peer_address
        first = to_do_first(members, old, address)
        await _added(settings, client, await client.add_member(new or f"{old}b", address, replaces=old), old)
        if first:
            complain(first)

    settings.run(work)


@member.command("promote")
@click.argument("name", type=TEXT)
@pass_settings
def member_promote(settings: Settings, name: str) -> None:
    """Let node NAME, added with --learner, vote, and wait until it does. Other nodes are promoted by themselves.

    \b
    Example:
      nebula-cli member promote n4
    """
    settings.change(lambda client: client.promote_member(name, timeout=PATIENCE))
    with settings.output() as output:
        output.row({"name": name, "promoted": True}, b"OK")


@member.command("remove")
@click.argument("name", type=TEXT)
@pass_settings
def member_remove(settings: Settings, name: str) -> None:
    """Remove node NAME, dead or alive, and wait until it is gone; a leader hands over first. The node stops by itself.

    \b
    Example:
      nebula-cli member remove n4
    """
    settings.change(lambda client: client.remove_member(name, timeout=PATIENCE))
    with settings.output() as output:
        output.row({"name": name, "removed": True}, b"OK")


async def _added(settings: Settings, client: AsyncClient, made: cluster_pb2.Member, old: str = "") -> None:
    """Print how to start it."""
    command = start_command(made, door(await client.members(), old))
    with settings.output() as output:
        output.row({"node_id": f"{made.node_id:016x}", "name": made.name, "command": command}, command.encode())


def named(members: Sequence[cluster_pb2.Member], name: str) -> cluster_pb2.Member:
    """The member of this name; an empty one if there is none."""
    return next((one for one in members if one.name == name), cluster_pb2.Member())


def door(members: Sequence[cluster_pb2.Member], old: str) -> str:
    """The peer address of a member that lets the new node in; of `old`, whose place it takes, only if there is no
    other: it may be stopped by then, and have had the new one's own address."""
    there = [one for one in members if one.connected and one.state == "member"]
    return next((one.peer_address for one in sorted(there, key=lambda one: one.name == old)), "")


def to_do_first(members: Sequence[cluster_pb2.Member], old: str, address: str) -> str:
    """What comes before the start of a node that replaces `old` and has the peer address `address`; mostly nothing.
    Raises `InvalidArgument` if it can never start there."""
    theirs = named(members, old)
    if not theirs.connected or address != theirs.peer_address:
        return ""
    if address == door(members, old):
        raise InvalidArgument(
            f"nobody but {old!r} can let the new node in, so both must run at once: give --peer-address HOST:PORT, "
            f"another one than {address}"
        )
    return f"{old!r} runs, and has the address {address}: stop it before you start the new node there"


def start_command(made: cluster_pb2.Member, door: str) -> str:
    """With the ports that lie beside the peer port, as the defaults do, where there are such; `door`: a member's peer
    address."""
    host, _, text = made.peer_address.rpartition(":")
    port = int(text)
    client = port - 1 if port > 1 else port + 2
    admin = port + 1 if port < MAX_PORT else port - 2
    return (
        f"nebulad start --name {made.name} --data-dir {made.name} --client-addr {host}:{client} "
        f"--peer-addr {made.peer_address} --admin-addr 127.0.0.1:{admin} --join {door}"
    )


def _state(found: cluster_pb2.Member) -> str:
    if found.state == "joining" and not found.started:
        return "added"
    return "learner" if found.state == "joining" and found.learner else found.state


async def _lags(client: AsyncClient, members: Sequence[cluster_pb2.Member]) -> dict[int, int | None]:
    """Node → entries that it lacks, in the group in which it lacks most; None: it doesn't answer."""

    async def one(address: str) -> cluster_pb2.StatusResponse | None:
        try:
            return await client.status(address) if address else None
        except NebulaError:
            return None

    answers = await asyncio.gather(*(one(found.client_address) for found in members))
    committed: dict[int, int] = {}
    for status in answers:
        for group in status.groups if status is not None else ():
            committed[group.group] = max(committed.get(group.group, 0), group.committed)
    return {
        found.node_id: None
        if status is None
        else max((committed[group.group] - group.applied for group in status.groups), default=0)
        for found, status in zip(members, answers, strict=True)
    }


COMMANDS: Final = (member,)

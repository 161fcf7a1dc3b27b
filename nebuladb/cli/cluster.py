"""keyspace and shard."""

from __future__ import annotations

import asyncio
from typing import Final

import click

from nebuladb.cli.output import Output
from nebuladb.cli.settings import TEXT, Commands, Settings, hex_option, key_bytes, pass_settings
from nebuladb.client import AsyncClient
from nebuladb.pb.nebula.v1 import common_pb2, keyspace_pb2

DEFAULT_SHARDS: Final = 8
PATIENCE: Final = 60.0
"""Seconds for which a keyspace's creation or removal is waited for."""


@click.group("keyspace", cls=Commands)
def keyspace() -> None:
    """Keyspaces: named sets of keys.

    \b
    Example:
      nebula-cli keyspace list
    """


@keyspace.command("list")
@pass_settings
def keyspace_list(settings: Settings) -> None:
    """Print all keyspaces.

    \b
    Example:
      nebula-cli keyspace list
    """
    with settings.output() as output:
        for info in settings.run(lambda client: client.keyspaces()):
            output.row({"keyspace": info.name, "partitioning": _partitioning(info), "shards": len(info.shards)})


@keyspace.command("describe")
@click.argument("name", type=TEXT)
@pass_settings
def keyspace_describe(settings: Settings, name: str) -> None:
    """Print the shards of keyspace NAME.

    \b
    Example:
      nebula-cli keyspace describe default
    """
    info = settings.run(lambda client: client.describe_keyspace(name))
    with settings.output() as output:
        for shard in info.shards:
            _print_shard(output, shard, _partitioning(info))


@keyspace.command("create")
@click.argument("name", type=TEXT)
@click.option(
    "--partitioning", type=click.Choice(["hash", "range", "single"]), default="hash", show_default=True,
    help="Keys placed by hash; in order, cut at keys; or all in one shard for ever.",
)  # fmt: skip
@click.option("--shards", type=click.IntRange(1, 1024), help="Of a hash keyspace; 8 if not given.")
@click.option("--split-at", multiple=True, metavar="KEY", help="A shard of a range keyspace starts here. Repeatable.")
@hex_option
@pass_settings
def keyspace_create(
    settings: Settings, name: str, partitioning: str, shards: int | None, split_at: tuple[str, ...], hexadecimal: bool
) -> None:
    """Create keyspace NAME, and wait until it serves; exits 1 if there is one that was created otherwise.

    \b
    Example:
      nebula-cli keyspace create users --partitioning hash --shards 8
      nebula-cli keyspace create logs --partitioning range --split-at 2024 --split-at 2025
      nebula-cli keyspace create config --partitioning single
    """
    if shards is not None and partitioning != "hash":
        raise click.UsageError("--shards goes with --partitioning hash")
    if split_at and partitioning != "range":
        raise click.UsageError("--split-at goes with --partitioning range")
    if partitioning == "hash":
        shards = shards or DEFAULT_SHARDS
    keys = [key_bytes(key, hexadecimal) for key in split_at]
    settings.change(
        lambda client: client.create_keyspace(name, partitioning, shards=shards or 0, split_at=keys, timeout=PATIENCE)
    )
    with settings.output() as output:
        output.row({"keyspace": name, "created": True}, b"OK")


@keyspace.command("drop")
@click.argument("name", type=TEXT)
@pass_settings
def keyspace_drop(settings: Settings, name: str) -> None:
    """Destroy keyspace NAME with all its keys, for good; nothing is asked. One that isn't there is dropped already.

    \b
    Example:
      nebula-cli keyspace drop users
    """
    dropped = settings.run(lambda client: client.drop_keyspace(name, timeout=PATIENCE))
    with settings.output() as output:
        output.row({"keyspace": name, "dropped": dropped}, b"OK")


@click.group("shard", cls=Commands)
def shard() -> None:
    """Shards: the parts of keyspaces, each replicated by a Raft group.

    \b
    Example:
      nebula-cli shard list
    """


@shard.command("list")
@pass_settings
def shard_list(settings: Settings) -> None:
    """Print all shards of all keyspaces, with their leaders.

    \b
    Example:
      nebula-cli shard list
    """

    async def work(client: AsyncClient) -> None:
        shards, members = await asyncio.gather(client.shards(), client.members())
        names = {member.node_id: member.name for member in members}
        with settings.output() as output:
            for descriptor, leader in shards:
                _print_shard(output, descriptor, names.get(leader, "unknown"), "leader")

    settings.run(work)


def _partitioning(info: keyspace_pb2.KeyspaceInfo) -> str:
    return keyspace_pb2.Partitioning.Name(info.partitioning).lower()


def _print_shard(output: Output, shard: common_pb2.ShardDescriptor, extra: str, title: str = "partitioning") -> None:
    hashed = bool(shard.end_slot)
    output.row(
        {
            "group": shard.group,
            "keyspace": shard.keyspace,
            title: extra,
            "epoch": shard.epoch,
            "start": str(shard.start_slot) if hashed else shard.start_key,
            "end": str(shard.end_slot) if hashed else shard.end_key,
            "replicas": len(shard.replicas),
        }
    )


COMMANDS: Final = (keyspace, shard)

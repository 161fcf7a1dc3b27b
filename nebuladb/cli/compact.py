"""compact."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

import click

from nebuladb.cli.settings import NUMBER, Settings, complain
from nebuladb.client import AsyncClient
from nebuladb.client.shardmap import ShardMap
from nebuladb.errors import Compacted, NebulaError, Unavailable, UnknownOutcome, WrongShard
from nebuladb.pb.nebula.v1 import common_pb2, keyspace_pb2

JOBS: Final = 32
"""Shards at a time."""
MAX_TRIES: Final = 1 << 20
"""Keys that are looked at until there is one for each shard: some 10,000 for the 1,024 that a keyspace has at most."""
REVISION: Final = click.IntRange(1, (1 << 63) - 1)
GROUP: Final = click.IntRange(1, (1 << 64) - 1)


class _Plan(NamedTuple):
    """`revision` is compacted to, or if it is 0 the newest one less `keep`."""

    revision: int
    keep: int


class _Done(NamedTuple):
    """One shard: its newest revision before, the oldest that can be read now, and whether that was done just now."""

    newest: int
    floor: int
    compacted: bool


@click.command()
@click.argument("revision", type=REVISION, required=False)
@click.option(
    "--shard", "group", metavar="SHARD", type=GROUP, help="This shard only; `shard list` has it as its group."
)
@click.option("--keep", type=NUMBER, help="Without a REVISION: the newest one and so many before it stay readable.")
@click.pass_context
def compact(context: click.Context, revision: int | None, group: int | None, keep: int | None) -> None:
    """Give up history: what was overwritten or deleted at or before REVISION can't be read or watched any more. Each
    node frees the space in the background, also one that is read-only for want of it.

    Every shard counts revisions of its own, so a REVISION needs --shard where the keyspace has several. Without
    REVISION all shards of the keyspace, or --shard's, are compacted to their newest revisions; that may be repeated
    at any time.

    A line is a shard with its newest revision, the oldest that can be read now (COMPACT REVISION), and whether that
    is new. A REVISION that is compacted already, or hasn't happened yet, is refused. If a shard fails the others are
    compacted all the same; exits 1 then.

    \b
    Example:
      nebula-cli --keyspace users compact
      nebula-cli --keyspace users compact --keep 1000
      nebula-cli --keyspace users compact 58000 --shard 4
    """
    settings = context.find_object(Settings)
    assert settings is not None  # the group made it
    if revision is not None and keep is not None:
        raise click.UsageError("--keep goes without a REVISION")
    plan = _Plan(revision or 0, keep or 0)

    async def work(client: AsyncClient) -> bool:
        info = await client.describe_keyspace(client.keyspace)
        shards, keys = _chosen(info, group, plan), _keys(info)
        slots = asyncio.Semaphore(JOBS)
        done = await asyncio.gather(
            *(_compact(client, shard.group, keys[shard.group], plan, slots) for shard in shards)
        )
        with settings.output() as output:
            for shard, one in zip(shards, done, strict=True):
                if isinstance(one, NebulaError):
                    complain(f"shard {shard.group}: {one.message}")
                    continue
                output.row(
                    {
                        "group": shard.group,
                        "keyspace": shard.keyspace,
                        "revision": one.newest,
                        "compact_revision": one.floor,
                        "compacted": one.compacted,
                    }
                )
        return not any(isinstance(one, NebulaError) for one in done)

    context.exit(0 if settings.run(work) else 1)


def _chosen(info: keyspace_pb2.KeyspaceInfo, group: int | None, plan: _Plan) -> Sequence[common_pb2.ShardDescriptor]:
    """Those to compact. Raises `WrongShard` if there is no such shard, `UsageError` if one must be named."""
    see = f"see `nebula-cli keyspace describe {info.name}`"
    if group is not None:
        found = [shard for shard in info.shards if shard.group == group]
        if not found:
            raise WrongShard(f"keyspace {info.name!r} has no shard {group}; {see}")
        return found
    if plan.revision and len(info.shards) > 1:
        raise click.UsageError(
            f"keyspace {info.name!r} has {len(info.shards)} shards, each with revisions of its own: name one with "
            f"--shard ({see}), or leave REVISION out to compact them all"
        )
    return info.shards


def _keys(info: keyspace_pb2.KeyspaceInfo) -> dict[int, bytes]:
    """Shard → a key that lies in it, if there is such a key or not."""
    if info.partitioning != keyspace_pb2.HASH:
        return {shard.group: shard.start_key or b"\0" for shard in info.shards}
    shards, found = ShardMap(info), dict[int, bytes]()
    for number in range(MAX_TRIES):
        if len(found) == len(info.shards):
            break
        key = b"%d" % number
        found.setdefault(shards.group(key), key)
    return found


async def _compact(
    client: AsyncClient, group: int, key: bytes, plan: _Plan, slots: asyncio.Semaphore
) -> _Done | NebulaError:
    """One shard, in which `key` lies; or why it wasn't."""
    async with slots:
        try:
            newest = (await client.txn().get(key, keys_only=True).commit()).revision
            revision = plan.revision or max(newest - plan.keep, 0)  # 0, where there are fewer, is compacted already
            try:
                if plan.revision:
                    await client.compact(revision, group=group)
                else:
                    await _to_newest(client, revision, group)
            except Compacted as error:
                if plan.revision:
                    raise
                return _Done(newest, error.floor, compacted=False)
        except (UnknownOutcome, Unavailable) as error:
            error.args = (f"{error.message}; run the same command again, which does no harm twice",)
            return error
        except NebulaError as error:
            return error
    return _Done(newest, revision, compacted=True)


async def _to_newest(client: AsyncClient, revision: int, group: int) -> None:
    """Compact, and once more if it is unknown whether that was done. Raises `NebulaError`."""
    try:
        await client.compact(revision, group=group)
    except UnknownOutcome:
        try:
            await client.compact(revision, group=group)
        except Compacted as error:
            if error.floor != revision:
                raise  # else it was done the first time
        except NebulaError as error:
            raise UnknownOutcome(f"it may have been done; asked once more: {error.message}") from error


COMMANDS: Final = (compact,)

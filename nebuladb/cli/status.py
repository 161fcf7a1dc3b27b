"""status and check: what nodes say of themselves, and whether a shard's replicas are the same."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

import click

from nebuladb.cli.output import Field, Output
from nebuladb.cli.settings import Settings, complain, drop_output
from nebuladb.client import AsyncClient, StateHash
from nebuladb.errors import ConfigurationError, HashNotFound, NebulaError, WrongShard
from nebuladb.ids import META_GROUP
from nebuladb.pb.nebula.v1 import cluster_pb2

PATIENCE: Final = 60.0
"""Seconds that a request of a comparison may take, but for a hash; and all shards together for which none could be
ordered: where a majority is gone, none can be for any."""
LEAST_PATIENCE: Final = 2.0
"""Seconds to order the hash of each shard behind those that used this up: they may have a leader."""
HASH_PATIENCE: Final = 3_600.0
"""Seconds for the hash of one shard: every row of it is read, between requests, on a machine that may be busy."""
HASH_TRIES: Final = 3
"""A node that restarts meanwhile has lost what was ordered."""


@click.command()
@click.option("--hash", "hashes", is_flag=True, help="Compare the state of every shard on all its nodes.")
@click.pass_context
def status(context: click.Context, hashes: bool) -> None:
    """Print what every endpoint says of itself and its groups; exits 1 if one doesn't answer.

    With --hash every member is asked, for the hash of each shard's state at one and the same log index; exits 1 if two
    differ, else 3 if a node gave none or a shard could not be compared. What is dropped meanwhile is skipped.

    \b
    Example:
      nebula-cli --endpoints 127.0.0.1:7379,127.0.0.1:7479 status
      nebula-cli status --hash
    """
    settings = context.find_object(Settings)
    assert settings is not None  # the group made it
    if hashes:
        context.exit(_compare(settings))
    sound = settings.run(lambda client: _status(client, settings.output()))
    context.exit(0 if sound else 1)


@click.command()
@click.pass_context
def check(context: click.Context) -> None:
    """Compare the data of every shard on all its nodes, now; the same as status --hash.

    Exit status: 0 all are the same; 1 two differ; 2 wrong usage; 3 nothing differs, but a node gave no hash or a shard
    could not be compared, stderr says which.

    Nodes do it in the background too (setting consistency-check-interval), and raise an alarm where they differ.

    \b
    Example:
      nebula-cli check
    """
    context.invoke(status, hashes=True)


class Verdict(IntEnum):
    """Of a comparison; the command's exit status."""

    SAME = 0
    DIFFER = 1
    INCOMPLETE = 3
    """Nothing differs in what was compared, but not everything was."""


class Node(NamedTuple):
    """What a node said, or why it said nothing."""

    address: str
    status: cluster_pb2.StatusResponse | None
    error: str = ""


async def _ask(client: AsyncClient, addresses: Sequence[str]) -> list[Node]:
    async def one(address: str) -> Node:
        try:
            return Node(address, await client.status(address))
        except NebulaError as error:
            return Node(address, None, error.message)

    return await asyncio.gather(*map(one, addresses))


async def _status(client: AsyncClient, output: Output) -> bool:
    nodes = await _ask(client, client.endpoints)
    names = await _leader_names(client, [node.status for node in nodes if node.status])
    with output:
        for node in nodes:
            if node.status is None:
                complain(node.error)
                continue
            for alarm in node.status.alarms:
                complain(f"{node.status.name} raises an alarm: {alarm}")
            for group in node.status.groups:
                output.row(
                    {
                        "endpoint": node.address,
                        "name": node.status.name,
                        "version": node.status.version,
                        "group": group.group,
                        "keyspace": group.keyspace,
                        "replica": group.replica_id,
                        "role": group.role,
                        "leader": _name(names, group.leader_node),
                        "term": group.term,
                        "committed": group.committed,
                        "applied": group.applied,
                        "revision": group.revision,
                    }
                )
    return all(node.status for node in nodes)


async def _leader_names(client: AsyncClient, answers: Sequence[cluster_pb2.StatusResponse]) -> dict[int, str]:
    """Node id → name of who answered and, if an answer has another one for its leader, of all members."""
    names = {0: ""} | {answer.header.node_id: answer.name for answer in answers}
    if any(group.leader_node not in names for answer in answers for group in answer.groups):
        with contextlib.suppress(NebulaError):
            names |= {member.node_id: member.name for member in await client.members()}
    return names


def _name(names: Mapping[int, str], node_id: int) -> str:
    """Of a node; its id if nobody said what it is called."""
    return names.get(node_id, f"{node_id:016x}")


def _compare(settings: Settings) -> Verdict:
    """Of all shards; whatever fails on the way is told, and never taken for a difference."""
    comparison = _Comparison(settings.output())
    try:
        # Hashing a gigabyte takes as long as reading it; the nodes serve on meanwhile.
        settings.run(comparison.run, PATIENCE)
    except ConfigurationError:
        raise
    except NebulaError as error:
        comparison.incomplete(error.message)
    except OSError as error:
        comparison.incomplete(f"{error.filename or 'output'}: {error.strerror or error}")
        drop_output()
    return comparison.verdict


class _Comparison:
    """Whether all replicas of all shards, the meta group's included, are the same."""

    def __init__(self, output: Output) -> None:
        self.verdict = Verdict.SAME
        self._output = output
        self._names: dict[int, str] = {}
        self._patience = PATIENCE
        """What is left of it."""

    async def run(self, client: AsyncClient) -> None:
        """Compare, shard after shard. Raises `NebulaError`, `OSError`."""
        members = {member.node_id: member for member in await client.members()}
        nodes = await _nodes(client, members)
        self._names = {node_id: member.name for node_id, member in members.items()}
        with self._output:
            for (group, keyspace), replicas in sorted((await _replicas(client, members, nodes)).items()):
                holders = sorted(replicas, key=lambda node_id: (_name(self._names, node_id), node_id))
                try:
                    index, answers = await self._hashes(client, group, [nodes.get(node_id) for node_id in holders])
                except _Dropped:
                    complain(f"group {group}: skipped, keyspace {keyspace} was dropped meanwhile")
                except NebulaError as error:
                    self.incomplete(f"group {group}: not compared: {error.message}")
                else:
                    self._tell(group, keyspace, index, dict(zip(holders, answers, strict=True)))

    async def _hashes(
        self, client: AsyncClient, group: int, nodes: Sequence[Node | None]
    ) -> tuple[int, list[StateHash | str]]:
        """Each node's hash of a group's state at one index, or why there is none; and the index.

        Raises `_Dropped`, and why nothing could be ordered.
        """
        for left in reversed(range(HASH_TRIES)):
            index = await self._order(client, group)
            answers = await asyncio.gather(*(_hash_of(client, group, index, node) for node in nodes))
            found = {answer.hash for answer in answers if isinstance(answer, StateHash)}
            failed = any(isinstance(answer, NebulaError) for answer in answers)
            # Two hashes that differ are what they are, whatever became of the shard since.
            if len(found) < 2 and failed and await _gone(client, group):
                raise _Dropped
            if not (left and any(isinstance(answer, HashNotFound | WrongShard) for answer in answers)):
                break
        return index, [answer.message if isinstance(answer, NebulaError) else answer for answer in answers]

    async def _order(self, client: AsyncClient, group: int) -> int:
        """The index of a hash that was ordered. Raises `_Dropped`, and why there is none."""
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            return await client.order_hash(group, timeout=max(self._patience, LEAST_PATIENCE))
        except NebulaError as error:
            self._patience -= clock() - began
            if await _gone(client, group):
                raise _Dropped from error
            raise

    def incomplete(self, why: str) -> None:
        """Something could not be compared; a difference that was found stays one."""
        complain(why)
        self.verdict = self.verdict or Verdict.INCOMPLETE

    def _tell(self, group: int, keyspace: str, index: int, answers: Mapping[int, StateHash | str]) -> None:
        """What each node said of one shard."""
        hashes: dict[str, bytes] = {}
        for node_id, answer in answers.items():
            name = _name(self._names, node_id)
            row: dict[str, Field] = {"group": group, "keyspace": keyspace, "node": name, "applied": index}
            if isinstance(answer, StateHash):
                hashes[name] = answer.hash
            else:
                self.incomplete(f"group {group}: no hash from {name}: {answer}")
            self._output.row({**row, "hash": answer.hash.hex() if isinstance(answer, StateHash) else ""})
        if len(set(hashes.values())) > 1:
            self.verdict = Verdict.DIFFER
            complain(f"group {group}: the nodes DIFFER at index {index}: {_deviating(hashes)}")


class _Dropped(Exception):
    """There is nothing to compare any more: the shard went with its keyspace."""


def _deviating(hashes: Mapping[str, bytes]) -> str:
    """Who differs from the majority, if there is one, by node's name."""
    digest, most = Counter(hashes.values()).most_common(1)[0]
    if 2 * most <= len(hashes):
        return "there is no majority with the same data"
    return f"{', '.join(name for name, its in hashes.items() if its != digest)} has other data than the majority"


async def _replicas(
    client: AsyncClient, members: Mapping[int, cluster_pb2.Member], nodes: Mapping[int, Node]
) -> dict[tuple[int, str], set[int]]:
    """(group, keyspace) → the nodes that hold it, as descriptors say; of the meta group, as the nodes say, and every
    member that says nothing and may have been started."""
    found = {
        (shard.group, shard.keyspace): {replica.node_id for replica in shard.replicas}
        for shard, _ in await client.shards()
    }
    own = found.setdefault((META_GROUP, "(meta)"), set())
    for node_id, node in nodes.items():
        if node.status and any(group.group == META_GROUP for group in node.status.groups):
            own.add(node_id)
    for node_id, member in members.items():
        silent = node_id not in nodes or nodes[node_id].status is None
        if silent and (member.started or member.state != "joining"):
            own.add(node_id)
    return found


async def _nodes(client: AsyncClient, members: Mapping[int, cluster_pb2.Member]) -> dict[int, Node]:
    """How to reach every node: by an endpoint that was given, else by the address that it announced."""
    nodes = {node.status.header.node_id: node for node in await _ask(client, client.endpoints) if node.status}
    others = {i: m.client_address for i, m in members.items() if i not in nodes and m.client_address}
    asked = await _ask(client, list(others.values()))
    return nodes | dict(zip(others, asked, strict=True))


async def _gone(client: AsyncClient, group: int) -> bool:
    """Whether a fresh list has no such shard; False if there is no list."""
    try:
        return group != META_GROUP and all(shard.group != group for shard, _ in await client.shards())
    except NebulaError:
        return False


async def _hash_of(client: AsyncClient, group: int, index: int, node: Node | None) -> StateHash | str | NebulaError:
    """The node's hash at `index`, or why there is none."""
    if node is None:
        return "its address is not known"
    if node.status is None:
        return node.error
    try:
        return await client.state_hash(group, index, node.address, timeout=HASH_PATIENCE)
    except NebulaError as error:
        return error


COMMANDS: Final = (status, check)

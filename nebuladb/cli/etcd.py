"""``etcd import``: a live etcd into a keyspace."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

import click
from click.core import ParameterSource

from nebuladb.cli.etcd_leases import Leases
from nebuladb.cli.etcd_source import EtcdSource, Security
from nebuladb.cli.output import printable
from nebuladb.cli.parallel import in_parallel
from nebuladb.cli.progress import Progress
from nebuladb.cli.settings import TEXT, Commands, Settings, ask_for_room, complain
from nebuladb.client import AsyncClient, Session
from nebuladb.errors import ChangeRefused, LeaseNotFound, NebulaError, RequestTooLarge, ResultTooLarge
from nebuladb.pb.etcd.mvcc_pb2 import KeyValue

KEYSPACE: Final = "etcd"
"""Where it goes, unless --keyspace says otherwise."""
PATIENCE: Final = 60.0
"""Seconds a request may take at least: an import goes on by itself after a leader's death."""
JOBS: Final = 8
"""Transactions at a time."""
BATCH_KEYS: Final = 128
BATCH_BYTES: Final = 256 << 10
"""Of a transaction, unless one key alone is larger."""
NAMES: Final = ("keys", "written", "same", "expired", "lost", "leases", "bytes", "source_revision", "revision")


@click.group("etcd", cls=Commands)
def etcd() -> None:
    """Moving over from etcd. Its API itself is on every node's client port: point its clients there.

    \b
    Example:
      nebula-cli etcd import --from 10.0.0.1:2379
      etcdctl --endpoints 127.0.0.1:7379 get --prefix ""
    """


@etcd.command("import")
@click.option("--from", "source", type=TEXT, required=True, metavar="HOST:PORT", help="A member of the etcd cluster.")
@click.option("--merge", is_flag=True, help="Write over what the keyspace has; keys that are the same stay untouched.")
@click.option("--force", is_flag=True, help="Delete all that the keyspace has first, leases too.")
@click.option("--cacert", default="", metavar="FILE", help="Trust etcd's certificate by this one (PEM).")
@click.option("--cert", default="", metavar="FILE", help="Show this certificate to etcd (PEM).")
@click.option("--key", default="", metavar="FILE", help="And this is its key (PEM).")
@click.option("--user", type=TEXT, default="", metavar="NAME:PASSWORD", help="Where etcd asks for one.")
@click.pass_context
def import_command(
    context: click.Context, source: str, merge: bool, force: bool, cacert: str, cert: str, key: str, user: str
) -> None:
    """Copy every key of a live etcd, as of one revision, with leases and what is attached to them.

    It goes into the keyspace etcd, or the one that --keyspace names, which must be empty unless --merge or --force says
    otherwise. A lease keeps its id and the TTL that it was granted, which begins anew when all is copied. Keys whose
    lease had ended in etcd are counted as expired, those whose lease ends here as lost; the latter make it exit 1.
    Revisions, versions and history aren't copied: the last line says which revision was read, and which revision of
    ours has it all.

    What is written to etcd meanwhile is not copied: stop its writers first. After an interruption run the command again
    with --merge; it writes what is missing.

    \b
    Example:
      nebula-cli etcd import --from 10.0.0.1:2379
      nebula-cli --keyspace copy etcd import --from 10.0.0.1:2379 --merge
      nebula-cli etcd import --from 10.0.0.1:2379 --cacert ca.crt --cert client.crt --key client.key
    """
    if merge and force:
        raise click.UsageError("give --merge or --force, not both")
    if bool(cert) is not bool(key):
        raise click.UsageError("--cert and --key go together")
    settings = context.find_object(Settings)
    assert settings is not None  # the group made it
    root = context.find_root()
    if root.get_parameter_source("keyspace") is ParameterSource.DEFAULT:
        settings = Settings(settings.endpoints, KEYSPACE, settings.style, settings.timeout)
    live = EtcdSource(source, Security(cacert, cert, key, user), max(settings.timeout, PATIENCE))
    importer = Importer(Progress(sys.stderr, "imported", noun="keys"), merge=merge, force=force)

    async def work(client: AsyncClient) -> None:
        async with live, client.session() as session:
            await importer.run(live, client, session)

    try:
        # Patience is for what happens on the way: what is wrong from the beginning should be told soon.
        settings.run(_ready)
        settings.run(work, PATIENCE)
    except (NebulaError, KeyboardInterrupt) as error:
        if importer.begun:
            again = "run the same command again" if force else "run the command again with --merge"
            again = f"what was copied stays: {again} to go on"
            if isinstance(error, NebulaError):
                error.args = (f"stopped: {error.message}; {again}",)
            else:
                complain(f"stopped; {again}")
        raise
    finally:
        importer.progress.close()
        if importer.begun:
            with settings.output() as output:
                tally = importer.tally
                output.row({n: tally[n] for n in NAMES}, b" ".join(b"%s=%d" % (n.encode(), tally[n]) for n in NAMES))


async def _ready(client: AsyncClient) -> None:
    """Raise what stands in the way: a wrong address or keyspace, or an alarm by which writes are refused."""
    shards = (await client.describe_keyspace(client.keyspace)).shards
    if len(shards) != 1:
        raise ChangeRefused(
            f"keyspace {client.keyspace!r} has {len(shards)} shards; etcd's keys need one with a single line of "
            "revisions: create it with `--partitioning single`"
        )
    await ask_for_room(client)  # --force must not have deleted anything by then


class Importer:
    """One copy. `tally` counts what it did, and has both revisions; `begun`: something may have been written."""

    def __init__(self, progress: Progress, *, merge: bool, force: bool) -> None:
        self.progress = progress
        self.tally: Counter[str] = Counter()
        self.begun = False
        self._merge = merge
        self._force = force
        self._under: Counter[int] = Counter()
        """Lease → keys that should be attached to it."""

    async def run(self, source: EtcdSource, client: AsyncClient, session: Session) -> None:
        """Copy everything. Raises `NebulaError`."""
        await source.open()
        self._client, self._session, self._source = client, session, source
        await self._check_other()
        await self._make_room()
        self.begun = True
        self.tally["source_revision"] = source.revision
        async with Leases(client, session, merge=self._merge) as leases:
            found = await source.leases()
            self.tally["leases"] = len(found)
            await leases.grant(found)
            async for page in source.pages():
                await in_parallel(_batches(page), JOBS, lambda batch: self._write(batch, leases))
            await leases.finish()
        if self.tally["keys"] != source.count:
            raise ChangeRefused(f"etcd counted {source.count} keys at revision {source.revision}, and gave others")
        self.tally["revision"] = (await client.txn().get(b"\0").commit()).revision
        self.tally["lost"] = sum(self._under[lease] for lease in leases.lost)
        if leases.lost:
            raise LeaseNotFound(
                f"leases ended here before all was copied, {len(leases.lost)}, and their keys with them"
            )

    async def _check_other(self) -> None:
        """What is deleted, or written over, must not be what is read: a node of ours shows the keyspace `etcd`."""
        own = (await self._client.status()).header.cluster_id
        if self._source.cluster == own and self._client.keyspace == KEYSPACE:
            raise ChangeRefused(
                f"{self._source.address} is a node of this very cluster, and shows this very keyspace: give --from a "
                "member of the etcd that is to be copied"
            )

    async def _make_room(self) -> None:
        """Make sure that the keyspace is empty, if it has to be."""
        if self._merge:
            return
        leases = await self._client.leases()
        keys = [row async for row in self._client.scan(limit=1, keys_only=True)]
        if not (leases or keys):
            return
        if not self._force:
            raise ChangeRefused(
                f"keyspace {self._client.keyspace!r} is not empty: give --merge to write over what it has, or --force "
                "to delete that first"
            )
        self.begun = True
        for lease in leases:
            try:
                await self._session.revoke_lease(lease)
            except LeaseNotFound:
                continue  # it has ended by itself
        await self._session.delete(b"\0", b"\0")

    async def _write(self, batch: Sequence[KeyValue], leases: Leases) -> None:
        alive = [kv for kv in batch if not kv.lease or kv.lease in leases]
        self._under.update(kv.lease for kv in alive if kv.lease)
        self.tally["expired"] += len(batch) - len(alive)
        if self._merge:
            there = await self._client.get_many(kv.key for kv in alive)
            wanted = []
            for kv in alive:
                found = there[kv.key]
                if found is None or (found.value, found.lease) != (kv.value, kv.lease):
                    wanted.append(kv)
            self.tally["same"] += len(alive) - len(wanted)
            alive = wanted
        await self._put(alive)
        self.tally["keys"] += len(batch)
        self.tally["bytes"] += sum(map(_size, batch))
        self.progress.update(self.tally["keys"], self.tally["bytes"], self._source.count)

    async def _put(self, kvs: Sequence[KeyValue]) -> None:
        if not kvs:
            return
        txn = self._session.txn()
        for kv in kvs:
            txn.put(kv.key, kv.value, lease=kv.lease)
        try:
            await txn.commit()
        except LeaseNotFound:
            if len(kvs) == 1:
                return  # it is lost, as `Leases.finish` finds
            for kv in kvs:
                await self._put([kv])
            return
        except ResultTooLarge:  # it would write over too much at once
            if len(kvs) == 1:
                raise
            middle = len(kvs) // 2
            await self._put(kvs[:middle])
            await self._put(kvs[middle:])
            return
        except RequestTooLarge:  # it is one alone, for a batch has room
            await self._put_alone(kvs[0])
            return
        self.tally["written"] += len(kvs)

    async def _put_alone(self, kv: KeyValue) -> None:
        """One that is as large as etcd lets it be: with what a transaction of a session says beside it, it is larger
        than a request may be. Nor is a session needed: written twice it is the same."""
        try:
            await self._client.put(kv.key, kv.value, lease=kv.lease)
        except LeaseNotFound:
            return  # as above
        except RequestTooLarge as error:
            error.args = (f"key {printable(kv.key)!r}: {error.message}",)
            raise
        self.tally["written"] += 1


def _batches(page: Sequence[KeyValue]) -> Iterator[list[KeyValue]]:
    """What goes into one transaction each."""
    batch: list[KeyValue] = []
    size = 0
    for kv in page:
        if batch and (len(batch) == BATCH_KEYS or size + _size(kv) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(kv)
        size += _size(kv)
    if batch:
        yield batch


def _size(kv: KeyValue) -> int:
    return len(kv.key) + len(kv.value)


COMMANDS: Final = (etcd,)

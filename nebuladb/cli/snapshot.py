"""snapshot: backups of the whole cluster: saved online, verified, and restored into a new one."""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, Final

import click

from nebuladb.cli.output import Output, named
from nebuladb.cli.progress import Progress
from nebuladb.cli.settings import TEXT, Commands, Settings, complain, pass_settings
from nebuladb.client import AsyncClient
from nebuladb.errors import ConfigurationError, Corruption, NebulaError
from nebuladb.node.backup import BackupReader, ShardPart, check
from nebuladb.pb.nebula.v1 import cluster_pb2
from nebuladb.storage.files import sync_name

PATIENCE: Final = 60.0
"""Seconds for which a save looks for a node that begins; amid it a third of them, of silence, end it."""
SECRET: Final = 0o600
"""All that the cluster has is in a backup: as etcdctl's, it is its owner's alone."""
FILE: Final = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.group("snapshot", cls=Commands)
def snapshot() -> None:
    """Backups of all keyspaces.

    \b
    Example:
      nebula-cli snapshot save monday.snap
    """


@snapshot.command("save")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--since", type=FILE, help="An earlier backup: save only what changed, to be restored on top of it.")
@pass_settings
def save(settings: Settings, file: Path, since: Path | None) -> None:
    """Save all keyspaces to FILE, from any node, while everybody goes on.

    Each shard is saved as it is at one instant, not all of them at the same. FILE appears when it is whole and checked,
    in the place of a file of that name. A keyspace that is dropped meanwhile is left out.

    \b
    Example:
      nebula-cli snapshot save monday.snap
      nebula-cli snapshot save tuesday.snap --since monday.snap
    """
    request = cluster_pb2.SnapshotRequest()
    file, draft = _place(file)
    if since is not None:
        if any(path.exists() and path.samefile(since) for path in (file, draft)):
            raise ConfigurationError(
                f"{file}: it would take the place of {since}, on which it builds, and couldn't be restored: name "
                "another file"
            )
        reader, parts = _checked(since)
        request.since_cluster, request.since_name = reader.manifest.cluster, reader.name
        request.since_life = reader.manifest.life
        request.since.extend(
            cluster_pb2.ShardPoint(group=part.descriptor.group, revision=part.revision) for part in parts
        )
    progress = Progress(sys.stderr, "saved", noun="shards")

    async def work(client: AsyncClient) -> None:
        out.seek(0)
        out.truncate()
        await _receive(client, request, out, progress)

    settings.run(lambda client: client.status())  # that an address is wrong should be told soon
    try:
        with open(draft, "ab", opener=_secret) as out:
            _alone(out, draft)
            try:
                _run(settings, work, out)
                reader, parts = _checked(draft)
                draft.replace(file)
                sync_name(file.absolute())
            finally:
                draft.unlink(missing_ok=True)
    except OSError as error:
        raise named(error, str(file)) from error
    finally:
        progress.close()
    _print(settings, reader, parts, file.stat().st_size)


def _run(settings: Settings, work: Callable[[AsyncClient], Awaitable[None]], out: IO[bytes]) -> None:
    """Have the backup sent. What ends amid it is said to be begun anew: nothing of it is left."""
    again = "nothing is saved: run the same command again"
    try:
        settings.run(work, PATIENCE)
    except NebulaError as error:
        if out.tell():
            error.args = (f"stopped: {error.message}; {again}",)
        raise
    except KeyboardInterrupt:
        complain(f"stopped; {again}")
        raise


def _secret(path: str, flags: int) -> int:
    return os.open(path, flags, SECRET)


def _alone(out: IO[bytes], draft: Path) -> None:
    """Raise `ConfigurationError` if another save writes there, too: each would spoil the other's."""
    try:
        fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.fchmod(out.fileno(), SECRET)  # what a save that was killed left may have another mode
        if draft.exists() and os.path.samestat(os.fstat(out.fileno()), draft.stat()):  # else its name is FILE by now
            return
    except BlockingIOError:
        pass
    raise ConfigurationError(f"{draft}: another save writes there; wait for its end, or name another file")


def _place(file: Path) -> tuple[Path, Path]:
    """Where a backup goes, and where until it is whole. Raises `ConfigurationError` for a device, say: the backup would
    take its name from it, or go into it."""
    if str(file) == "-":
        raise ConfigurationError("a backup is checked before it is given out: name a file, not -")
    file = Path(os.path.realpath(file))
    draft = file.with_name(file.name + ".part")
    for place in (file, draft):
        if os.path.lexists(place) and not stat.S_ISREG(place.lstat().st_mode):
            raise ConfigurationError(f"{place} is no regular file; name one, or a new one")
    return file, draft


async def _receive(
    client: AsyncClient, request: cluster_pb2.SnapshotRequest, out: IO[bytes], progress: Progress
) -> None:
    size = 0
    async for response in client.snapshot(request):
        out.write(response.data)
        size += len(response.data)
        progress.update(response.shards_done, size, response.shards)
    out.flush()
    os.fsync(out.fileno())


@snapshot.command("verify")
@click.argument("file", type=FILE)
@pass_settings
def verify(settings: Settings, file: Path) -> None:
    """Read FILE to its end and check everything in it; exits 1 if it is damaged.

    It says which keyspaces are left out since they were dropped while they were saved.

    \b
    Example:
      nebula-cli snapshot verify monday.snap
    """
    reader, parts = _checked(file)
    _print(settings, reader, parts, file.stat().st_size)


@snapshot.command("restore")
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option("--data-dir", type=click.Path(file_okay=False), required=True, help="Must be empty.")
@click.option(
    "--name", type=TEXT, default="n1", show_default=True, help="Of the node that will start from the directory."
)
@click.option(
    "--initial-cluster", type=TEXT, default="", help="NAME=HOST:PORT,... of all of the new cluster: peer addresses."
)
@click.option("--token", type=TEXT, default="", help="Makes another cluster where the same backup was restored before.")
@click.option(
    "--bump-revision",
    type=click.IntRange(min=0),
    default=0,
    help="Raise every shard's revision by so much, to 2^62 at most.",
)
@click.option("--mark-compacted", is_flag=True, help="Cancel watches that go on from the old cluster's revisions.")
@pass_settings
def restore_command(
    settings: Settings,
    files: tuple[Path, ...],
    data_dir: str,
    name: str,
    initial_cluster: str,
    token: str,
    bump_revision: int,
    mark_compacted: bool,
) -> None:
    """Make a node's data directory from FILES: a backup, and those saved since, the oldest first.

    For a cluster of several nodes do it on each, with the same FILES, --initial-cluster and other flags but --name and
    --data-dir; then start them all. It is a new cluster with an id of its own.

    \b
    Example:
      nebula-cli snapshot restore monday.snap --data-dir n1
      nebula-cli snapshot restore monday.snap tuesday.snap --data-dir n2 --name n2 --bump-revision 1000000 \\
          --initial-cluster n1=10.0.0.1:7380,n2=10.0.0.2:7380,n3=10.0.0.3:7380
    """
    from nebuladb.server import config  # late: no other command needs a database in memory
    from nebuladb.server.restore import Wanted, restore

    # The node's own settings know how to read a cluster, and what is wrong with one.
    flags = {"name": name, "data-dir": data_dir, "initial-cluster": initial_cluster}
    members = config.load(flags, {}).initial_cluster
    wanted = Wanted(name, members, token, bump_revision, mark_compacted)
    parts = _with_progress(files, "restored", lambda update: restore(files, Path(data_dir), wanted, update))
    with settings.output() as output:
        _print_parts(output, parts)


def _checked(file: Path) -> tuple[BackupReader, list[ShardPart]]:
    """Raises `Corruption` that names the file."""
    found: list[tuple[BackupReader, list[ShardPart]]] = []

    def work(update: Callable[[int], None]) -> list[ShardPart]:
        found.append(check(file, update))
        return found[0][1]

    try:
        _with_progress((file,), "checked", work)
    except Corruption as error:
        raise Corruption(f"{file}: {error.message}") from error
    return found[0]


def _with_progress(
    files: tuple[Path, ...], verb: str, work: Callable[[Callable[[int], None]], list[ShardPart]]
) -> list[ShardPart]:
    progress, size = Progress(sys.stderr, verb), 0

    def update(read: int) -> None:
        nonlocal size
        size += read
        progress.update(0, size, len(files))

    try:
        return work(update)
    finally:
        progress.close()


def _print(settings: Settings, reader: BackupReader, parts: list[ShardPart], size: int) -> None:
    with settings.output() as output:
        _print_parts(output, parts)
        for name in sorted(reader.gone):
            output.row({"keyspace": name, "left_out": "dropped while it was saved"})
        output.row(
            {
                "name": reader.name,
                "since": reader.manifest.since,
                "cluster": f"{reader.manifest.cluster:016x}",
                "version": reader.manifest.version,
                "shards": len(parts),
                "keys": sum(part.keys for part in parts),
                "bytes": size,
            }
        )


def _print_parts(output: Output, parts: list[ShardPart]) -> None:
    for part in parts:
        output.row(
            {
                "group": part.descriptor.group,
                "keyspace": part.descriptor.keyspace,
                "revision": part.revision,
                "compact_revision": part.floor,
                "keys": part.keys,
                "since_revision": part.after,
            }
        )


COMMANDS: Final = (snapshot,)

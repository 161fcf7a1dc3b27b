"""``load``: a directory into the database, and its comparison with what is there."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import click

from nebuladb.cli import files
from nebuladb.cli.files import CHUNK, Meta, meta_key
from nebuladb.cli.output import printable
from nebuladb.cli.parallel import Budget, in_parallel
from nebuladb.cli.progress import Progress
from nebuladb.cli.settings import Settings, ask_for_room, complain, pass_settings, spread
from nebuladb.cli.tree import Fate, Found, open_file, walk
from nebuladb.client import AsyncClient, Session
from nebuladb.errors import ChangeRefused, InvalidArgument, NebulaError, ResultTooLarge

JOBS: Final = 32
"""Files at a time; below a session's window."""

HELD: Final = 16 * CHUNK
"""Bytes of file content in memory."""

PATIENCE: Final = 60.0
"""Seconds a request may take at least: a load goes on by itself after a leader's death."""

AGAIN: Final = "what was done stays: run the same command again to go on"


class Changed(Exception):
    """The file was written while it was read."""


class Place(NamedTuple):
    """Which files, where they go, and what became of them."""

    root: bytes
    prefix: bytes
    exclude: tuple[str, ...]
    progress: Progress
    tally: Counter[str]


class Walk:
    """What ``load`` and its verification have in common: every file once, with counts, notes and progress."""

    def __init__(self, place: Place, client: AsyncClient) -> None:
        self.client = client
        self._place = place
        self._budget = Budget(HELD)
        self._total = 0

    async def run(self) -> None:
        """Deal with every file. Raises `NebulaError` if it makes no sense to go on."""
        root, exclude = self._place.root, self._place.exclude
        self._total = sum(1 for _ in walk(root, exclude, lambda *_: None))
        try:
            await in_parallel(walk(root, exclude, self._odd), JOBS, self._one)
        finally:
            self._place.progress.close()

    async def content(self, found: Found, key: bytes) -> None:
        """Deal with one file; counts what became of it."""
        raise NotImplementedError

    def count(self, fate: str, path: bytes = b"", why: str = "") -> None:
        """Count a file, and name it if something is wrong with it."""
        self._place.tally[fate] += 1
        if why:
            self._place.progress.note(f"{printable(path)}: {why}")

    def moved(self, size: int) -> None:
        """So many more bytes went over the wire."""
        tally = self._place.tally
        tally["bytes"] += size
        self._place.progress.update(tally["files"], tally["bytes"], self._total)

    def _odd(self, path: bytes, why: str, fate: Fate) -> None:
        self.count(fate, path, why)

    async def _one(self, found: Found) -> None:
        try:
            async with self._budget.hold(min(found.size, CHUNK)):
                await self.content(found, self._place.prefix + found.path)
        except OSError as error:
            self.count("failed", found.path, error.strerror or str(error))
        except Changed:
            self.count("failed", found.path, "it was changed while it was read; run the command again")
        except InvalidArgument as error:
            self.count("failed", found.path, error.message)
        self.count("files")
        self.moved(0)


class Loader(Walk):
    """Stores files that aren't there yet."""

    def __init__(self, place: Place, client: AsyncClient, session: Session) -> None:
        super().__init__(place, client)
        self.session = session

    async def content(self, found: Found, key: bytes) -> None:
        descriptor, state = await asyncio.to_thread(open_file, found.place)
        try:
            mode = state.st_mode & 0o777
            if state.st_size <= CHUNK:
                content = await asyncio.to_thread(_read, descriptor, 0, CHUNK + 1)
                if len(content) != state.st_size:
                    raise Changed
                await self._small(key, content, Meta.of(content, mode))
            else:
                digest = await asyncio.to_thread(_digest, descriptor, state.st_size)
                await self._large(key, descriptor, Meta(state.st_size, digest, mode))
        finally:
            os.close(descriptor)

    async def _small(self, key: bytes, content: bytes, meta: Meta) -> None:
        """Content and meta row at once; and what a larger file of this name may have left, even a half-loaded one."""
        if await self._is_there(key, meta):
            return
        try:
            await self._replace(key, content, meta)
        except ResultTooLarge:  # for one transaction; deletions of ranges alone have no bound
            await self.session.delete(*files.all_but_first(key))
            await self._replace(key, content, meta)
        self.count("loaded")
        self.moved(meta.size)

    async def _replace(self, key: bytes, content: bytes, meta: Meta) -> None:
        txn = self.session.txn().put(key, content).delete(*files.chunk_range(key))
        await txn.put(meta_key(key), meta.to_bytes()).commit()

    async def _large(self, key: bytes, descriptor: int, meta: Meta) -> None:
        """The old meta row goes first: no meta row may ever stand beside content that isn't its own."""
        if await self._is_there(key, meta):
            return
        await self.session.delete(*files.all_but_first(key))
        digest = hashlib.sha256()
        for number in range(meta.chunks):
            chunk = await asyncio.to_thread(_read, descriptor, number * CHUNK, CHUNK)
            digest.update(chunk)
            await self.session.put(files.chunk_key(key, number), chunk)
            self.moved(len(chunk))
        if digest.hexdigest() != meta.sha256:
            raise Changed
        await self.session.put(meta_key(key), meta.to_bytes())
        self.count("loaded")

    async def _is_there(self, key: bytes, meta: Meta) -> bool:
        row = await self.client.get(meta_key(key))
        try:
            if row is None or Meta.from_bytes(row.value)[:2] != meta[:2] or await self._touched(key, row.mod_revision):
                return False
        except ValueError:
            return False
        self.count("skipped")
        return True

    async def _touched(self, key: bytes, loaded: int) -> bool:
        """Whether somebody has written to the file's own key, or deleted it, since its meta row was written."""
        first = [row async for row in self.client.scan(key, key + b"\0", keys_only=True)]
        return not first or first[0].mod_revision > loaded


class Verifier(Walk):
    """Reads files back and compares their SHA-256."""

    async def content(self, found: Found, key: bytes) -> None:
        descriptor, state = await asyncio.to_thread(open_file, found.place)
        try:
            own = await asyncio.to_thread(_digest, descriptor, state.st_size)
        finally:
            os.close(descriptor)
        row = await self.client.get(meta_key(key))
        if row is None:
            self.count("missing", found.path, "it isn't in the database")
            return
        why = await self._difference(key, row.value, own)
        self.count("different" if why else "same", found.path, why)

    async def _difference(self, key: bytes, row: bytes, own: str) -> str:
        """Why the stored file isn't the one with the hash `own`; empty if it is."""
        try:
            meta = Meta.from_bytes(row)
        except ValueError as error:
            return str(error)
        digest = hashlib.sha256()
        for number in range(meta.chunks):
            chunk = await self.client.get(files.chunk_key(key, number))
            if chunk is None:
                return f"chunk {number} is missing in the database"
            digest.update(chunk.value)
            self.moved(len(chunk.value))
        if digest.hexdigest() != meta.sha256:
            return "what is stored DIFFERS from what was loaded"
        return "" if meta.sha256 == own else "the file differs from the one that was loaded"


def _read(descriptor: int, offset: int, size: int) -> bytes:
    """Up to `size` bytes; fewer only at the file's end."""
    parts = []
    while size and (part := os.pread(descriptor, size, offset)):
        parts.append(part)
        offset += len(part)
        size -= len(part)
    return b"".join(parts)


def _digest(descriptor: int, size: int) -> str:
    """Of the first `size` bytes. Raises `Changed` if there are fewer, or more."""
    digest, offset = hashlib.sha256(), 0
    while part := os.pread(descriptor, CHUNK, offset):
        digest.update(part)
        offset += len(part)
        if offset > size:
            break
    if offset != size:
        raise Changed
    return digest.hexdigest()


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=bytes))
@click.option("--prefix", default="", help="Put this before every path.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave out names or paths like this; repeatable.")
@click.option("--verify", is_flag=True, help="Store nothing: read everything back and compare SHA-256.")
@pass_settings
def load(settings: Settings, directory: bytes, prefix: str, exclude: tuple[str, ...], verify: bool) -> None:
    """Store each regular file below DIRECTORY under its path, in a keyspace that is not placed by hash.

    Files that are there already, by size and SHA-256, are skipped: after an interruption run the same command again.
    One whose key PATH was deleted or written over since, by `del` or `put`, is stored anew. Writes are exactly-once and
    go on over the death of nodes. A file over 1 MiB lies in several keys: PATH, PATH\\0chunk\\000000001 and so on;
    PATH\\0meta, written last, makes it count; `del PATH --end PATH^A`, where ^A is a byte 1, deletes all of them.
    Symbolic links, and files that can't be read, are named and left out; the latter make it exit 1.

    --verify reads every file back through the first endpoint that answers, so with one endpoint through that node.

    \b
    Example:
      nebula-cli load /usr/share/doc --prefix doc/ --exclude '*.gz'
      nebula-cli --endpoints 127.0.0.1:7479 load --verify /usr/share/doc --prefix doc/ --exclude '*.gz'
    """
    progress = Progress(sys.stderr, "compared" if verify else "loaded")
    place = Place(directory, os.fsencode(prefix), exclude, progress, Counter())

    async def check(client: AsyncClient) -> None:
        if await spread(client):
            raise ChangeRefused(
                f"keyspace {client.keyspace!r} places keys by hash, and a file's rows must lie in one shard: load into "
                "`default`, or into one that was created with `--partitioning range` or `single`"
            )
        if not verify:
            await ask_for_room(client)

    async def work(client: AsyncClient) -> None:
        if verify:
            await Verifier(place, client).run()
        else:
            async with client.session() as session:
                await Loader(place, client, session).run()

    # Patience is for what happens on the way: what is wrong from the beginning should be told soon.
    settings.run(check)
    names = ("same", "different", "missing") if verify else ("loaded", "skipped")
    finish(settings, place.tally, ("files", *names, "left_out", "failed", "bytes"), work)


def finish(
    settings: Settings,
    tally: Counter[str],
    names: tuple[str, ...],
    work: Callable[[AsyncClient], Awaitable[None]],
) -> None:
    """Do `work` patiently, print the counts whatever happens, and exit 1 if something is wrong."""
    try:
        settings.run(work, PATIENCE)
    except NebulaError as error:
        error.args = (f"stopped: {error.message}; {AGAIN}",)
        raise
    except KeyboardInterrupt:
        complain(f"stopped; {AGAIN}")
        raise
    finally:
        with settings.output() as output:
            output.row({n: tally[n] for n in names}, b" ".join(b"%s=%d" % (n.encode(), tally[n]) for n in names))
    if tally["failed"] or tally["different"] or tally["missing"]:
        raise click.exceptions.Exit(1)


COMMANDS: Final = (load,)

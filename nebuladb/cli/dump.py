"""``dump``: loaded files put together again."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections import Counter
from contextlib import suppress
from typing import Final

import click

from nebuladb.cli.draft import Draft, tidy_end
from nebuladb.cli.files import META, Meta, parse_key
from nebuladb.cli.load import finish
from nebuladb.cli.output import printable
from nebuladb.cli.progress import Progress
from nebuladb.cli.settings import NUMBER, Settings, pass_settings
from nebuladb.client import AsyncClient, KeyValue, prefix_end

REPLACED: Final = (stat.S_IFREG, stat.S_IFLNK)
"""What a file takes the place of: a device, say, would lose its name."""


class Part:
    """A file that is being put together, under a name of its own until it is whole."""

    def __init__(self, path: bytes, target: bytes) -> None:
        """Raises OSError."""
        self.path = path
        self._target = target
        self._draft = Draft(target)
        self._digest = hashlib.sha256()
        self.chunks = 0
        self._size = 0

    def add(self, chunk: bytes) -> None:
        """The next chunk."""
        self._draft.write(chunk)
        self._digest.update(chunk)
        self._size += len(chunk)
        self.chunks += 1

    def finish(self, meta: Meta) -> int:
        """Give it its name, if it is what `meta` says. Returns its size; raises ValueError or OSError."""
        if (self._size, self.chunks, self._digest.hexdigest()) != (meta.size, meta.chunks, meta.sha256):
            raise ValueError("its content DIFFERS from what was loaded")
        if os.path.lexists(self._target) and stat.S_IFMT(os.lstat(self._target).st_mode) not in REPLACED:
            raise ValueError("something that is no file has its name; it is not written")
        self._draft.finish(meta.mode & 0o777)
        return self._size

    def discard(self) -> None:
        """Leave nothing behind."""
        self._draft.discard()


class Restorer:
    """Takes rows in key order, and writes each file once its meta row has come (``files``)."""

    def __init__(self, root: bytes, prefix: bytes, progress: Progress) -> None:
        self._root = root
        self._prefix = prefix
        self._progress = progress
        self._part: Part | None = None
        self._bad: bytes | None = None
        """The path whose rows are being passed over; it has been named."""
        self.tally: Counter[str] = Counter()

    def row(self, kv: KeyValue) -> None:
        """The next row."""
        path, what = parse_key(kv.key)
        path = path[len(self._prefix) :]
        if self._part is not None and self._part.path != path:
            self._fail(self._part.path, "it has no meta row: its load was interrupted, or it is no file")
        if path == self._bad and what:
            return
        self._bad = None
        try:
            if not what:
                self._part = Part(path, self._target(path))
            part = self._part
            if part is None or what not in (META, part.chunks):
                raise ValueError(f"a chunk before its {'meta row' if what == META else f'chunk {what}'} is missing")
            if what == META:
                self.tally["bytes"] += part.finish(Meta.from_bytes(kv.value))
                self._part = None
                self.tally["files"] += 1
                self._progress.update(self.tally["files"], self.tally["bytes"])
            else:
                part.add(kv.value)
        except OSError as error:
            self._fail(path, error.strerror or str(error))
        except ValueError as error:
            self._fail(path, str(error))

    def close(self) -> None:
        """There are no more rows."""
        if self._part is not None:
            self._fail(self._part.path, "it has no meta row: its load was interrupted, or it is no file")
        self._progress.close()

    def abandon(self) -> None:
        """Leave nothing half-written behind."""
        if self._part is not None:
            self._part.discard()
            self._part = None

    def _fail(self, path: bytes, why: str) -> None:
        self.abandon()
        self._bad = path
        self.tally["failed"] += 1
        self._progress.note(f"{printable(path)}: {why}")

    def _target(self, path: bytes) -> bytes:
        """Where it goes, with its directories made. Refuses to leave the root, by name or through a link."""
        parts = path.split(b"/")
        if b"\0" in path or any(part in (b"", b".", b"..") for part in parts):
            raise ValueError("not a path inside a directory; it is not written")
        place = self._root
        for part in parts[:-1]:
            place = os.path.join(place, part)
            with suppress(FileExistsError):
                os.mkdir(place)
            if not stat.S_ISDIR(os.lstat(place).st_mode):
                raise ValueError(f"{printable(place)} is no directory; it is not written")
        return os.path.join(place, parts[-1])


@click.command()
@click.argument("destination", type=click.Path(file_okay=False, path_type=bytes))
@click.option("--prefix", default="", help="The files whose keys begin so; it is taken off their paths.")
@click.option("--revision", type=NUMBER, default=0, help="As it was at this revision.")
@pass_settings
def dump(settings: Settings, destination: bytes, prefix: str, revision: int) -> None:
    """Write the files that ``load`` stored below DESTINATION, all of a shard as of one revision.

    Each file is checked against its SHA-256 and appears whole or not at all. What isn't whole is named, and makes it
    exit 1.

    \b
    Example:
      nebula-cli dump /tmp/doc --prefix doc/
    """
    start = os.fsencode(prefix)

    async def check(client: AsyncClient) -> None:
        await client.describe_keyspace(client.keyspace)
        async for _ in client.scan(start, prefix_end(start), limit=1, revision=revision, keys_only=True):
            pass

    # Patience is for what happens on the way: a wrong address, keyspace or revision should be told soon.
    settings.run(check)
    os.makedirs(destination, exist_ok=True)
    restorer = Restorer(destination, start, Progress(sys.stderr, "written"))

    async def work(client: AsyncClient) -> None:
        try:
            async for row in client.scan(start, prefix_end(start), revision=revision):
                restorer.row(row)
            restorer.close()
        finally:
            restorer.abandon()

    with tidy_end():
        finish(settings, restorer.tally, ("files", "failed", "bytes"), work)


COMMANDS: Final = (dump,)

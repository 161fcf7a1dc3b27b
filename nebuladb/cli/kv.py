"""put, get, del, scan, watch and txn."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from typing import IO, Final

import click

from nebuladb.cli import txntext
from nebuladb.cli.output import Field, Output, named
from nebuladb.cli.place import write
from nebuladb.cli.settings import (
    LEASE,
    NUMBER,
    SECONDS,
    Settings,
    hex_option,
    key_bytes,
    key_range,
    pass_settings,
    spread,
)
from nebuladb.client import AsyncClient, DeleteResult, Event, KeyValue, PutResult, RangeResult
from nebuladb.client.transport import MAX_REQUEST
from nebuladb.errors import RequestTooLarge, WrongShard

MAX_TEXT: Final = 5 * MAX_REQUEST
"""Bytes of a transaction's text: of the largest one with each of its bytes as \\xHH, and comments."""


@click.command()
@click.argument("key")
@click.argument("value", required=False)
@click.option("--file", "file", type=click.File("rb"), help="Take the value from this file.")
@click.option("--lease", type=LEASE, default=0, help="Delete the key when this lease ends.")
@hex_option
@pass_settings
def put(settings: Settings, key: str, value: str | None, file: IO[bytes] | None, lease: int, hexadecimal: bool) -> None:
    """Set KEY to VALUE; a VALUE of - is read from stdin.

    \b
    Example:
      nebula-cli put greeting hello
      date | nebula-cli put now -
      nebula-cli put picture --file cat.jpg
    """
    if (value is None) == (file is None):
        raise click.UsageError("give a VALUE (- for stdin) or --file, one of them")
    name = key_bytes(key, hexadecimal)
    if file is not None:
        content = _read(file, MAX_REQUEST)
    elif value == "-":
        content = _read(sys.stdin.buffer, MAX_REQUEST)
    else:
        content = key_bytes(value or "")
    answer = settings.run(lambda client: client.put(name, content, lease=lease))
    with settings.output() as output:
        output.row({"revision": answer.revision}, b"OK")


@click.command()
@click.argument("key")
@click.option("--file", type=click.Path(dir_okay=False, allow_dash=True), help="Write the value there, - for stdout.")
@click.option("--revision", type=NUMBER, default=0, help="As it was at this revision.")
@click.option("--serializable", is_flag=True, help="Let any node answer from its own state, perhaps an old one.")
@click.option("--max-staleness", type=SECONDS, default=0.0, help="Likewise, but at most so many seconds old.")
@hex_option
@click.pass_context
def get(
    context: click.Context,
    key: str,
    file: str | None,
    revision: int,
    serializable: bool,
    max_staleness: float,
    hexadecimal: bool,
) -> None:
    """Print the value of KEY and a newline. Of a missing key it prints nothing, writes no file, and exits 1.

    --file writes the value as it is, with nothing added, and prints nothing else. The file appears whole or not at all,
    also in the place of one of yours. Written in place are another user's file, one with several names (hard links),
    one in a directory where you may make none, and what is no file, such as a pipe.

    \b
    Example:
      nebula-cli get greeting
      nebula-cli -o json get --revision 7 greeting
      nebula-cli get picture --file cat.jpg
    """
    settings = context.find_object(Settings)
    assert settings is not None  # the group made it
    name = key_bytes(key, hexadecimal)
    found = settings.run(
        lambda client: client.get(name, revision=revision, serializable=serializable, max_staleness=max_staleness)
    )
    if found is None:
        context.exit(1)
    if file is not None:
        _write(file, found.value)
        return
    with settings.output() as output:
        output.row(_fields(found), found.value)


@click.command("del")
@click.argument("key", required=False)
@click.option("--prefix", help="Delete every key that begins so.")
@click.option("--end", help="Delete every key from KEY up to, but without, this one.")
@hex_option
@pass_settings
def delete(settings: Settings, key: str | None, prefix: str | None, end: str | None, hexadecimal: bool) -> None:
    """Delete KEY, or a range of keys, and print how many there were.

    A range must lie in one shard, so there is none where keys are placed by hash.

    \b
    Example:
      nebula-cli del greeting
      nebula-cli del --prefix users/
    """
    start, range_end = key_range(key, prefix, end, hexadecimal)

    async def work(client: AsyncClient) -> DeleteResult:
        try:
            return await client.delete(start, range_end)
        except WrongShard as error:
            if not await spread(client):
                raise
            raise WrongShard(
                f"keyspace {client.keyspace!r} places keys by hash, so a range of them lies in many shards, and a "
                "deletion in one: list the keys with `scan --keys-only`, and delete each by itself"
            ) from error

    answer = settings.run(work)
    with settings.output() as output:
        output.row({"deleted": answer.deleted, "revision": answer.revision}, str(answer.deleted).encode())


@click.command()
@click.argument("start", required=False)
@click.option("--prefix", help="The keys that begin so.")
@click.option("--end", help="The keys before this one.")
@click.option("--limit", type=NUMBER, default=0, help="At most so many keys.")
@click.option("--revision", type=NUMBER, default=0, help="As it was at this revision.")
@click.option("--keys-only", is_flag=True, help="Print no values.")
@click.option("--serializable", is_flag=True, help="Let any node answer from its own state, perhaps an old one.")
@click.option("--next-revisions", is_flag=True, help="Say on stderr where a watch goes on, SHARD:REVISION a line.")
@hex_option
@pass_settings
def scan(
    settings: Settings,
    start: str | None,
    prefix: str | None,
    end: str | None,
    limit: int,
    revision: int,
    keys_only: bool,
    serializable: bool,
    next_revisions: bool,
    hexadecimal: bool,
) -> None:
    """Print keys and values in order, from START on (without it: from the first key).

    A line is KEY, a tab, VALUE, as raw bytes; with -o json both are in base64 and safe to take apart. A watch with what
    --next-revisions says misses nothing that the scan has not seen, and repeats nothing.

    \b
    Example:
      nebula-cli scan --prefix users/ --limit 10
      nebula-cli scan a --end b --keys-only
      nebula-cli scan --next-revisions 2>next
      nebula-cli watch --prefix "" $(sed 's/^/--from-revision /' next)
    """
    if prefix is not None:
        first, last = key_range(start, prefix, end, hexadecimal)
    else:
        first, last = (key_bytes(text or "", hexadecimal) for text in (start, end))

    async def work(client: AsyncClient) -> None:
        rows = client.scan(first, last, limit=limit, revision=revision, keys_only=keys_only, serializable=serializable)
        with settings.output() as output:
            async for row in rows:
                fields = _fields(row)
                if keys_only:
                    del fields["value"]
                output.row(fields, row.key if keys_only else row.key + b"\t" + row.value)
        if next_revisions:
            for shard, read in sorted(rows.revisions.items()):
                click.echo(f"{shard}:{read + 1}", err=True)

    settings.run(work)


def _starts(_: click.Context, __: click.Parameter, words: tuple[str, ...]) -> dict[int, int]:
    """Shard → revision, of SHARD:REVISION; of a REVISION alone, 0 is the shard."""
    starts: dict[int, int] = {}
    for word in words:
        parts = re.fullmatch(r"(?:([0-9]{1,19}):)?([0-9]{1,18})", word)
        if parts is None:
            raise click.BadParameter(f"{word!r} is neither REVISION nor SHARD:REVISION, e.g. 2 or 4:17.")
        starts[int(parts[1] or 0)] = int(parts[2])
    if len(starts) < len(words) or (0 in starts and len(starts) > 1):
        raise click.BadParameter("give it once, or once for each shard as SHARD:REVISION.")
    return starts


@click.command()
@click.argument("key", required=False)
@click.option("--prefix", help="The keys that begin so.")
@click.option("--end", help="The keys from KEY up to, but without, this one.")
@click.option(
    "--from-revision",
    "starts",
    callback=_starts,
    multiple=True,
    metavar="[SHARD:]REVISION",
    help="Begin with the changes of this revision, else with the next change; once for each shard, if there are many.",
)
@click.option("--count", type=NUMBER, default=0, help="Stop after so many changes.")
@hex_option
@pass_settings
def watch(
    settings: Settings,
    key: str | None,
    prefix: str | None,
    end: str | None,
    starts: dict[int, int],
    count: int,
    hexadecimal: bool,
) -> None:
    """Print every change of KEY or of a range as it happens, each once and in its shard's order, until Ctrl-C.

    A line is PUT, a tab, the key, a tab, the value; or DELETE, a tab, the key. With -o json `group` is the shard, and
    --from-revision GROUP:MOD_REVISION goes on with that change and all of its transaction. A shard for which none is
    given begins with its next change.

    \b
    Example:
      nebula-cli watch --prefix jobs/
      nebula-cli watch --prefix "" --from-revision 2
      nebula-cli --keyspace users watch --prefix "" --from-revision 4:17 --from-revision 5:31
    """
    start, range_end = key_range(key, prefix, end, hexadecimal)
    whole = starts.pop(0, 0)

    async def work(client: AsyncClient) -> None:
        seen = 0
        output = settings.output()
        async for event in client.watch(start, range_end, start_revision=whole, start_revisions=starts):
            _print_event(output, event)
            seen += 1
            if seen == count:
                return

    with suppress(KeyboardInterrupt):  # the way to end it
        settings.run(work)


@click.command()
@click.option("--file", "file", type=click.File("rb"), default="-", help="Read the transaction from here, not stdin.")
@pass_settings
def txn(settings: Settings, file: IO[bytes]) -> None:
    """Run a transaction, read from stdin: conditions, and what to do if all hold, or else.

    \b
    The text, in UTF-8, has up to three sections, a statement a line; a # at a word's start begins a comment:
      when    version|create|mod|value|lease KEY =|!=|>|< X
      then    put KEY VALUE [LEASE] | get KEY [END] | del KEY [END]
      else    the same
    A word with blanks, quotes or other bytes stands in "quotes", with \\n \\t \\" \\\\ \\xHH inside.
    Of a missing key version, create, mod and lease are 0. No section header means then.

    The first line printed is "succeeded" (then) or "failed" (else ran); the results follow. Both exit 0.

    \b
    Example:
      nebula-cli txn <<'.'
      when
        version lock = 0
      then
        put lock "my host"
      else
        get lock
      .
    """
    try:
        request = txntext.parse(_read(file, MAX_TEXT).decode())
    except UnicodeDecodeError as error:
        raise click.UsageError(
            f'the transaction is not UTF-8 at byte {error.start}; write such bytes as \\xHH, in "quotes"'
        ) from None
    except ValueError as error:
        raise click.UsageError(str(error)) from None

    async def work(client: AsyncClient) -> None:
        builder = client.txn()
        builder.request.CopyFrom(request)
        result = await builder.commit()
        with settings.output() as output:
            branch = "succeeded" if result.succeeded else "failed"
            output.row({"operation": "txn", "result": branch, "revision": result.revision}, branch.encode())
            for part in result.results:
                _print_result(output, part)

    settings.run(work)


def _read(file: IO[bytes], limit: int) -> bytes:
    """All of it. Raises `RequestTooLarge` for more than `limit` bytes, of which no more are read."""
    content = file.read(limit + 1)
    if len(content) > limit:
        name = "stdin" if file is sys.stdin.buffer else file.name
        raise RequestTooLarge(
            f"{name} has more than {limit:,} bytes; at most {MAX_REQUEST:,} (1.5 MiB) go in a request"
        )
    return content


def _write(place: str, value: bytes) -> None:
    try:
        if place == "-":
            sys.stdout.buffer.write(value)
            sys.stdout.buffer.flush()
        else:
            write(place, value)
    except OSError as error:
        raise named(error, "stdout" if place == "-" else place) from error


def _fields(kv: KeyValue) -> dict[str, Field]:
    return {
        "key": kv.key,
        "value": kv.value,
        "create_revision": kv.create_revision,
        "mod_revision": kv.mod_revision,
        "version": kv.version,
        "lease": kv.lease,
    }


def _print_event(output: Output, event: Event) -> None:
    name = event.type.name
    line = name.encode() + b"\t" + event.kv.key + (b"\t" + event.kv.value if name == "PUT" else b"")
    output.row({"type": name, "group": event.group, **_fields(event.kv)}, line)
    output.flush()  # whoever reads this waits for it


def _print_result(output: Output, part: PutResult | DeleteResult | RangeResult) -> None:
    if isinstance(part, PutResult):
        output.row({"operation": "put", "result": "OK", "revision": part.revision}, b"OK")
    elif isinstance(part, DeleteResult):
        fields: dict[str, Field] = {"operation": "del", "result": part.deleted, "revision": part.revision}
        output.row(fields, str(part.deleted).encode())
    else:
        for kv in part.kvs:
            output.row({"operation": "get", **_fields(kv)}, kv.key + b"\t" + kv.value)


COMMANDS: Final = (put, get, delete, scan, watch, txn)

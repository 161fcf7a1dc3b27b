"""What the global options say, and what the commands share."""

from __future__ import annotations

import asyncio
import errno
import io
import math
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TextIO, TypeVar

import click

from nebuladb.cli.output import Output, Style
from nebuladb.client import AsyncClient, prefix_end
from nebuladb.errors import ConfigurationError, NebulaError
from nebuladb.kv.limits import MIN_LEASE_TTL
from nebuladb.pb.nebula.v1 import keyspace_pb2

Result = TypeVar("Result")
Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_ENDPOINTS: Final = "127.0.0.1:7379"
MAX_SECONDS: Final = 1e9
"""Of a time that is given in seconds: some thirty years."""


class _Seconds(click.FloatRange):
    """A number of seconds that is one: neither inf nor nan."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return seconds


class _Text(click.types.StringParamType):
    """What goes to a node as text, and so is UTF-8."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text: str = super().convert(value, param, ctx)
        try:
            text.encode()
        except UnicodeEncodeError:
            self.fail(f"{os.fsencode(text)!r} is not UTF-8.", param, ctx)
        return text


TEXT: Final = _Text()
NUMBER: Final = click.IntRange(0, (1 << 63) - 1)
"""A revision, or how many."""
LEASE: Final = click.IntRange(-(1 << 63), (1 << 63) - 1)
"""A lease's id."""
SECONDS: Final = _Seconds(0, MAX_SECONDS)
SOME_SECONDS: Final = _Seconds(0, MAX_SECONDS, min_open=True)
"""More than none."""


@dataclass(frozen=True)
class Settings:
    """The global options. `timeout` in seconds."""

    endpoints: tuple[str, ...]
    keyspace: str
    style: Style
    timeout: float

    def run(self, work: Callable[[AsyncClient], Awaitable[Result]], timeout: float = 0.0) -> Result:
        """Do `work` with a client of these settings, which has at least `timeout` seconds for a request."""

        async def main() -> Result:
            patience = max(self.timeout, timeout)
            async with AsyncClient(self.endpoints, keyspace=self.keyspace, timeout=patience) as client:
                return await work(client)

        return asyncio.run(main())

    def change(self, work: Callable[[AsyncClient], Awaitable[Result]]) -> Result:
        """Do `work`, which changes the cluster and has its own patience for that. A wrong address is told soon."""

        async def main(client: AsyncClient) -> Result:
            await client.members()  # of whichever node answers
            return await work(client)

        return self.run(main)

    def output(self) -> Output:
        """Where the results go."""
        return Output(self.style, sys.stdout.buffer)


pass_settings = click.make_pass_decorator(Settings)


class Commands(click.Group):
    """A group whose commands fail as the contract says; they keep the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def make_context(self, *given: Any, **named: Any) -> click.Context:
        if sys.stdout is None:  # `>&-`: what is asked for could not be told
            complain("stdout is closed; nothing was done")
            raise click.exceptions.Exit(1)
        try:
            return super().make_context(*given, **named)  # which prints --help and --version
        except OSError as error:
            self._failed(error)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NebulaError as error:
            complain(error.message)
            ctx.exit(2 if isinstance(error, ConfigurationError) else 1)
        except OSError as error:
            self._failed(error)

    @staticmethod
    def _failed(error: OSError) -> NoReturn:
        if error.errno == errno.EPIPE:
            raise error  # click ends then, quietly: nobody reads on
        complain(f"{os.fsdecode(error.filename or 'input or output')}: {error.strerror or error}")
        drop_output()
        raise click.exceptions.Exit(1)


class _Closed(io.RawIOBase):
    """A stdin that was closed before we began."""

    def readable(self) -> bool:
        return True

    def readinto(self, _: object) -> int:
        raise OSError(errno.EBADF, "it is closed", "stdin")


def closed_input() -> TextIO:
    """For `sys.stdin`, which is None then: whoever reads it hears what is wrong."""
    return io.TextIOWrapper(io.BufferedReader(_Closed()))


def drop_output() -> None:
    """Let it go: what stdout can't take would be tried, and complained about, once more at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(message: str) -> None:
    """One line on stderr."""
    click.echo("nebula-cli: " + " ".join(message.split()), err=True)


hex_option = click.option("--hex", "hexadecimal", is_flag=True, help="Keys on the command line are hexadecimal.")


def key_bytes(text: str, hexadecimal: bool = False) -> bytes:
    """A key as it was typed: whatever bytes the shell passed, or hexadecimal."""
    if not hexadecimal:
        return os.fsencode(text)
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise click.UsageError(f"{text!r} is not hexadecimal, e.g. 00ff") from None


async def spread(client: AsyncClient) -> bool:
    """Whether the client's keyspace places its keys by hash, over several shards: no range is in one of them."""
    info = await client.describe_keyspace(client.keyspace)
    return info.partitioning == keyspace_pb2.HASH and len(info.shards) > 1


async def ask_for_room(client: AsyncClient) -> None:
    """Raise what stands in the way of all that needs space, an alarm say, which a patient client would wait for: a
    lease takes some, for a moment."""
    await client.revoke_lease((await client.grant_lease(MIN_LEASE_TTL)).id)


def key_range(key: str | None, prefix: str | None, end: str | None, hexadecimal: bool) -> tuple[bytes, bytes]:
    """(start, end) of what KEY, --prefix and --end name; the end is empty for one key."""
    if (key is None) == (prefix is None):
        raise click.UsageError("give a KEY or --prefix, one of them")
    if prefix is not None:
        if end is not None:
            raise click.UsageError("--end goes with a KEY, not with --prefix")
        start = key_bytes(prefix, hexadecimal)
        return start or b"\0", prefix_end(start)
    if end == "":
        raise click.UsageError("--end is empty: leave it out for KEY alone, or name the key to stop before")
    return key_bytes(key or "", hexadecimal), key_bytes(end or "", hexadecimal)

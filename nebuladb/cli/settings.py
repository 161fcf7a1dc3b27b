"""What the global options say, and what the commands share."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import click

from nebuladb.cli.output import Output, Style
from nebuladb.client import AsyncClient, prefix_end
from nebuladb.errors import ConfigurationError, NebulaError

Result = TypeVar("Result")
Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_ENDPOINTS: Final = "127.0.0.1:7379"


@dataclass(frozen=True)
class Settings:
    """The global options. `timeout` in seconds."""

    endpoints: tuple[str, ...]
    keyspace: str
    style: Style
    timeout: float

    def client(self, timeout: float = 0.0) -> AsyncClient:
        """A client with these settings, perhaps a more patient one."""
        return AsyncClient(self.endpoints, keyspace=self.keyspace, timeout=max(self.timeout, timeout))

    def run(self, work: Callable[[AsyncClient], Awaitable[Result]], timeout: float = 0.0) -> Result:
        """Do `work` with a client."""

        async def main() -> Result:
            async with self.client(timeout) as client:
                return await work(client)

        return asyncio.run(main())

    def output(self) -> Output:
        """Where the results go."""
        return Output(self.style, sys.stdout.buffer)


pass_settings = click.make_pass_decorator(Settings)


class Commands(click.Group):
    """A group whose commands fail as the contract says; they keep the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NebulaError as error:
            complain(error.message)
            ctx.exit(2 if isinstance(error, ConfigurationError) else 1)


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


def key_range(key: str | None, prefix: str | None, end: str | None, hexadecimal: bool) -> tuple[bytes, bytes]:
    """(start, end) of what KEY, --prefix and --end name; the end is empty for one key."""
    if (key is None) == (prefix is None):
        raise click.UsageError("give a KEY or --prefix, one of them")
    if prefix is not None:
        if end is not None:
            raise click.UsageError("--end goes with a KEY, not with --prefix")
        start = key_bytes(prefix, hexadecimal)
        return start or b"\0", prefix_end(start)
    return key_bytes(key or "", hexadecimal), key_bytes(end, hexadecimal) if end is not None else b""

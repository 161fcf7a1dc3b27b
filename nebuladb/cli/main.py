"""The command group and its global options."""

from __future__ import annotations

import os
import sys

import click

from nebuladb import __version__
from nebuladb.cli import bench, cluster, compact, dump, etcd, kv, lease, load, lock, member, snapshot, status
from nebuladb.cli.output import Style
from nebuladb.cli.settings import DEFAULT_ENDPOINTS, SOME_SECONDS, TEXT, Commands, Settings, closed_input


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--endpoints",
    type=TEXT,
    envvar="NEBULA_ENDPOINTS",
    default=DEFAULT_ENDPOINTS,
    show_default=True,
    metavar="HOST:PORT,...",
    help="Client addresses of some nodes; the first that answers is asked. Also NEBULA_ENDPOINTS.",
)
@click.option("--keyspace", type=TEXT, default="default", show_default=True, help="The keyspace to work in.")
@click.option(
    "-o",
    "--output",
    type=click.Choice([style.value for style in Style]),
    default=Style.SIMPLE.value,
    show_default=True,
    help="simple: raw bytes, a newline after each; json: an object a line, bytes in base64; table: for reading.",
)
@click.option("--timeout", type=SOME_SECONDS, default=5.0, show_default=True, help="Seconds.")
@click.version_option(__version__)
@click.pass_context
def main(context: click.Context, endpoints: str, keyspace: str, output: str, timeout: float) -> None:
    """NebulaDB from the shell.

    Exit status: 0 done; 1 refused or failed, stderr says what to do; 2 wrong usage; 3 (check, status
    --hash) nothing differs, but not everything could be compared.

    \b
    Example:
      nebula-cli --endpoints 127.0.0.1:7379,127.0.0.1:7479 put greeting hello
      nebula-cli get greeting
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdin is None:
        sys.stdin = closed_input()
    context.obj = Settings(tuple(endpoints.split(",")), keyspace, Style(output), timeout)


for command in (
    *kv.COMMANDS,
    *compact.COMMANDS,
    *lease.COMMANDS,
    *lock.COMMANDS,
    *cluster.COMMANDS,
    *status.COMMANDS,
    *member.COMMANDS,
    *load.COMMANDS,
    *dump.COMMANDS,
    *bench.COMMANDS,
    *snapshot.COMMANDS,
    *etcd.COMMANDS,
):
    main.add_command(command)

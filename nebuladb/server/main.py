"""The command `nebulad`."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from nebuladb import __version__
from nebuladb.errors import ConfigurationError, NebulaError, NodeRemoved
from nebuladb.server import config, options
from nebuladb.server.process import EXIT_REMOVED

EXIT_FAILED = 1
EXIT_USAGE = 2
STDERR = 2

_FLAGS = {
    "name": "The node's name, a label for people.",
    "data-dir": "Where the node keeps everything.",
    "client-addr": "HOST:PORT to listen at for clients.",
    "peer-addr": "HOST:PORT to listen at for other nodes.",
    "admin-addr": "HOST:PORT to listen at for HTTP: /livez /readyz /status /metrics and the dashboard.",
    "advertise-client-addr": "HOST:PORT that clients are told. Default: the client address.",
    "advertise-peer-addr": "HOST:PORT that other nodes are told. Default: the peer address.",
    "initial-cluster": "NAME=HOST:PORT,... of the nodes that found the cluster. Default: this one alone.",
    "join": "HOST:PORT, any member's peer address: join its cluster.",
    "memory": "Budget for caches, memtables and queues, like 512MiB; at least 64MiB. The process adds some 70 MiB.",
    "rpc-engine": f"Which gRPC carries calls: one of {', '.join(config.RPC_ENGINES)}.",
    "log-format": f"One of {', '.join(config.LOG_FORMATS)}.",
    "log-level": f"One of {', '.join(config.LOG_LEVELS)}.",
    **options.FLAGS,
}


class _Command(click.Command):
    """A command whose --help is an error where nobody gets it."""

    def make_context(self, *given: Any, **named: Any) -> click.Context:
        try:
            return super().make_context(*given, **named)  # which prints --help and --version, and exits then
        except click.exceptions.Exit:
            if sys.stdout is None:  # `>&-`
                _refuse(NebulaError("stdout is closed"), EXIT_FAILED)
            raise
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # click ends then, quietly: nobody reads on
            _lost(error)


class _Group(_Command, click.Group):
    """Of such commands."""

    command_class = _Command


class _Directory(click.Path):
    """A directory that there is, or may be."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it must not be empty", param, ctx)  # for `Path` it is the current directory
        return super().convert(value, param, ctx)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="nebulad", message="%(prog)s %(version)s")
def nebulad() -> None:
    """NebulaDB's server."""


def start(config_file: Path | None, **flags: str | None) -> None:
    """Run a node until SIGTERM or Ctrl-C.

    Settings come from flags, then the environment (NEBULA_DATA_DIR and so on), then a TOML file with the flags' names
    as keys, then defaults.
    """
    loaded = config.load({key: flags[key.replace("-", "_")] for key in _FLAGS}, os.environ, config_file)
    # Imported late: `nebulad --help` and `nebulad dev` don't need a database in memory.
    from nebuladb.server import assembly

    try:
        sys.exit(assembly.run(loaded))
    except NebulaError as error:
        # A port or directory in use, say, is no wrong usage: another start may find it free.
        wrong = EXIT_USAGE if isinstance(error, config.WrongSetting) else EXIT_FAILED
        _refuse(error, EXIT_REMOVED if isinstance(error, NodeRemoved) else wrong)


def _start_command() -> click.Command:
    """The command `start`, with one option a setting."""
    command = click.command("start", cls=_Command)(start)
    command.params = [
        click.Option(
            ["--config", "config_file"],
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="TOML file with settings.",
        ),
        *(
            click.Option([f"--{key}"], help=text, metavar="TEXT", show_default=config.DEFAULTS[key] or False)
            for key, text in _FLAGS.items()
        ),
    ]
    return command


nebulad.add_command(_start_command())


@nebulad.command("dev")
@click.option("--nodes", default=3, show_default=True, help="How many nodes.")
@click.option(
    "--data-dir",
    type=_Directory(path_type=Path, file_okay=False),
    default=Path("nebula-dev"),
    show_default=True,
    help="Directory of the cluster; node i keeps its data in n{i}.",
)
@click.option(
    "--base-port", default=7379, show_default=True, help="Client port of the first node; the next has 100 more."
)
def dev_command(nodes: int, data_dir: Path, base_port: int) -> None:
    """Run a local cluster, a process per node, until SIGTERM or Ctrl-C.

    Prints one line on stdout, "cluster ready endpoints=...", when every node serves. Logs go to stderr.
    """
    from nebuladb.server import dev

    sys.exit(dev.run(nodes, data_dir, base_port))


@nebulad.command("verify")
@click.option("--data-dir", type=_Directory(path_type=Path, file_okay=False), required=True, help="The directory.")
def verify_command(data_dir: Path) -> None:
    """Check a data directory that no node runs on: documents, log, and the rows of every shard.

    It writes nothing. Prints a line for each part, and for each problem what to do; exits 1 if there is one, 2 if the
    directory can't be checked.
    """
    from nebuladb.server import verify

    try:
        sys.exit(0 if verify.report(data_dir, _say) else EXIT_FAILED)
    except NebulaError as error:
        _refuse(error, EXIT_USAGE)


@nebulad.command("recover")
@click.option("--data-dir", type=_Directory(path_type=Path, file_okay=False), required=True, help="A survivor's.")
@click.option(
    "--i-accept-data-loss", "accepted", is_flag=True, help="Do it; without this flag it says what may be lost."
)
def recover_command(data_dir: Path, accepted: bool) -> None:
    """Make a cluster of one out of a survivor, when the majority of the nodes is gone for good.

    No node may run on the directory. Keep a copy of it first.
    """
    from nebuladb.server import recover

    if not accepted:
        _refuse(
            ConfigurationError(f"{recover.WARNING}\nIf that is what you want, add --i-accept-data-loss."), EXIT_USAGE
        )
    lost: list[OSError] = []

    def say(text: str) -> None:
        try:
            print(text)
        except OSError as error:  # no reason to end amid a recovery
            lost.append(error)

    recover.recover(data_dir, say)
    if lost:
        _lost(lost[0])


def main() -> None:
    """Entry point. Exit code 0: done; 1: the node couldn't start or had to stop; 2: a wrong flag or setting; 3: the
    node was removed from its cluster."""
    _open_closed()
    try:
        nebulad()
    except NebulaError as error:
        _refuse(error, EXIT_USAGE if isinstance(error, ConfigurationError) else EXIT_FAILED)
    finally:
        _flush()


def _open_closed() -> None:
    """Let what was closed (`2>&-`) lead nowhere: the node's next file would be it, and get the log."""
    while (nowhere := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(nowhere, True)  # noqa: FBT003
    os.close(nowhere)
    if sys.stderr is None:
        sys.stderr = open(STDERR, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


def _say(text: str) -> None:
    """A line of a report. One that nobody gets is no success."""
    try:
        print(text)
    except OSError as error:
        _lost(error)


def _flush() -> None:
    """Write what stdout still holds."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _lost(error)


def _lost(error: OSError) -> NoReturn:
    # Else it would be tried, and complained about, once more.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    _refuse(NebulaError(f"stdout: {error.strerror}"), EXIT_FAILED)


def _refuse(error: NebulaError, code: int) -> NoReturn:
    print(f"nebulad: {error.message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()

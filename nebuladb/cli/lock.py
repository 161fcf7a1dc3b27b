"""lock: one holder at a time, and what it does meanwhile."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import click

from nebuladb.cli.settings import SECONDS, Settings, hex_option, key_bytes, pass_settings
from nebuladb.client import AsyncClient, Lock
from nebuladb.kv.limits import MAX_LEASE_TTL, MIN_LEASE_TTL

TOKEN: Final = "NEBULA_LOCK_TOKEN"
"""In the environment of the command: `Lock.token`."""
GRACE: Final = 5.0
"""Seconds from SIGTERM to SIGKILL for a command whose lock is lost."""
KILLED: Final = 128
"""Shells add the signal's number to it."""


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--ttl",
    type=click.IntRange(MIN_LEASE_TTL, MAX_LEASE_TTL),
    default=10,
    show_default=True,
    help="Seconds after which it is free if we are gone.",
)
@click.option("--wait", type=SECONDS, help="Wait so many seconds for others, 0: not at all.  [default: for ever]")
@hex_option
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@pass_settings
@click.pass_context
def lock(
    context: click.Context,
    settings: Settings,
    ttl: int,
    wait: float | None,
    hexadecimal: bool,
    name: str,
    command: tuple[str, ...],
) -> None:
    """Take the lock NAME and run COMMAND, or hold it until Ctrl-C.

    The lock is the key NAME; its value says on which machine and by which process it is held. COMMAND
    finds a number in NEBULA_LOCK_TOKEN that rises with every holder; without COMMAND it is printed.

    Exit status: that of COMMAND; 1 if the lock was lost (COMMAND is ended then), or others had it.

    \b
    Example:
      nebula-cli lock --wait 0 nightly ./report --all
    """
    key = key_bytes(name, hexadecimal)
    holder = f"{socket.gethostname()} {os.getpid()}".encode()

    program = command[1:] if command[:1] == ("--",) else command
    last: list[signal.Signals] = []

    async def work(client: AsyncClient) -> int:
        signals = _Signals(last)
        timeout = math.inf if wait is None else wait
        async with client.lock(key, ttl=ttl, value=holder, timeout=timeout) as held:
            status = 0
            if program:
                status = await _run(held, program, signals)
            else:
                with settings.output() as output:
                    output.row({"lock": key, "token": held.token}, str(held.token).encode())
                with suppress(asyncio.CancelledError):  # the way to end it
                    await held.lost()
            signals.ignore()
            held.check()  # else another may have had it before our end
            return status

    try:
        context.exit(settings.run(work))
    except asyncio.CancelledError:  # before we had it
        if last[-1] is signal.SIGINT:
            raise KeyboardInterrupt from None
        context.exit(KILLED + last[-1])


class _Signals:
    """Ctrl-C and SIGTERM, by the loop: each cancels what the task waits for. One that we were started to ignore, as a
    script's background jobs are Ctrl-C, stays ignored, by the command, too."""

    def __init__(self, come: list[signal.Signals]) -> None:
        """`come` has them in their order."""
        self._come = come
        self._task = asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                asyncio.get_running_loop().add_signal_handler(number, self._cancel, number)

    def _cancel(self, number: signal.Signals) -> None:
        if self._task is not None:
            self._come.append(number)
            self._task.cancel()

    @property
    def terminations(self) -> int:
        """How often SIGTERM has come."""
        return self._come.count(signal.SIGTERM)

    def ignore(self) -> None:
        """From now on: the lock's end is on its way, and would be left to the TTL."""
        self._task = None


async def _run(held: Lock, command: Sequence[str], signals: _Signals) -> int:
    """Run `command` to its end; its exit status. Signals are its affair: a terminal's Ctrl-C comes to it anyway, and
    SIGTERM is handed on."""
    child = await asyncio.create_subprocess_exec(*command, env={**os.environ, TOKEN: str(held.token)})
    ended, lost = asyncio.ensure_future(child.wait()), asyncio.ensure_future(held.lost())
    handed_on = 0
    while not ended.done() and not lost.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait((ended, lost), return_when=asyncio.FIRST_COMPLETED)
        if signals.terminations > handed_on:
            handed_on = signals.terminations
            _signal(child, signal.SIGTERM)
    signals.ignore()
    lost.cancel()
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not ended.done():
            _signal(child, number)
            await asyncio.wait((ended,), timeout=GRACE)
    status = await ended
    return status if status >= 0 else KILLED - status


def _signal(child: asyncio.subprocess.Process, number: signal.Signals) -> None:
    # It has ended, or is another user's by now, as sudo's: the lock is held while it runs.
    with suppress(ProcessLookupError, PermissionError):
        child.send_signal(number)


COMMANDS: Final = (lock,)

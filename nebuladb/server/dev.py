"""`nebulad dev`: a cluster on this machine, a process per node, for development and tests."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nebuladb.addresses import MAX_PORT, split_address
from nebuladb.errors import ConfigurationError, IdentityError
from nebuladb.node.identity import FOUNDING_FILE
from nebuladb.server import config
from nebuladb.server.config import Config
from nebuladb.server.lifecycle import DRAIN_SECONDS
from nebuladb.server.process import EXIT_REMOVED
from nebuladb.storage.lock import DirectoryLock
from nebuladb.storage.owner import unusable

CONFIG_FILE: Final = "nebulad.toml"
PORTS_PER_NODE: Final = 100
MAX_NODES: Final = 9
POLL_SECONDS: Final = 0.1
PROBE_SECONDS: Final = 1.0
"""For one request to a node's admin port: as long as a signal or a child's death may go unnoticed."""
STOP_SECONDS: Final = DRAIN_SECONDS + 5.0
"""A child that was asked to stop and still runs after this is killed."""
PASSED_ON: Final = ("NEBULA_LOG_LEVEL", "NEBULA_LOG_FORMAT", "NEBULA_RPC_ENGINE")
"""Settings that the children take from our environment. Not others: NEBULA_NAME would name all of them the same."""
START: Final = (sys.executable, "-m", "nebuladb.server.main", "start")
PR_SET_PDEATHSIG: Final = 1


@dataclass(frozen=True, slots=True)
class Member:
    """One planned node: its directory and its configuration."""

    directory: Path
    config: Config

    @property
    def file(self) -> Path:
        """The configuration file that `nebulad start` is given."""
        return self.directory / CONFIG_FILE


def plan(nodes: int, data_dir: Path, base_port: int) -> list[Member]:
    """The members of a cluster of `nodes` nodes: node i (from 0) is `n{i+1}` with three ports from base+100·i on."""
    if not 1 <= nodes <= MAX_NODES:
        raise ConfigurationError(f"--nodes: {nodes} is not a number from 1 to {MAX_NODES}")
    if not 1 <= base_port <= MAX_PORT - PORTS_PER_NODE * (nodes - 1) - 2:
        raise ConfigurationError(f"--base-port: {nodes} nodes from {base_port} on need ports that don't exist")
    ports = {f"n{i + 1}": base_port + PORTS_PER_NODE * i for i in range(nodes)}
    cluster = ",".join(f"{name}=127.0.0.1:{port + 1}" for name, port in ports.items())
    return [
        Member(
            directory=data_dir / name,
            config=config.load(
                {
                    "name": name,
                    "data-dir": str(data_dir / name),
                    "client-addr": f"127.0.0.1:{port}",
                    "peer-addr": f"127.0.0.1:{port + 1}",
                    "admin-addr": f"127.0.0.1:{port + 2}",
                    "initial-cluster": cluster,
                },
                {},
            ),
        )
        for name, port in ports.items()
    ]


def prepare(members: Sequence[Member], data_dir: Path) -> list[Member]:
    """Make directories and configuration files, or check that those of an earlier run are for the same cluster.
    Returns those that are to be started: not one whose directory was emptied since the cluster was founded, as that of
    a removed node may be. It can't found it again.

    Raises `ConfigurationError` before it changed anything if they are for another cluster.
    """
    ours = [member.file for member in members]
    known = sorted(data_dir.glob(f"n*/{CONFIG_FILE}"), key=lambda file: (file not in ours, file))
    # A person's own node may lie beside them, and joined later: that has no such list, and is none of ours.
    lists = (config.load({}, {}, file).initial_cluster for file in known)
    size = next((len(nodes) for nodes in lists if nodes), len(members))
    if size != len(members):
        raise ConfigurationError(
            f"--nodes: {data_dir} holds a cluster of {size} nodes; give --nodes {size} or another --data-dir"
        )
    for member in members:
        if member.file in known:
            _check_same(config.load({}, {}, member.file), member)
    founded = [member for member in members if (member.directory / FOUNDING_FILE).exists()]
    started = [member for member in members if member in founded or member.file in known or not founded]
    for name in sorted({member.config.name for member in members} - {member.config.name for member in started}):
        _say(
            f"{data_dir / name} has nothing of the cluster; going on without {name}. If it was not removed, replace "
            f"it: `nebula-cli member replace {name}`"
        )
    for member in started:
        try:
            member.directory.mkdir(parents=True, exist_ok=True)
            if not member.file.exists():
                scratch = member.file.with_suffix(".toml.new")
                scratch.write_text(member.config.to_toml(member.directory), encoding="utf-8")
                scratch.replace(member.file)
        except OSError as error:
            raise ConfigurationError(f"--data-dir: can't write {member.file}: {error.strerror}") from error
    return started


def _check_same(old: Config, member: Member) -> None:
    """What makes it another cluster must be equal; anything else a person may have edited."""
    for key in ("name", "data_dir", "client_addr", "peer_addr", "admin_addr", "initial_cluster"):
        before, now = getattr(old, key), getattr(member.config, key)
        if before != now:
            raise ConfigurationError(
                f"{member.file} says {key.replace('_', '-')} = {before}, and this command would say {now}; "
                "give the same --base-port as before, or another --data-dir"
            )


def _check_free(members: Sequence[Member]) -> None:
    """Raise `ConfigurationError` if somebody listens at one of their ports."""
    for member in members:
        for address in (member.config.client_addr, member.config.peer_addr, member.config.admin_addr):
            try:
                socket.create_server(split_address(address)).close()
            except OSError as error:
                raise ConfigurationError(
                    f"--base-port: {member.config.name} can't listen at {address}: {os.strerror(error.errno or 0)}; "
                    "give another --base-port"
                ) from error


def _lock(data_dir: Path) -> DirectoryLock:
    """The cluster's directory for us alone: a second supervisor is told before its children are, one by one. Theirs
    stay what keeps two nodes off one directory (S18). Raises `ConfigurationError` and `IdentityError`."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        return DirectoryLock(data_dir)
    except OSError as error:
        raise unusable(data_dir, error) from error


class _Child:
    """A node's process, started by us."""

    def __init__(self, member: Member, process: subprocess.Popen[bytes]) -> None:
        self.member = member
        self.process = process
        self.reported = False
        self.ready = False

    @property
    def removed(self) -> bool:
        """Whether it ended because its node was removed from the cluster: the others are the cluster now."""
        return self.process.poll() == EXIT_REMOVED

    @property
    def name(self) -> str:
        return self.member.config.name

    def death(self) -> str | None:
        """A line about its death, once; None while it lives."""
        code = self.process.poll()
        if code is None or self.reported:
            return None
        self.reported = True
        ended = f"{self.name} (pid {self.process.pid}) {_ending(code)}"
        return f"{ended}: it was removed from the cluster; going on without it" if self.removed else ended

    def check_ready(self) -> bool:
        """Whether it serves, and it is this process that does (not one that had the port before it)."""
        if not self.ready:
            url = f"http://{self.member.config.admin_addr}"
            self.ready = (
                _fetch(f"{url}/readyz") is not None
                and json.loads(_fetch(f"{url}/status") or b"{}").get("pid") == self.process.pid
            )
        return self.ready


def run(nodes: int, data_dir: Path, base_port: int, command: Sequence[str] = START) -> int:
    """Run a cluster until SIGTERM or Ctrl-C; returns the exit code (1 if a node died before all were ready).

    `command` starts a node when `--config FILE` is added to it. Raises `ConfigurationError`, and `IdentityError` if
    another `nebulad dev` runs on `data_dir`.
    """
    data_dir = data_dir.absolute()
    members = plan(nodes, data_dir, base_port)
    if not any(member.file.exists() for member in members):
        _check_free(members)  # else the files of a cluster that never ran would hold the next try to these ports
    lock = _lock(data_dir)
    try:
        return _run(prepare(members, data_dir), command)
    finally:
        lock.release()


def _run(members: Sequence[Member], command: Sequence[str]) -> int:
    with _Alarm() as alarm:
        children: list[_Child] = []
        try:
            if not _until_free(members, alarm):
                return 0
            children.extend(_Child(member, _spawn(command, member.file)) for member in members)
            if not _until_ready(children, alarm):
                return 0 if alarm.rung else 1
            endpoints = ",".join(child.member.config.client_addr for child in children if not child.removed)
            _tell(f"cluster ready endpoints={endpoints}")
            while not alarm.wait(None):
                _report(children)
            return 0
        finally:
            _stop(children, alarm)


def _until_free(members: Sequence[Member], alarm: _Alarm) -> bool:
    """Wait until no node runs on their directories, `STOP_SECONDS` at most: those of a supervisor that was killed still
    stop. One that goes on running is for our child to complain of. False: a signal came."""
    deadline = time.monotonic() + STOP_SECONDS
    for member in members:
        said = False
        while time.monotonic() < deadline:
            try:
                DirectoryLock(member.directory).release()
                break
            except OSError:
                break  # our child says what it is
            except IdentityError as error:
                if not said:
                    left = deadline - time.monotonic()
                    _say(f"{error.message}. Waiting for it to stop by itself, {left:.0f} s at most")
                said = True
            if alarm.wait(POLL_SECONDS):
                return False
    return not alarm.rung


def _until_ready(children: Sequence[_Child], alarm: _Alarm) -> bool:
    """Wait until all serve but removed nodes: True. False: a signal came, or a child died (which was said)."""
    while True:
        if _report(children) or all(child.removed for child in children):
            _say("a node died before the cluster was ready; its log above says why. Stopping the others")
            return False
        if all(not alarm.rung and (child.removed or child.check_ready()) for child in children):
            return not _report(children)
        if alarm.wait(POLL_SECONDS):
            return False


def _report(children: Sequence[_Child]) -> bool:
    """Say which children have died since the last call; True if one did whose node is still of the cluster."""
    died = False
    for child in children:
        line = child.death()
        if line:
            _say(line)
            died = died or not child.removed
    return died


def _stop(children: Sequence[_Child], alarm: _Alarm) -> None:
    """SIGTERM to our children, then SIGKILL to those that didn't go in time, or at a second signal."""
    running = [child for child in children if child.process.poll() is None]
    for child in running:
        child.process.terminate()
    alarm.rung = False
    deadline = time.monotonic() + STOP_SECONDS
    while any(child.process.poll() is None for child in running):
        if alarm.wait(POLL_SECONDS) or time.monotonic() > deadline:
            break
    for child in running:
        if child.process.poll() is None:
            _say(f"{child.name} (pid {child.process.pid}) did not stop in time: killing it")
            child.process.kill()
        child.process.wait()


def _spawn(command: Sequence[str], file: Path) -> subprocess.Popen[bytes]:
    # A process group of its own: Ctrl-C reaches us alone, else a child would get SIGINT and then our SIGTERM, and a
    # second signal means "at once". Its stdout is our stderr: ours has one line only.
    return subprocess.Popen(
        [*command, "--config", str(file)],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno(),
        env=_child_environment(os.environ),
        process_group=0,
        # Safe: we have one thread.
        preexec_fn=_die_with_parent,
    )


def _child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in environ.items() if not key.startswith(config.ENV_PREFIX) or key in PASSED_ON}


def _die_with_parent() -> None:
    """Linux: get SIGTERM when the supervisor is gone, SIGKILL included, so that no port stays taken."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _fetch(url: str) -> bytes | None:
    """The body of a 200, else None."""
    try:
        # No proxy: the address is this machine's.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=PROBE_SECONDS) as answer:
            body: bytes = answer.read()
            return body
    except (OSError, urllib.error.URLError, ValueError):
        return None


def _ending(code: int) -> str:
    if code >= 0:
        return f"exited with {code}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by signal {-code}"


def _tell(line: str) -> None:
    """On stdout. If nobody can hear it there that is no reason to end a cluster that serves."""
    if sys.stdout is None:
        _say(f"stdout is closed; {line}")
        return
    try:
        print(line, flush=True)
    except OSError as error:
        _say(f"stdout: {error.strerror}; {line}")
        # Else it would be tried, and complained about, once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(text: str) -> None:
    print(f"nebulad dev: {text}", file=sys.stderr, flush=True)


class _Alarm:
    """Signals as something to wait for: a stop signal rings it, a child's end only wakes it."""

    def __init__(self) -> None:
        self.rung = False

    def wait(self, seconds: float | None) -> bool:
        """Wait for any signal, at most `seconds` (None: for ever); True once a stop signal came."""
        if not self.rung and self._selector.select(seconds):
            with contextlib.suppress(BlockingIOError):
                self._reader.recv(4096)
        return self.rung

    def _ring(self, *_: object) -> None:
        self.rung = True

    def __enter__(self) -> _Alarm:
        self._reader, self._writer = socket.socketpair()
        self._reader.settimeout(0)
        self._writer.settimeout(0)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._reader, selectors.EVENT_READ)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # As nohup leaves SIGHUP. SIGINT is ignored for whatever a script starts with "&", and ends it all the same.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._ring)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        self._selector.close()
        self._reader.close()
        self._writer.close()

"""A network namespace for each node, joined by a bridge; nftables part them, netem slows them.

The whole stands in a network and a mount namespace of the runner itself (`enter`), in which it is root even where the
user is not: names can't collide with the machine's, and when the last process in it ends, the kernel removes bridge,
veths and namespaces, also after SIGKILL.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from jepsen.network import Addresses, Delay, Network, NetworkError
from jepsen.partitions import NOBODY, Pairs

INSIDE: Final = "JEPSEN_INSIDE"
"""Set in the environment of a runner that stands in its namespaces."""
PROGRAMS: Final = ("unshare", "nsenter", "ip", "tc", "nft")
COMMAND_SECONDS: Final = 20.0
BRIDGE: Final = "bridge"
HOST: Final = "10.0.0.254"
"""The runner's own address on the bridge."""
CLIENT_PORT: Final = 7379
TABLE: Final = "jepsen"
SPACES: Final = "/run/netns"

PROBE: Final = f"""set -e
mount -t tmpfs none /run
ip link add {BRIDGE} type bridge
ip netns add probe
ip link add outside type veth peer name eth0 netns probe
nsenter --net={SPACES}/probe nft add table inet {TABLE}
if tc qdisc add dev outside root netem delay 1ms; then echo netem; else echo plain; fi
"""


def unavailable(*, netem: bool) -> str | None:
    """Why namespaces can't be used here (with `netem` also for latency); None: they can. Leaves nothing behind."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    if missing:
        return f"no {', '.join(missing)} here (Debian: iproute2, nftables, util-linux)"
    attempt = subprocess.run(
        [*_unshare(), "sh", "-c", PROBE], env=_environ(), capture_output=True, text=True, timeout=60, check=False
    )
    if attempt.returncode:
        return f"namespaces can't be made here: {attempt.stderr.strip().splitlines()[-1:]}"
    if netem and "netem" not in attempt.stdout.split():
        return "this kernel has no netem, which latency needs"
    return None


def enter(arguments: Sequence[str]) -> None:
    """Become ``python -m jepsen`` with `arguments`, under the same pid, in namespaces of our own."""
    command = [*_unshare(), sys.executable, "-m", "jepsen", *arguments]
    os.execvpe(command[0], command, _environ() | {INSIDE: "1"})


def _unshare() -> list[str]:
    rootless = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", "--net", "--mount", *rootless]


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _environ() -> dict[str, str]:
    # A web proxy of the machine can't be reached from inside, and gRPC would ask it.
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return kept | {"PATH": _path()}


class Namespaces(Network):
    """Node i's namespace is n{i+1}, with 10.0.0.{i+1} at eth0."""

    name = "namespaces"

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self._blocked = NOBODY
        self._delay: Delay | None = None

    async def open(self) -> list[Addresses]:
        # Names of namespaces are files; ours must not be seen, nor stay, outside.
        await _run("mount", "-t", "tmpfs", "none", "/run")
        await _run("ip", "link", "set", "lo", "up")
        await _run("ip", "link", "add", BRIDGE, "type", "bridge")
        await _run("ip", "addr", "add", f"{HOST}/24", "dev", BRIDGE)
        await _run("ip", "link", "set", BRIDGE, "up")
        for node in range(self._nodes):
            name, veth = _name(node), f"veth{node + 1}"
            await _run("ip", "netns", "add", name)
            await _run("ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", name)
            await _run("ip", "link", "set", veth, "master", BRIDGE, "up")
            await self._inside(node, "ip", "link", "set", "lo", "up")
            await self._inside(node, "ip", "addr", "add", f"{_host(node)}/24", "dev", "eth0")
            await self._inside(node, "ip", "link", "set", "eth0", "up")
        return [self._addresses(node) for node in range(self._nodes)]

    @staticmethod
    def _addresses(node: int) -> Addresses:
        client, peer, admin = (f"{_host(node)}:{CLIENT_PORT + offset}" for offset in range(3))
        return Addresses(client, peer, admin, peer)

    async def close(self) -> None:
        """The kernel does it when this process ends."""

    def prefix(self, node: int) -> Sequence[str]:
        return ("nsenter", f"--net={SPACES}/{_name(node)}", "--")

    async def block(self, pairs: Pairs) -> int:
        held = 0
        for node in range(self._nodes):
            if self._blocked:
                held += packets(await self._inside(node, "nft", "list", "table", "inet", TABLE))
            await self._inside(node, "nft", "-f", "-", given=rules(node, pairs))
        self._blocked = pairs
        return held

    async def delay(self, delay: Delay | None) -> int:
        slowed = 0
        for node in range(self._nodes):
            if self._delay is not None:
                slowed += packets(await self._inside(node, "tc", "-s", "qdisc", "show", "dev", "eth0"))
            await self._inside(node, *discipline(delay))
        self._delay = delay
        return slowed

    async def _inside(self, node: int, *command: str, given: str = "") -> str:
        return await _run(*self.prefix(node), *command, given=given)


def rules(node: int, pairs: Pairs = NOBODY) -> str:
    """What node's nftables are told, in one transaction: whom it does not hear."""
    sources = sorted(_host(source) for source, target in pairs if target == node)
    drop = f"ip saddr {{ {', '.join(sources)} }} counter drop;" if sources else ""
    return (
        f"table inet {TABLE}\n"
        f"delete table inet {TABLE}\n"
        f"table inet {TABLE} {{ chain input {{ type filter hook input priority 0; policy accept; {drop} }}; }}\n"
    )


def packets(said: str) -> int:
    """How many were dropped or slowed, by what nft or tc says of its one rule."""
    found = re.search(r"counter packets (\d+)", said) or re.search(r"Sent \d+ bytes (\d+) pkt", said)
    return int(found[1]) if found else 0


def discipline(delay: Delay | None) -> tuple[str, ...]:
    """The command that makes what leaves eth0 slow, or quick again."""
    if delay is None:
        return ("tc", "qdisc", "replace", "dev", "eth0", "root", "pfifo", "limit", "1000")
    return (
        *("tc", "qdisc", "replace", "dev", "eth0", "root", "netem", "limit", "100000"),
        *("delay", f"{delay.ms}ms", f"{delay.jitter_ms}ms", "loss", f"{delay.loss * 100:g}%"),
    )


def _name(node: int) -> str:
    return f"n{node + 1}"


def _host(node: int) -> str:
    return f"10.0.0.{node + 1}"


async def _run(*command: str, given: str = "") -> str:
    """What it says. Raises `NetworkError`."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        async with asyncio.timeout(COMMAND_SECONDS):
            said, wrong = await process.communicate(given.encode())
    except TimeoutError:
        process.kill()
        raise NetworkError(f"{' '.join(command)}: no end within {COMMAND_SECONDS:g} s") from None
    if process.returncode:
        raise NetworkError(f"{' '.join(command)}: {wrong.decode(errors='replace').strip()}")
    return said.decode(errors="replace")

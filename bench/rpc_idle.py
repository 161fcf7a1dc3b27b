"""What an idle connection costs: a server's resident memory before and after so many that each made one call.

``python -m bench.rpc_idle --connections 5000`` prints one line of key=value pairs.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Final

import uvloop

from bench.idle import memory
from bench.rpc import ONCE, server
from bench.rpc_load import Load
from nebuladb.rpc.framing import frame
from tests.rpc.echo import compiled

TOGETHER: Final = 100
"""Connections that are made at once."""


async def measure(pid: int, port: int, connections: int, request: bytes) -> float:
    """KiB a connection."""
    warm = Load(port, ONCE, request, request, None)
    await warm.connect(1, 1)
    await warm.run(1, calls=100)
    before = memory(pid)
    load = Load(port, ONCE, request, request, None)
    for begun in range(0, connections, TOGETHER):
        await load.connect(min(TOGETHER, connections - begun), 1)
    await load.run(60, calls=1)
    return (memory(pid) - before) * 1024 / connections


def main() -> None:
    """Measure, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=5_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        messages, _ = compiled(Path(name))
        request = frame(messages.Text(payload=bytes(256)).SerializeToString())
        with server("nebula", Path(name)) as process:
            used = uvloop.run(measure(process.pid, process.port, options.connections, request))
    print(f"connections={options.connections} kib_each={used:.1f}")


if __name__ == "__main__":
    main()

"""What the client itself costs: ``python -m bench.face.echo`` asks a server that gives back what it gets.

Prints, for some numbers of calls in flight, the client's CPU time a call (kernel included), the server's, and the rate:
no database behind the same client can be measured as faster than that.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path
from typing import Final

import uvloop

from bench.face.driver import Driver
from bench.face.requests import VALUE_BYTES, Request
from bench.idle import core_seconds
from bench.rpc import ONCE, server
from bench.rpc_load import headers
from nebuladb.rpc.framing import frame
from tests.rpc.echo import compiled

IN_FLIGHT: Final = (1, 64, 256, 1_024)
CONNECTIONS: Final = 3
"""As to three nodes."""


async def measure(folder: Path, port: int, pid: int, seconds: float) -> None:
    """Print a line for each number of calls in flight."""
    messages, _ = compiled(folder)
    body = frame(messages.Text(payload=b"x" * VALUE_BYTES, number=7).SerializeToString())
    plan = [Request(headers(ONCE), body, body, lambda answer, number: answer == body, 0)]
    driver = Driver([port])
    await driver.connect(CONNECTIONS)
    for in_flight in IN_FLIGHT:
        await driver.closed(plan, 0.2, in_flight)
        before = core_seconds(pid)
        run = await driver.closed(plan, seconds, in_flight)
        used = core_seconds(pid) - before
        print(
            f"in_flight={in_flight} calls_per_second={run.rate:.0f} client_us={run.cpu / run.calls * 1e6:.1f} "
            f"server_us={used / run.calls * 1e6:.1f}",
            flush=True,
        )
        await asyncio.sleep(0)
    driver.close()


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with server("nebula", folder) as process:
            uvloop.run(measure(folder, process.port, process.pid, options.seconds))


if __name__ == "__main__":
    main()

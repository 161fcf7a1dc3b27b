"""What slow readers cost a fast one: its rate of unary calls beside streams that nobody reads, against its rate alone.

``python -m bench.rpc_slow --readers 1000 --rounds 9``: each round measures with and without, in turns; the ratio is the
median of the rounds'. One line of key=value pairs.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Final

import uvloop

from bench.idle import core_seconds
from bench.rpc import MANY, ONCE, Process, server
from bench.rpc_load import Load
from nebuladb.rpc.framing import frame
from tests.rpc.echo import compiled

ENDLESS: Final = 1 << 40
"""Messages that a slow reader asks for."""


async def settled(pid: int) -> None:
    """Until the server has filled all windows and buffers, and rests."""
    quiet = 0
    for _ in range(600):
        before = core_seconds(pid)
        await asyncio.sleep(0.2)
        # Several in a row: on a busy machine it may rest for want of a core.
        quiet = quiet + 1 if core_seconds(pid) - before < 0.02 else 0
        if quiet == 10:
            return
    raise TimeoutError("the server writes on to peers that don't read")


async def ratio(process: Process, readers: int, seconds: float, once: bytes, many: bytes) -> float:
    """One round: (rate beside slow readers) / (rate alone)."""
    fast = Load(process.port, ONCE, once, once, None)
    await fast.connect(8, 8)
    await fast.run(seconds / 4)
    alone = await fast.run(seconds)
    slow = Load(process.port, MANY, many, b"", None)
    await slow.connect(readers, 1)
    await slow.stall()
    await settled(process.pid)
    await fast.run(seconds / 4)
    beside = await fast.run(seconds)
    slow.close()
    fast.close()
    return beside / alone


def main() -> None:
    """Measure, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readers", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        messages, _ = compiled(Path(name))
        once = frame(messages.Text(payload=bytes(256)).SerializeToString())
        many = frame(messages.Text(payload=bytes(1024), number=ENDLESS).SerializeToString())
        with server("nebula", Path(name)) as process:
            found = [
                uvloop.run(ratio(process, options.readers, options.seconds, once, many)) for _ in range(options.rounds)
            ]
    print(*(f"{one:.3f}" for one in found), file=sys.stderr)
    print(f"readers={options.readers} rounds={options.rounds} ratio={statistics.median(found):.3f}")


if __name__ == "__main__":
    main()

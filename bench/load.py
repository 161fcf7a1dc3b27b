"""Many calls in flight, for as long as is asked: the loop of the benchmarks that go through the SDK."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

Call = Callable[[bytes], Awaitable[object]]
"""One operation on a key."""


async def drive(calls: Sequence[Call], keys: int, seconds: float, in_flight: int, rate: float = 0.0) -> int:
    """Call for `seconds` with `in_flight` workers, spread over `calls` (one a client) and over `keys` keys, at most
    `rate` times a second together if one is given; how many calls succeeded."""
    done = 0
    began = time.monotonic()
    end = began + seconds
    interval = in_flight / rate if rate else 0.0

    async def worker(number: int) -> None:
        nonlocal done
        call, count = calls[number % len(calls)], 0
        while (now := time.monotonic()) < end:
            if (early := began + interval * (count + number / in_flight) - now) > 0:
                await asyncio.sleep(min(early, end - now))
                if early >= end - now:
                    return
            await call(b"%d" % ((number * 7919 + count * 104_729) % keys))
            count += 1
            done += 1

    await asyncio.gather(*(worker(number) for number in range(in_flight)))
    return done

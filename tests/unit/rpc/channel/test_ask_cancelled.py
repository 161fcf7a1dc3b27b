"""Who asks an intercepted call is cancelled in the same turn as the call."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from nebuladb.rpc.channel.intercepted import _Intercepted


class Chain:
    async def run(self, *_: object) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize("turns", [0, 1])
async def test_the_cancellation_of_who_asks_is_not_taken_for_the_calls(turns: int) -> None:
    core: Any = SimpleNamespace(loop=asyncio.get_running_loop())
    chain: Any = Chain()
    details: Any = None
    call = _Intercepted(core, chain, details, None)
    task = asyncio.create_task(call.code())
    await asyncio.sleep(0)
    call.cancel()
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

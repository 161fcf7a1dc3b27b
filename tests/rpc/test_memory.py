"""What an idle connection costs (`bench.rpc_idle` measures five thousand)."""

from __future__ import annotations

from pathlib import Path

from bench.rpc import server
from bench.rpc_idle import measure
from nebuladb.rpc.framing import frame
from tests.rpc.echo import compiled

CONNECTIONS = 500
MOST_KIB = 30


async def test_an_idle_connection_after_one_call(tmp_path: Path) -> None:
    messages, _ = compiled(tmp_path)
    request = frame(messages.Text(payload=bytes(256)).SerializeToString())
    with server("nebula", tmp_path) as process:
        assert await measure(process.pid, process.port, CONNECTIONS, request) <= MOST_KIB

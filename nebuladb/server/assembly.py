"""One node, put together: directory, founding, databases, node, ports; and taken apart again in the reverse order."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import sys
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

import structlog
import uvloop

from nebuladb.api.backend import Backend
from nebuladb.api.services import ApiServer
from nebuladb.errors import DataDamaged, DiskFull, NebulaError
from nebuladb.node.identity import Founding, Identity
from nebuladb.node.memory import plan
from nebuladb.node.node import Node
from nebuladb.node.pump import Pump
from nebuladb.node.starting import only_copies
from nebuladb.rpc import PeerTransport
from nebuladb.rpc.engine import ENGINES, NEBULA
from nebuladb.server import logs, options, space
from nebuladb.server.admin import AdminApp, AdminServer, bind
from nebuladb.server.clock import SystemClock
from nebuladb.server.config import Config
from nebuladb.server.directory import DataDirectory, put_data_aside
from nebuladb.server.joining import JoinService, join_cluster
from nebuladb.server.lifecycle import Shutdown, end_in_time
from nebuladb.server.metrics import Metrics
from nebuladb.server.peers import Peers
from nebuladb.server.process import limit_arenas, raise_descriptors
from nebuladb.server.space import SpaceWatch
from nebuladb.server.view import NodeView
from nebuladb.server.watchdog import Watchdog, tune
from nebuladb.storage.log import LogStore
from nebuladb.storage.rocks import RocksMemory

CALL_GRACE_SECONDS: Final = 2.0
"""For calls in progress when the node stops."""


def run(config: Config) -> int:
    """Serve until a signal; returns the exit code. Raises `NebulaError` if the node can't start.

    It starts anew by itself, as a new process, after damage of its data and when there is room again on a full disk,
    unless it was asked to stop.
    """
    limit_arenas()
    raise_descriptors()
    writer = logs.setup(config.name, config.log_format, config.log_level)
    shutdown = Shutdown(end_in_time)
    try:
        code = uvloop.run(_serve(config, shutdown))
    except NebulaError as error:
        if not isinstance(shutdown.failure or error, DiskFull | DataDamaged):
            raise
        # It could not even open; or, after a failed append, closing the log failed likewise.
        shutdown.failure, code = shutdown.failure or error, 1
    finally:
        if shutdown.requested or not isinstance(shutdown.failure, DiskFull):
            writer.close()
    if shutdown.requested:
        return code
    if isinstance(shutdown.failure, DataDamaged):
        put_data_aside(config.data_dir, shutdown.failure.message, shutdown.only_copies)
        os.execv(sys.executable, sys.orig_argv)
    if isinstance(shutdown.failure, DiskFull):
        # What was acknowledged is on the disk: with room again, this is a restart like any other (S33).
        why = shutdown.failure.message
        space.wait_and_restart(config.data_dir, options.reserves(dict(config.options)), why)
    return code


def _close_log(log: LogStore, shutdown: Shutdown) -> None:
    shutdown.only_copies = only_copies(log)
    log.close()


async def _serve(config: Config, shutdown: Shutdown) -> int:
    with shutdown.signals():
        async with AsyncExitStack() as stack:
            serving = asyncio.create_task(_assemble(config, shutdown, stack))
            asked = asyncio.create_task(shutdown.wait())
            await asyncio.wait((serving, asked), return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                # Stopped while it still waits for the other founding nodes: there is nothing to drain.
                serving.cancel()
                await asyncio.gather(serving, return_exceptions=True)
                return shutdown.exit_code()
            asked.cancel()
            drain = serving.result()
            return await shutdown.run(drain.run)


class _Drain:
    """The orderly end of a node that serves."""

    def __init__(self, view: NodeView, api: ApiServer, pump: Pump) -> None:
        self._view = view
        self._api = api
        self._pump = pump

    async def run(self) -> None:
        """Say that it goes, hand leadership over, let calls end, flush."""
        self._view.serving = False
        await self._api.serving(now=False)
        await self._pump.hand_over()
        await self._api.stop(CALL_GRACE_SECONDS)
        await self._pump.stop()


async def _link(
    config: Config, identity: Identity, peers: Peers, rng: random.Random, stack: AsyncExitStack
) -> tuple[PeerTransport, Founding]:
    """Join or found the cluster, unless that is done, with the peer port open."""
    # The cluster must not count on a node that can't serve then; and the system says why, on either engine.
    for key, address in (("peer-addr", config.peer_addr), ("client-addr", config.client_addr)):
        bind(address, key, v6_only=config.rpc_engine == NEBULA).close()  # as that engine listens
    engine = ENGINES[config.rpc_engine]
    if config.join and not identity.cluster:
        peers.join_with(await join_cluster(config, identity, PeerTransport(identity.node, peers, rng, engine)))
    transport = PeerTransport(peers.identity.node, peers, rng, engine)
    await transport.serve(config.peer_addr)
    stack.push_async_callback(transport.stop)
    return transport, peers.founding or await peers.found_cluster(transport)


async def _assemble(config: Config, shutdown: Shutdown, stack: AsyncExitStack) -> _Drain:
    """Everything up to the open client port. What is opened goes onto `stack`."""
    log = structlog.get_logger("nebulad")
    directory = DataDirectory(config.data_dir)
    stack.callback(directory.close)
    if not directory.founded:
        config.check_founding()  # before anything is kept under what may be the wrong name
    identity = directory.identity(config.name)
    incarnation = secrets.randbits(63) | 1
    # Randomness comes from one seeded source, so that whoever has the seed can tell the node's choices.
    rng = random.Random(secrets.randbits(64))
    peers = Peers(config, directory, identity, incarnation)
    metrics = Metrics()
    view = NodeView(config, peers)
    metrics.read_from(view)
    admin = AdminServer(AdminApp(view, metrics), config.admin_addr)
    await admin.start()
    stack.push_async_callback(admin.stop)
    transport, founding = await _link(config, identity, peers, rng, stack)
    memory = plan(config.memory)
    rocks = RocksMemory(memory.block_cache, memory.data_memtables + memory.log_memtables)
    view.rocks = rocks
    raft_log = await asyncio.to_thread(directory.open_log, memory, rocks)
    stack.callback(_close_log, raft_log, shutdown)
    data = await asyncio.to_thread(directory.open_data, memory, rocks)
    stack.callback(data.close)
    clock = SystemClock()
    node = Node(
        peers.identity,
        founding,
        incarnation,
        raft_log,
        data,
        rng,
        clock,
        peer_address=config.advertise_peer_addr,
        client_address=config.advertise_client_addr,
        memory=memory,
        options=options.parse(dict(config.options)),
        joined=peers.joined.meta if peers.joined is not None else None,
    )
    node.on_first_start = directory.mark_voting
    node.alarms_now.subscribe(lambda alarm: log.error("alarm", kind=str(alarm.kind), text=alarm.text))
    room = SpaceWatch(config.data_dir, options.reserves(dict(config.options)), node.space, gone=shutdown.fail)
    metrics.read_room_from(room)
    watching = asyncio.create_task(room.run(), name="space")
    stack.callback(watching.cancel)
    watchdog = Watchdog(metrics)
    pump = Pump(node, clock, transport, metrics, shutdown.fail, watchdog.busy, room.hurry)
    peers.pump = pump
    node.on_meta = partial(peers.meta_changed, transport)
    stack.push_async_callback(pump.stop)
    pump.start()
    peers.meta_changed(transport)
    backend = Backend(pump)
    backend.lags_elsewhere = partial(peers.lags_elsewhere, transport)
    peers.joins = JoinService(backend)
    watch = asyncio.create_task(peers.watch_removal(transport, pump.fail), name="removal")
    stack.callback(watch.cancel)
    engine, progress = ENGINES[config.rpc_engine], options.progress_seconds(dict(config.options))
    api = ApiServer(backend, metrics, config.advertise_client_addr, config.advertise_peer_addr, engine, progress)
    stack.push_async_callback(api.stop, 0)
    await api.start(config.client_addr)
    tune()
    watchdog.start()
    stack.callback(watchdog.stop)
    log.info("serving", client=config.client_addr, peer=config.peer_addr, admin=config.admin_addr, syncs=pump.syncs)
    view.serving = True
    return _Drain(view, api, pump)

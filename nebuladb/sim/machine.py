"""One node's machine: it drives the product's `Node` as the daemon's pump does, and it can die at any moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from nebuladb.errors import (
    Corruption,
    DiskFull,
    IdentityError,
    NebulaError,
    NodeRemoved,
    StoreError,
    Unavailable,
    UnknownOutcome,
    WriteStalled,
)
from nebuladb.kv.command import Command
from nebuladb.kv.store import Store
from nebuladb.kv.watch import WatchHub
from nebuladb.node.applier import Fetch
from nebuladb.node.identity import Founding, Identity
from nebuladb.node.node import Node
from nebuladb.node.outgoing import Outgoing
from nebuladb.node.output import TICK_MS
from nebuladb.node.rows_asked import Values
from nebuladb.node.serving import serving
from nebuladb.node.turn import Turn
from nebuladb.shard import Descriptor
from nebuladb.sim.beginning import ASK_MS, Beginning, Neighbour
from nebuladb.sim.clock import DriftingClock
from nebuladb.sim.core import Core
from nebuladb.sim.disk import Disk
from nebuladb.sim.faults import FETCH_MS
from nebuladb.sim.invariants.logs import Logs
from nebuladb.sim.invariants.replicas import Replicas
from nebuladb.sim.knobs import small_memory, small_options
from nebuladb.sim.life import Confirmed, Life, Written
from nebuladb.sim.process import Process

TICK_JITTER_MS = 5
RETRY_MS = 5  # after a write stall, as in the pump
RESTART_MS = 100
REST_MS = 3
"""The longest that a command which is half applied rests; the pump makes it half of what its slice took."""


class Machine:
    """`place` is its number from 0; `send(place, node id, frame)` puts a frame on the network."""

    def __init__(
        self,
        core: Core,
        place: int,
        members: Mapping[str, str],
        disk: Disk,
        logs: Logs,
        replicas: Replicas,
        send: Callable[[int, int, bytes], None],
        peer: Callable[[int, str], Neighbour | None],
        *,
        stale_reads: bool = False,
    ) -> None:
        self.name, self.place, self.disk = f"n{place + 1}", place, disk
        self.founds = place < len(members)
        """A fresh one founds the cluster with others; else it waits to be told to join."""
        self.joined: Descriptor | None = None
        self.died: Callable[[Machine], None] | None = None
        """Told of every death."""
        self.full = False
        """Its disk has no room: it stops when it notices."""
        self.spoiled = False
        """Its disk is damaged or was emptied: it stops when it notices, for good."""
        self.lost = False
        """It can't come back under its identity: its disk is damaged or empty."""
        self._core = core
        self._members = members
        self._logs = logs
        self._replicas = replicas
        self._send = send
        self._peer = peer
        self._stale_reads = stale_reads
        self._rng = core.stream(f"machine {place}")
        self._identity = Identity(self._rng.getrandbits(63) | 1, self.name)
        self._founding: Founding | None = None
        """On its disk."""
        self._beginning: Beginning | None = None
        self._life: Life | None = None
        self._doomed: bool | None = None
        self._doom: Callable[[Node], bool] | None = None

    # --- life and death ----------------------------------------------------------------------------------------------

    @property
    def node_id(self) -> int:
        """The id in its data directory."""
        return self._identity.node

    @property
    def node(self) -> Node | None:
        """The running node, if it runs."""
        return self._life.node if self._life else None

    @property
    def founded(self) -> bool:
        """Whether its disk has the founding document."""
        return self._founding is not None

    @property
    def serves(self) -> bool:
        """Whether it is, or may become, a node that does its work."""
        return not self.lost and (self.founds or self.founded)

    @property
    def paused(self) -> bool:
        """Whether the process stands still."""
        return self._life is not None and self._life.paused

    @property
    def incarnation(self) -> int:
        """Of the running node; 0 while it is down."""
        return self._life.node.host.incarnation if self._life else 0

    def start(self) -> None:
        """Start from what is on the disk; without a founding document there, ask the peers first."""
        if self._life is not None or self._beginning is not None or self.lost or not (self.founds or self._founding):
            return
        self._core.note("start", self.name)
        if self._founding is not None:
            self._open()
            return
        self._beginning = Beginning(
            self._core, self._identity, self._members, partial(self._peer, self.place), self._rng, self._founded
        )
        self._ask(self._beginning)

    def _ask(self, beginning: Beginning) -> None:
        if beginning is not self._beginning:
            return
        try:
            beginning.step()
        except IdentityError as error:
            if not self.spoiled:
                raise
            self._core.note("refused", self.name, error)
            self._core.hit("wiped node refused")
            self.lost, self._beginning = True, None
            return
        if not beginning.over:
            self._core.scheduler.after(1 + self._rng.randrange(ASK_MS), self._ask, beginning)

    def _founded(self, document: Founding) -> None:
        assert self._beginning is not None
        self._identity = self._beginning.identity._replace(cluster=document.cluster)
        # From the disk both come back as what their bytes say.
        self._founding, self._beginning = Founding.decode(document.encode()), None
        self._identity = Identity.decode(self._identity.encode())
        self._open()

    def _open(self) -> None:
        founding = self._founding
        assert founding is not None
        clock = DriftingClock(self._core.scheduler.now, self._core.faults.drift, self._rng)
        self._core.fastest = max(self._core.fastest, clock.rate)
        incarnation = self._rng.getrandbits(63) | 1
        try:
            log = self.disk.open_log()
            self._replicas.started(self.place)
            self._logs.nodes[self.node_id] = self.place
            node = Node(
                self._identity,
                founding,
                incarnation,
                log,
                self.disk.data,
                self._core.stream(f"node {self.place} {incarnation}"),
                clock,
                client_address=f"{self.name}:1",
                peer_address=f"{self.name}:2",
                memory=small_memory(self._rng),
                options=small_options(self._rng, self._core),
                joined=self.joined,
            )
        except WriteStalled:
            # The daemon ends with an error, and whoever looks after it starts it again.
            self._core.scheduler.after(RESTART_MS, self.start)
            return
        except (StoreError, NodeRemoved) as error:
            self._stopped(error)
            return
        for group, data in node.groups.items():
            self._logs.flushed[self.place, group] = data.store.index
        self._doomed = None
        self._life = life = Life(node, log, clock)
        life.process = Process(
            self._core, self.disk, node, self._rng, self._goes_on, self.store, partial(self._wake, life), self._stopped,
            partial(self._logs.flush, self.place),
        )  # fmt: skip
        self._opened(life)
        self._wake(life)
        self._core.scheduler.after(self._rng.randrange(TICK_MS), self._tick, life)

    def _opened(self, life: Life) -> None:
        """It runs."""

    def _copes(self, takes: Callable[..., None], *arguments: object) -> bool:
        """Whether the node takes something; else it has met damage on its disk, and given up."""
        try:
            takes(*arguments)
        except StoreError as error:
            self._stopped(error)
            return False
        return True

    def _removed(self, error: NodeRemoved) -> None:
        """The product says that this node is no member any more."""
        raise error

    def _stopped(self, error: BaseException) -> None:
        """The product gave up because of its disk: right if that is bad, and only then (S33)."""
        if isinstance(error, NodeRemoved):
            self._removed(error)
            return
        if not isinstance(error, StoreError) or not (self.full if isinstance(error, DiskFull) else self.spoiled):
            raise error
        self._core.note("stopped", self.name, type(error).__name__)
        self._core.hit(f"node stopped: {type(error).__name__}")
        self.full = False  # somebody makes room before it starts again
        self.lost = self.spoiled
        self.crash(power=False)

    def crash(self, *, power: bool) -> None:
        """The process dies now, at the end of a turn or between two; who waits for it sees the connection break."""
        self._beginning, life = None, self._life
        if life is None:
            return
        self._core.note("power cut" if power else "kill", self.name)
        self._core.report.crashes += 1
        self._life = None
        life.process.end()
        self.disk.crash(power=power)
        for request, written in life.writes.items():
            self._core.scheduler.after(1, written, UnknownOutcome(f"the connection broke under request {request}"))
        for confirmed in life.reads.values():
            self._core.scheduler.after(1, confirmed, Unavailable("the connection broke"))
        if self.died is not None:
            self.died(self)

    def doom(self, *, power: bool, when: Callable[[Node], bool] | None = None) -> None:
        """Die amid the next turn, or the next in which `when` holds: it has written, and only some frames have left."""
        self._doomed, self._doom = power, when

    def _held(self, action: Callable[..., None], *args: Any) -> bool:
        """Whether the process stands still; `action` comes when it goes on."""
        life = self._life
        if life is None or not life.paused:
            return False
        life.late.append((action, args))
        return True

    def _goes_on(self, action: Callable[[], None]) -> None:
        """The process' loop, now or when it doesn't stand still any more."""
        if not self._held(self._goes_on, action):
            action()

    # --- what clients ask --------------------------------------------------------------------------------------------

    def submit(self, group: int, command: Command, timeout: int, written: Written) -> None:
        """A write; `timeout` in ms of this machine's clock. Raises `NebulaError` if it was not taken."""
        if self._held(self._late, self.submit, group, command, timeout, written):
            return
        life = self._alive()
        request = life.node.submit(group, command, self._monotonic(life) + timeout)
        life.writes[request] = written
        self._wake(life)

    def _late(self, action: Callable[..., None], *args: Any) -> None:
        """What was asked while it stood still; the last of `args` is told if it is refused."""
        try:
            action(*args)
        except NebulaError as error:
            args[-1](error)

    def confirm(self, group: int, timeout: int, confirmed: Confirmed) -> None:
        """A linearizable read, to be served from `store` at once when confirmed with None. Raises likewise."""
        if self._held(self._late, self.confirm, group, timeout, confirmed):
            return
        life = self._alive()
        if self._stale_reads:  # for the simulator's self-test
            self._core.scheduler.after(0, confirmed, None)
            return
        request = life.node.read(group, self._monotonic(life) + timeout)
        life.reads[request] = confirmed
        self._wake(life)

    def store(self, group: int) -> Store:
        """As `Pump.store`."""
        return serving(self._alive().node, group).store

    def hub(self, group: int) -> WatchHub:
        """As `Pump.hub`: the watches of the group."""
        return serving(self._alive().node, group).hub

    @property
    def process(self) -> Process:
        """What else runs in the node's process. Raises as `store`."""
        return self._alive().process

    def work(self) -> None:
        """There is background work: a watch was made or drained."""
        life = self._life
        if life is not None and not life.working:
            life.working = True
            self._core.scheduler.after(1, self._background, life)

    def _alive(self) -> Life:
        if self._life is None:
            raise Unavailable("the connection was refused")
        if self._life.paused:
            raise Unavailable("there is no answer")
        return self._life

    # --- what happens to it ------------------------------------------------------------------------------------------

    def receive(self, sender: int, frame: bytes) -> None:
        """A frame arrives from node id `sender`, meant perhaps for an earlier life."""
        life = self._life
        if life is None or (life.paused and self._held(self.receive, sender, frame)):
            return
        if self._copes(life.node.host.receive, sender, frame) and life.node.host.has_work:
            self._wake(life)

    def peer_up(self, peer: int, incarnation: int) -> None:
        """A link to node id `peer` stands."""
        life = self._life
        if life is not None and not self._held(self.peer_up, peer, incarnation):
            life.node.host.peer_up(peer, incarnation)
            self._wake(life)

    def peer_down(self, peer: int) -> None:
        """It fell."""
        life = self._life
        if life is not None and not self._held(self.peer_down, peer):
            life.node.host.peer_down(peer)
            self._wake(life)

    def flush(self) -> None:
        """Flush the data store, as the pump does when much was applied."""
        life = self._life
        if life is not None and not life.paused:
            life.process.tables.flush()

    def transfer(self, group: int, to: int) -> None:
        """Order this node to hand the group's leadership to node id `to`."""
        life = self._life
        if life is not None and not life.paused:
            with suppress(NebulaError):
                life.node.host.transfer_leadership(group, to)
                self._wake(life)

    def _tick(self, life: Life) -> None:
        if life is not self._life:
            return
        if life.paused:
            life.late_tick = True
            return
        if not self._copes(life.node.tick, self._monotonic(life), life.clock.boottime()):
            return
        self._replicas.ticked(self.place, life.node)
        life.process.tables.look()
        if life.node.background_waits:
            self.work()  # as the pump: for what came amid a round, and what stalled, nobody else asks
        if life.node.has_work:
            self._wake(life)
        delay = int(TICK_MS / life.clock.rate) + self._rng.randrange(TICK_JITTER_MS)
        self._core.scheduler.after(delay, self._tick, life)

    def _monotonic(self, life: Life) -> int:
        life.clock.now = self._core.scheduler.now
        return life.clock.monotonic()

    # --- turns -------------------------------------------------------------------------------------------------------

    def _wake(self, life: Life, delay: int = 0) -> None:
        if not life.turning:
            life.turning = True
            self._core.scheduler.last(delay, self._turn, life)

    def _turn(self, life: Life) -> None:
        if life is not self._life or (life.paused and self._held(self._turn, life)):
            return
        life.turning = False
        life.clock.now = now = self._core.scheduler.now
        frames: list[tuple[int, bytes]] = []
        try:
            self.disk.chill(self._rng)
            turn = life.node.turn(frames.extend)
        except (StoreError, NodeRemoved) as error:
            # They leave before anything is written or applied.
            self._send_all(frames[: self._rng.randrange(len(frames) + 1)])
            self._stopped(error)
            return
        finally:
            self.disk.warm()
        # Before anything of it leaves the node. Between turns nobody else can see what it thinks.
        self._replicas.step(self.place, life.node, turn, now)
        if self._doomed is not None and (self._doom is None or self._doom(life.node)):
            self._send_all(frames[: self._rng.randrange(len(frames) + 1)])
            self.crash(power=self._doomed)
            return
        self._send_all(frames)
        if turn.written:
            self.disk.sync(turn.written, lambda batch: self._durable(life, batch))
        self._carry_out(life, turn)

    def _carry_out(self, life: Life, turn: Turn) -> None:
        for request, outcome in turn.answers:
            if (written := life.writes.pop(request, None)) is not None:
                written(outcome)
        for request, failure in turn.reads:
            if (confirmed := life.reads.pop(request, None)) is not None:
                confirmed(failure)
        for fetch in turn.fetches:
            seen = partial(life.process.loop.call_soon_threadsafe, self._fetched, life, fetch)
            life.process.fetcher.fetch(fetch.rows, seen)
        for outgoing in turn.exports:
            self._core.scheduler.after(self._rng.randrange(FETCH_MS) + 1, self._exported, life, outgoing)
        if life.node.unflushed >= life.node.flush_bytes:
            life.process.tables.look()
        if turn.applied:
            self.work()
        if turn.applied and life.node.midway:
            life.node.pause(paused=True)
            self._core.scheduler.after(self._rng.randrange(REST_MS) + 1, self._go_on, life)
        if turn.stalled:
            self._wake(life, RETRY_MS)
        elif turn.more:
            self._wake(life)

    def _go_on(self, life: Life) -> None:
        """With commands that are half applied, after a rest in which others had the core."""
        if life is self._life and not self._held(self._go_on, life):
            life.node.pause(paused=False)
            self._wake(life)

    def _send_all(self, frames: Sequence[tuple[int, bytes]]) -> None:
        for node, frame in frames:
            self._send(self.place, node, frame)

    def _durable(self, life: Life, batch: int) -> None:
        if life is not self._life or (life.paused and self._held(self._durable, life, batch)):
            return
        if not self._copes(life.node.host.durable, batch):
            return
        self._send_all(life.node.host.frames())
        if life.node.has_work:
            self._wake(life)

    def _fetched(self, life: Life, fetch: Fetch, found: Values | BaseException) -> None:
        if isinstance(found, Corruption):
            life.node.damaged(fetch.group, found, fetch.store)
        elif isinstance(found, BaseException):
            self._stopped(found)
            return
        else:
            life.node.fetched(fetch, found)
        if fetch.background:
            self.work()
        self._wake(life)

    def _exported(self, life: Life, outgoing: Outgoing) -> None:
        if life is self._life and not self._held(self._exported, life, outgoing):
            try:
                life.node.snapshots.sender.chunk_read(outgoing, None if outgoing.outcome else outgoing.exporter.read())
            except Corruption as error:
                life.node.damaged(outgoing.group, error)
                life.node.snapshots.sender.chunk_read(outgoing, None)
            self._wake(life)

    def _background(self, life: Life) -> None:
        if life is not self._life or self._held(self._background, life):
            return
        try:
            self.disk.chill(self._rng)
            life.working = life.node.background()
            life.process.reclaims.settle()
        except StoreError as error:
            self._stopped(error)
            return
        finally:
            self.disk.warm()
        if life.node.fetches_wait:
            self._wake(life)
        self._replicas.hashes(self.place, life.node)
        if life.working:
            self._core.scheduler.after(1, self._background, life)

"""The asyncio pump: feeds a `Node` with time, frames and requests, and carries out what its turns ask for.

It decides nothing and retries nothing between nodes (house rule 11). One turn runs per loop iteration at most, however
many requests came in it; a request costs a future and no task.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from nebuladb.env import Clock, probe
from nebuladb.errors import (
    Corruption,
    DeadlineExceeded,
    InvariantViolation,
    NebulaError,
    StoreClosed,
    StoreError,
    Unavailable,
    UnknownOutcome,
    WriteStalled,
)
from nebuladb.futures import PromptFuture
from nebuladb.kv.answer import Answer
from nebuladb.kv.command import Command
from nebuladb.kv.store import Store
from nebuladb.kv.watch import WatchHub
from nebuladb.node.applier import Fetch
from nebuladb.node.disk import heir
from nebuladb.node.fetcher import Fetcher
from nebuladb.node.flusher import Flusher
from nebuladb.node.looks import Looks
from nebuladb.node.node import Node
from nebuladb.node.outgoing import Outgoing
from nebuladb.node.output import TICK_MS
from nebuladb.node.ports import Answers, Links, Meter
from nebuladb.node.reclaims import Reclaims
from nebuladb.node.rows_asked import Values
from nebuladb.node.serving import serving
from nebuladb.node.tables import Tables
from nebuladb.node.turn import Turn
from nebuladb.node.unreadable import Unreadable
from nebuladb.raft import StateRole

LATE_MS: Final = 100
"""A heartbeat interval: a tick that comes later than this after the last one follows a gap (S12)."""
BACKGROUND_PAUSE: Final = 0.002
"""Before a round of background work: requests that came in the same moment go first."""
REST: Final = 0.5
"""After a slice of a large command or of background work, as a part of the time that it took: the machine's other
processes, which may be doing the same, get the core. The whole takes half as long again at most."""
MAX_TURNS: Final = 16
"""Turns in one loop iteration before the loop gets its breath."""
TURN_SECONDS: Final = 0.005
"""Or as soon as they took so long: sockets and timers wait for one turn more at most."""
BUSY_SECONDS: Final = 0.005
"""Work that keeps the loop for longer is told to whoever watches it."""
RETRY_SECONDS: Final = 0.005
"""After a write stall."""
STOP_SECONDS: Final = 2.0
"""How long a stopping node waits for another one to take over its groups."""


class Pump:
    """See the module. All methods are for the loop's thread; `failed` is called once if the node can't go on."""

    def __init__(
        self,
        node: Node,
        clock: Clock,
        links: Links,
        meter: Meter,
        failed: Callable[[BaseException], None],
        busy: Callable[[str, float], None] = lambda work, seconds: None,
        writes: Callable[[], None] = lambda: None,
    ) -> None:
        """`busy` is told of work that has kept the loop for longer than `BUSY_SECONDS`; `writes` when much is written
        to the disk: whenever the data store's flush begins and ends."""
        self.node = node
        self._clock = clock
        self._links = links
        self._meter = meter
        self._failed = failed
        self._busy = busy
        self.answers: Answers | None = None
        """Set by who serves clients."""
        self._broken: BaseException | None = None
        self._writes: dict[int, asyncio.Future[Answer]] = {}
        self._reads: dict[int, asyncio.Future[None]] = {}
        self._fresh: dict[int, tuple[int, int]] = {}
        """Group → (replica, boottime in ms as new as which its state is known to be); one for each that was read so."""
        self._scheduled = False
        self._idle = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._flusher = Flusher(node.log, self._durable, self.fail)
        self._fetcher = Fetcher(node.data)
        self._exporter = ThreadPoolExecutor(1, "exporter")
        self.looks = Looks(self._fetcher, self.store)
        """Reads that met rows which aren't in memory."""
        self.reclaims = Reclaims()
        """Compactions whose clients wait for the deletion."""
        self._unreadable = Unreadable(node.alarms_now)
        self._last_tick = clock.monotonic()
        self._tables = Tables(node, self.wake, self.fail, writes)

    def start(self) -> None:
        """Begin to tick and to turn."""
        self.node.host.now, self.node.host.boottime = self._clock.monotonic(), self._clock.boottime()
        self._flusher.start()
        self._tasks = [
            self._loop.create_task(self._tick_for_ever(), name="tick"),
            self._loop.create_task(self._background(), name="background"),
        ]
        self.wake()

    async def stop(self) -> None:
        """Flush and end. What is unanswered by then is answered *unknown* or *failed*. If this is cancelled it goes on,
        and whoever calls it again waits for the same end."""
        if self._stopping is None:
            self._stopping = self._loop.create_task(self._stop(), name="stop")
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._tables.stop()
        await self._flusher.stop()
        whole = self._broken is None
        # No turn from here on, whatever peers send: it would ask threads that end now.
        self._broken = self._broken or Unavailable("this node is stopping; try another one")
        self._fail_waiters()
        await asyncio.to_thread(self._fetcher.stop)
        self.node.snapshots.sender.close()
        await asyncio.to_thread(self._exporter.shutdown)
        if whole:
            try:
                await asyncio.to_thread(self.node.data.flush)
            except StoreError as error:
                self._broken = error
                self._failed(error)  # the log has it all, but whoever runs the node must know

    # --- requests --------------------------------------------------------------------------------------------------

    def propose(self, group: int, command: Command, timeout: float) -> PromptFuture[Answer]:
        """Submit a write; `timeout` in seconds. The future has the answer or a `NebulaError`. Raises if not taken."""
        self._check()
        request = self.node.submit(group, command, self._deadline(timeout))
        future: PromptFuture[Answer] = PromptFuture(loop=self._loop)
        self._writes[request] = future
        self.wake()
        return future

    def confirm(self, group: int, timeout: float) -> PromptFuture[None]:
        """Done when this node's state of `group` is at least as new as now, for a linearizable read (S7, S8)."""
        self._check()
        request = self.node.read(group, self._deadline(timeout))
        future: PromptFuture[None] = PromptFuture(loop=self._loop)
        self._reads[request] = future
        self.wake()
        return future

    async def confirm_within(self, group: int, staleness: int, timeout: float) -> None:
        """Done when this node's state of `group` is at least as new as `staleness` milliseconds ago.

        That it was so at the beginning of the last such read that its leader confirmed is known, and a replica's state
        never goes back; so the leader is asked once in that time. The clock counts a sleep of the machine, in which
        others write on. Raises as `confirm`.
        """
        replica = self.node.host.replicas.get(group)
        mine = replica.id if replica else 0
        begun = self._clock.boottime()
        known = self._fresh.get(group, (0, 0))
        if known[0] == mine and begun - known[1] <= staleness:
            return
        await self.confirm(group, timeout)
        self._fresh[group] = (mine, begun)

    def store(self, group: int) -> Store:
        """The store of `group`. Raises `Unavailable` as `serving` does."""
        self._check()
        return serving(self.node, group).store

    def hub(self, group: int) -> WatchHub:
        """The watches of `group`; raises like `store`."""
        self.store(group)
        return self.node.groups[group].hub

    def request_failed(self, error: NebulaError) -> None:
        """A request ended with `error`. A broken invariant ends the node. Damage is never served; it is an alarm, since
        the log, and with it the node's vote, is whole, and other rows may be. A disk that can't be read is one, too."""
        if isinstance(error, InvariantViolation):
            self.fail(error)
        elif isinstance(error, Corruption) and error.group:
            self._damaged(error.group, error)
            self.wake()
        elif type(error) is StoreError:
            self._unreadable.met(error, self._clock.monotonic())
        elif isinstance(error, StoreError) and not isinstance(error, StoreClosed | WriteStalled):
            self.node.alarm(f"a read of the data store failed: {error.message}; this node should be replaced")

    def _damaged(self, group: int, error: Corruption) -> None:
        """A group's data is damaged. Where no other node has it, its other rows may still be good for reads."""
        try:
            self.node.damaged(group, error)
        except Corruption:
            self.node.alarm(f"the data of shard {group} is damaged: {error.message}; restore it from a backup")

    def work(self) -> None:
        """There is background work: a watch was made, or its outbox drained."""
        self._idle.set()

    # --- peers -----------------------------------------------------------------------------------------------------

    def peer_up(self, node: int, incarnation: int) -> None:
        """A link stands."""
        self.node.host.peer_up(node, incarnation)
        self.wake()

    def peer_down(self, node: int) -> None:
        """A link fell."""
        self.node.host.peer_down(node)
        self.wake()

    def frame(self, node: int, frame: bytes) -> None:
        """A frame came."""
        if self._broken is None:
            try:
                self.node.host.receive(node, frame)
            except BaseException as error:
                self.fail(error)
                return
            if self.node.host.has_work:
                self.wake()

    # --- turns -----------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Take a turn before the loop looks at its sockets again. What came with this look goes together: no turn waits
        for more, since what comes during a turn gathers for the next one by itself."""
        if not self._scheduled and self._broken is None:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        if self._broken is not None:
            return
        try:
            begun = time.perf_counter()
            for _ in range(MAX_TURNS):
                if not self._one_turn():
                    return
                if time.perf_counter() - begun > TURN_SECONDS:
                    break
            probe("turn budget spent")
            self.wake()
        except WriteStalled:
            self._loop.call_later(RETRY_SECONDS, self.wake)
        except BaseException as error:
            self.fail(error)

    def _one_turn(self) -> bool:
        begun = time.perf_counter()
        turn = self.node.turn(self._links.send, self._flusher.sync)
        if turn.written:
            self._meter.log_batch(turn.written_bytes)
        if turn.applied:
            self._meter.applied(turn.applied, time.perf_counter() - begun)
            if self.node.background_waits:
                self._idle.set()
        if turn.answers or turn.reads:
            self._answer(turn)
        for fetch in turn.fetches:
            self._fetch(fetch)
        for outgoing in turn.exports:
            self._exporter.submit(self._export, outgoing)
        if (seconds := time.perf_counter() - begun) > BUSY_SECONDS:
            self._busy(
                f"turn: {turn.applied} entries applied, {turn.written_bytes} bytes logged, {len(turn.frames)} frames, "
                f"{len(turn.answers)} answers, {len(turn.reads)} reads",
                seconds,
            )
        if turn.applied and self.node.midway:
            self.node.pause(paused=True)
            self._loop.call_later(seconds * REST, self._go_on)
        if turn.stalled:
            self._loop.call_later(RETRY_SECONDS, self.wake)
        if self.node.unflushed >= self.node.flush_bytes:
            self._tables.look()  # all else that is due of them can wait for a tick
        return turn.more

    def _go_on(self) -> None:
        self.node.pause(paused=False)
        self.wake()

    def _answer(self, turn: Turn) -> None:
        answers = self.answers
        if answers is None:
            self._wake_waiters(turn)
            return
        answers.hold()
        try:
            self._wake_waiters(turn)
        finally:
            answers.flush()

    def _wake_waiters(self, turn: Turn) -> None:
        for request, outcome in turn.answers:
            future = self._writes.pop(request, None)
            if future is not None and not future.done():
                if isinstance(outcome, Answer):
                    future.set_result(outcome)
                else:
                    future.set_exception(outcome)
        for request, error in turn.reads:
            waiter = self._reads.pop(request, None)
            if waiter is not None and not waiter.done():
                if error is None:
                    waiter.set_result(None)
                else:
                    waiter.set_exception(error)

    def _fetch(self, fetch: Fetch) -> None:
        """Carry out one of a turn's fetches."""

        def done(values: Values | BaseException) -> None:
            self._loop.call_soon_threadsafe(self._fetched, fetch, values)

        self._fetcher.fetch(fetch.rows, done)

    def _fetched(self, fetch: Fetch, values: Values | BaseException) -> None:
        if self._broken is not None:
            return
        try:
            if isinstance(values, Corruption):
                self.node.damaged(fetch.group, values, fetch.store)
            elif isinstance(values, BaseException):
                raise values
            else:
                self.node.fetched(fetch, values)
        except BaseException as error:
            # Without these rows a committed entry can't be applied here.
            self.fail(error)
            return
        if fetch.background:
            self._idle.set()
        self.wake()

    def _export(self, outgoing: Outgoing) -> None:
        """In a thread: read the next chunk of a snapshot."""
        chunk: bytes | None = None
        problem: BaseException | None = None
        try:
            chunk = outgoing.exporter.read()
        except BaseException as error:
            problem = error
        self._loop.call_soon_threadsafe(self._exported, outgoing, chunk, problem)

    def _exported(self, outgoing: Outgoing, chunk: bytes | None, problem: BaseException | None) -> None:
        if self._broken is not None:
            return
        given_up = outgoing.outcome is not None
        self.node.snapshots.sender.chunk_read(outgoing, chunk)
        if isinstance(problem, Corruption) and not given_up:
            self._damaged(outgoing.group, problem)
        elif problem is not None and not given_up:
            self.request_failed(problem if isinstance(problem, NebulaError) else StoreError(str(problem)))
        self.wake()

    async def _tick_for_ever(self) -> None:
        while True:
            await asyncio.sleep(TICK_MS / 1000)
            now = self._clock.monotonic()
            if now - self._last_tick > LATE_MS:
                # After a gap (GC, SIGSTOP, slow I/O) the loop reads its sockets once more before time passes (S12).
                probe("late tick")
                self.node.host.now = now
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                now = self._clock.monotonic()
            self._last_tick = now
            try:
                self._unreadable.look(now)
                self.node.tick(now, self._clock.boottime())
                if self._broken is None:
                    self._tables.look()
                if self.node.background_waits:
                    self._idle.set()  # a write that stalled is tried again, and a restarted node goes on deleting
            except BaseException as error:
                self.fail(error)
                return
            self.wake()

    async def _background(self) -> None:
        """Slices of background work, one a loop iteration, while there is any."""
        while True:
            await self._idle.wait()
            await asyncio.sleep(BACKGROUND_PAUSE)
            self._idle.clear()
            try:
                more = True
                while more:
                    begun = time.perf_counter()
                    more = self.node.background()
                    self.reclaims.settle()
                    if (seconds := time.perf_counter() - begun) > BUSY_SECONDS:
                        self._busy("background", seconds)
                    if self.node.fetches_wait:
                        self.wake()
                    await asyncio.sleep(seconds * REST)
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError):
                    raise
                self.fail(error)
                return

    # --- completions and endings -----------------------------------------------------------------------------------

    def _durable(self, batch: int, seconds: float) -> None:
        self._meter.log_fsync(seconds)
        if self._broken is None:
            try:
                self.node.host.durable(batch)
                if frames := self.node.host.frames():
                    self._links.send(frames)
            except BaseException as error:
                self.fail(error)
                return
            if self.node.has_work:
                self.wake()

    def fail(self, error: BaseException) -> None:
        """The node can't go on: whoever waits is told, and the daemon stops (S33, house rule 4)."""
        if self._broken is None:
            self._broken = error
            self._fail_waiters()
            self._failed(error)

    def _fail_waiters(self) -> None:
        for write in self._writes.values():
            if not write.done():
                write.set_exception(UnknownOutcome("this node stopped before the write was decided"))
        for read in self._reads.values():
            if not read.done():
                read.set_exception(Unavailable("this node is stopping; try another one"))
        self._writes.clear()
        self._reads.clear()

    @property
    def syncs(self) -> str:
        """Who makes the log durable, for people."""
        return "kernel" if self._flusher.by_kernel else "thread"

    @property
    def broken(self) -> BaseException | None:
        """Why the node can't go on, if it can't."""
        return self._broken

    async def hand_over(self) -> None:
        """Give away the leadership of every group, so that nobody waits for an election timeout."""
        host = self.node.host
        deadline = self._clock.monotonic() + int(STOP_SECONDS * 1000)
        while self._broken is None and self._clock.monotonic() < deadline:
            leading = [replica for replica in host.replicas.values() if replica.raft.role is StateRole.LEADER]
            others = [replica for replica in leading if replica.raft.configuration.votes_beside(replica.id)]
            if not others:
                return
            for replica in others:
                receivers = host.receivers(replica.group)
                target = heir(replica, host.peers, receivers) or replica.successor(receivers)
                if target:
                    try:
                        host.transfer_leadership(replica.group, target)
                    except NebulaError:
                        probe("hand-over refused")
            self.wake()
            await asyncio.sleep(TICK_MS / 1000)

    def _check(self) -> None:
        if self._broken is not None:
            raise Unavailable("this node is stopping; try another one")

    def _deadline(self, timeout: float) -> int:
        if timeout <= 0:
            raise DeadlineExceeded
        return self._clock.monotonic() + max(1, int(timeout * 1000))

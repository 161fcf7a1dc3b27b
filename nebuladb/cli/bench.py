"""``bench``: what the cluster does here, through the SDK."""

from __future__ import annotations

import asyncio
import random
import secrets
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from itertools import cycle
from time import monotonic
from typing import Final, NamedTuple, TextIO

import click

from nebuladb.cli.latencies import Latencies
from nebuladb.cli.output import Field, printable
from nebuladb.cli.parallel import in_parallel
from nebuladb.cli.progress import Progress
from nebuladb.cli.settings import Settings, complain, spread
from nebuladb.client import AsyncClient, prefix_end
from nebuladb.env import Rng
from nebuladb.errors import KeyNotFound, KeyspaceNotFound, NebulaError, Unavailable, UnknownOutcome, WrongShard

GETS: Final = {"put": 0, "get": 100, "mix": 80}
"""Workload → how many operations of a hundred are gets; the others are puts."""

MAX_DATA: Final = 4 << 30
"""Bytes of all values together."""
MAX_IN_FLIGHT: Final = 256 << 20
"""Bytes of the values that are under way at a time, in our memory and in that of nodes."""

CHUNK_KEYS: Final = 4096
CHUNK_BYTES: Final = 4 << 20
"""Of keys that are stored beforehand, or removed: a batch has no more of either, so that it has the time."""

PATIENCE: Final = 60.0
"""Seconds that the removal of the keys waits for a node at least: a leader may just have died."""
TRIES: Final = 3


class Plan(NamedTuple):
    """What to do: `workload` is one of `GETS`, for `seconds`, `in_flight` operations at a time."""

    workload: str
    seconds: int
    in_flight: int
    value_size: int
    keys: int
    serializable: bool


class Bench:
    """One run, with keys below `prefix` only, and what came of it.

    It is a closed loop: who has an answer asks the next thing. So while a node stands still it is asked little, and of
    a stall at most `in_flight` late answers are seen. Latencies are those of operations that succeeded, in buckets
    (`Latencies`); the others are counted in `errors` by their reason.
    """

    def __init__(self, plan: Plan, prefix: bytes, stream: TextIO, *, clock: Callable[[], float], rng: Rng) -> None:
        """`stream` is told of the progress. `clock`: seconds. `rng` chooses the keys, and gets or puts."""
        self.latencies = Latencies()
        self.errors: Counter[str] = Counter()
        self.last = ""
        """What the last error says."""
        self.seconds = 0.0
        """From the first question to the last answer; 0 as long as nothing was measured."""
        self._plan = plan
        self._prefix = prefix
        self._stream = stream
        self._clock = clock
        self._rng = rng
        self._value = rng.getrandbits(8 * plan.value_size).to_bytes(plan.value_size) if plan.value_size else b""
        self._stopped = False

    async def run(self, clients: Sequence[AsyncClient]) -> None:
        """Store what gets need, then measure, through the clients in turn. Raises `NebulaError` if the first can't be.

        Cancelled, it ends early, and then as if nothing had been. What is under way is waited for also then, a client's
        timeout at most: a put that comes later would be there after the keys have been removed.
        """
        work = asyncio.ensure_future(self._work(clients))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            self._stopped = True
            await work

    async def _work(self, clients: Sequence[AsyncClient]) -> None:
        # The first call of a client makes its connection.
        await asyncio.gather(*(client.get(self._prefix) for client in clients))
        if GETS[self._plan.workload]:
            await self._fill(clients[0])
        began, progress = self._clock(), Progress(self._stream, "done", noun="operations", clock=self._clock)

        async def one(client: AsyncClient) -> None:
            await self._one(client)
            progress.update(self.latencies.count, self.latencies.count * self._plan.value_size)

        try:
            await in_parallel(self._turns(clients, began + self._plan.seconds), self._plan.in_flight, one)
        finally:
            self.seconds = self._clock() - began
            progress.close()

    async def _fill(self, client: AsyncClient) -> None:
        keys, size = self._plan.keys, self._plan.value_size
        step = min(CHUNK_KEYS, CHUNK_BYTES // max(size, 1))
        progress = Progress(self._stream, "stored", noun="keys", clock=self._clock)
        try:
            for start in range(0, keys, step):
                if self._stopped:
                    return
                end = min(start + step, keys)
                await client.batch({self._key(number): self._value for number in range(start, end)})
                progress.update(end, end * size, keys)
        finally:
            progress.close()

    def _turns(self, clients: Sequence[AsyncClient], ends: float) -> Iterator[AsyncClient]:
        """Whom to ask, as long as there is time."""
        for client in cycle(clients):
            if self._stopped or self._clock() >= ends:
                return
            yield client

    async def _one(self, client: AsyncClient) -> None:
        """One operation."""
        plan = self._plan
        key = self._key(self._rng.randrange(0, plan.keys))
        gets = self._rng.randrange(0, 100) < GETS[plan.workload]
        asked = self._clock()
        try:
            if not gets:
                await client.put(key, self._value)
            elif await client.get(key, serializable=plan.serializable) is None and not plan.serializable:
                raise KeyNotFound(f"key {key.decode()} was stored, and isn't there")
        except NebulaError as error:
            self.errors[error.reason.name.lower()] += 1
            self.last = error.message
            return
        self.latencies.add(self._clock() - asked)

    def _key(self, number: int) -> bytes:
        return b"%s%07d" % (self._prefix, number)


async def remove(client: AsyncClient, prefix: bytes) -> None:
    """Delete every key below `prefix`, and see that there is none. Raises `NebulaError`."""
    end = prefix_end(prefix)
    for _ in range(TRIES):  # a deletion may be lost with its leader, and a put whose outcome is unknown may come late
        with suppress(UnknownOutcome):
            try:
                await client.delete(prefix, end)
            except WrongShard:
                await _remove_each(client, prefix, end)
        if not [row async for row in client.scan(prefix, end, limit=1, keys_only=True)]:
            return
    raise Unavailable(f"some were still there after {TRIES} tries")


async def _remove_each(client: AsyncClient, start: bytes, end: bytes) -> None:
    """A range over several shards."""
    while keys := [row.key async for row in client.scan(start, end, limit=CHUNK_KEYS, keys_only=True)]:
        await client.batch({}, keys)
        start = keys[-1] + b"\0"


@click.command()
@click.argument("workload", type=click.Choice(list(GETS)), default="put")
@click.option("--seconds", type=click.IntRange(1, 600), default=10, show_default=True, help="How long to measure.")
@click.option("--in-flight", type=click.IntRange(1, 1024), default=64, show_default=True, help="Operations at a time.")
@click.option("--value-size", type=click.IntRange(0, 1 << 20), default=256, show_default=True, help="Bytes of a value.")
@click.option("--keys", type=click.IntRange(1, 1_000_000), default=10_000, show_default=True, help="Different keys.")
@click.option("--serializable", is_flag=True, help="Gets: let any node answer from its own state, perhaps an old one.")
@click.pass_context
def bench(
    context: click.Context,
    workload: str,
    seconds: int,
    in_flight: int,
    value_size: int,
    keys: int,
    serializable: bool,
) -> None:
    """Measure puts, gets, or a mix of 80 % gets and 20 % puts: how many a second, and how long they take.

    So many --in-flight are asked at a time, of random keys, at each of the --endpoints in turn; whoever has an answer
    asks again. (A node that fails leaves its part to the next one, for good.) Gets read keys that were put before,
    which isn't measured. Operations that fail are counted by reason, and have no latency. Ctrl-C ends it early.

    It takes all that the cluster has to give, so mind who else needs it. Its keys lie below nebula-bench/ and a random
    number, and are deleted at the end; what they were stays in the history, which scans pass, until that is compacted:
    for many keys make a keyspace, and drop it after. Exits 1 if no operation succeeds, or keys remain, and says then
    what to do.

    It is a measuring stick and not the cluster's maximum: the client is Python, too, one process that takes as much
    processor time as a node does. The comparison with etcd, with a leaner client, is `make bench` in the source tree.

    \b
    Example:
      nebula-cli bench
      nebula-cli --endpoints 127.0.0.1:7379,127.0.0.1:7479 --keyspace users bench mix --in-flight 256
      nebula-cli -o json bench get --serializable --seconds 60 --keys 100000
    """
    settings = context.find_object(Settings)
    assert settings is not None  # the group made it
    plan = Plan(workload, seconds, in_flight, value_size, keys, serializable)
    _check(plan)
    over_shards = settings.run(spread)  # what is wrong from the beginning should be told before there are keys
    prefix = f"nebula-bench/{secrets.token_hex(8)}/"
    run = Bench(plan, prefix.encode(), sys.stderr, clock=monotonic, rng=random.Random())

    async def work(client: AsyncClient) -> None:
        async with AsyncExitStack() as stack:
            ring, clients = client.endpoints, [client]
            for place in range(1, len(ring)):  # a client stays with the first one that answers
                other = AsyncClient(ring[place:] + ring[:place], keyspace=client.keyspace, timeout=settings.timeout)
                clients.append(await stack.enter_async_context(other))
            await run.run(clients)

    try:
        with suppress(KeyboardInterrupt):  # impatient: pressed again, while what was under way was waited for
            settings.run(work)
        _report(settings, plan, run)
    finally:
        clean = _removed(settings, prefix, over_shards)
    context.exit(0 if clean and run.latencies.count else 1)


def _check(plan: Plan) -> None:
    """Raise `UsageError` for what goes beyond reason only together."""
    if plan.serializable and not GETS[plan.workload]:
        raise click.UsageError("--serializable is for gets: `bench get` or `bench mix`")
    for name, many, most in (("--keys", plan.keys, MAX_DATA), ("--in-flight", plan.in_flight, MAX_IN_FLIGHT)):
        if many * plan.value_size > most:
            raise click.UsageError(
                f"{name} {many} times --value-size {plan.value_size} are more than {most >> 20:,} MiB; take less of one"
            )


def _report(settings: Settings, plan: Plan, run: Bench) -> None:
    """Print what was measured, and complain if no operation succeeded."""
    done, failed = run.latencies, run.errors.total()
    if not done.count and not failed:
        complain("stopped before anything was measured")
        return

    def ms(seconds: float) -> float | None:
        return round(1000 * seconds, 3) if done.count else None

    numbers: dict[str, Field] = {
        "workload": plan.workload,
        "operations": done.count,
        "seconds": round(run.seconds, 3),
        "rate": round(done.count / run.seconds, 1) if run.seconds else None,
        "p50_ms": ms(done.percentile(0.5)),
        "p99_ms": ms(done.percentile(0.99)),
        "max_ms": ms(done.longest),
        "failed": failed,
    }
    line = " ".join(f"{name}={printable(value)}" for name, value in {**numbers, **run.errors}.items())
    with settings.output() as output:
        output.row({**numbers, "errors": run.errors}, line.encode())
    if not done.count:
        complain(f"none of {failed} operations succeeded; the last one: {run.last}")


def _removed(settings: Settings, prefix: str, over_shards: bool) -> bool:
    """Delete the keys; False if some may remain, which is complained about."""
    try:
        with suppress(KeyspaceNotFound):  # it was dropped meanwhile, and they went with it
            settings.run(lambda client: remove(client, prefix.encode()), PATIENCE)
    except (NebulaError, KeyboardInterrupt) as error:
        why = error.message if isinstance(error, NebulaError) else "stopped"
        cli = f"nebula-cli --keyspace {settings.keyspace}"
        how = f"{cli} del --prefix {prefix}"
        if over_shards:
            how = f"{cli} scan --keys-only --prefix {prefix} | xargs -n 1 {cli} del"
        complain(f"keys below {prefix} may remain ({why}); delete them: {how}")
        return False
    return True


COMMANDS: Final = (bench,)

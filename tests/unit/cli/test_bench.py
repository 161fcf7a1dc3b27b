"""`nebula-cli bench`: the run by itself on a clock of the test's, and the command against nodes."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any

import pytest
from click.testing import CliRunner

from nebuladb.cli.bench import Bench, Plan
from nebuladb.cli.main import main
from nebuladb.cli.settings import Settings
from nebuladb.client import AsyncClient, BatchResult, KeyValue, PutResult
from nebuladb.errors import Corruption, KeyspaceNotFound, NoLeader, NoSpace, UnknownOutcome
from tests.unit.api.etcd.faced import Faced
from tests.unit.cli.conftest import Cli
from tests.unit.client.fake import LOST, Fault, Node
from tests.unit.node.lone import SECONDS

PREFIX = b"nebula-bench/t/"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Slow(AsyncClient):
    """Every operation takes `takes` seconds of the clock, and raises what `raises` has next."""

    def __init__(self, clock: Clock, store: dict[bytes, bytes], takes: float = 0.5) -> None:
        super().__init__(["127.0.0.1:1"])
        self.time = clock
        self.store = store
        self.takes = takes
        self.did: Counter[str] = Counter()
        self.raises: Iterator[Exception | None] = itertools.repeat(None)
        self.open = asyncio.Event()
        self.open.set()
        self.asked = asyncio.Event()

    async def _does(self, what: str) -> None:
        self.did[what] += 1
        self.asked.set()
        await self.open.wait()
        self.time.now += self.takes
        if error := next(self.raises, None):
            raise error

    async def put(self, key: bytes, value: bytes, **_: Any) -> PutResult:
        await self._does("put")
        self.store[key] = value
        return PutResult(1)

    async def get(self, key: bytes, **_: Any) -> KeyValue | None:
        if key == PREFIX:
            return None
        await self._does("get")
        return KeyValue(key, self.store[key], 1, 1, 1, 0) if key in self.store else None

    async def batch(self, puts: Mapping[bytes, bytes], deletes: Iterable[bytes] = ()) -> BatchResult:
        self.asked.set()
        await self.open.wait()
        self.time.now += 50.0
        self.store.update(puts)
        return BatchResult({})


def planned(workload: str, **fields: Any) -> Plan:
    plan = Plan(workload, seconds=10, in_flight=1, value_size=3, keys=20, serializable=False)
    return plan._replace(**fields)


def made(plan: Plan, clock: Clock, stream: io.StringIO | None = None) -> Bench:
    return Bench(plan, PREFIX, stream or io.StringIO(), clock=clock, rng=random.Random(1))


async def test_puts_go_on_for_the_time_and_to_the_clients_in_turn() -> None:
    clock, store = Clock(), dict[bytes, bytes]()
    clients = [Slow(clock, store) for _ in range(3)]
    bench = made(planned("put"), clock)
    await bench.run(clients)
    assert (bench.seconds, bench.latencies.count, bench.latencies.longest) == (10.0, 20, 0.5)
    assert bench.latencies.percentile(0.5) == pytest.approx(0.5, rel=0.006)
    assert [client.did for client in clients] == [{"put": 7}, {"put": 7}, {"put": 6}]
    assert not bench.errors
    assert set(store) <= {PREFIX + b"%07d" % number for number in range(20)}
    assert {len(value) for value in store.values()} == {3}


async def test_so_many_are_in_flight() -> None:
    clock = Clock()
    client = Slow(clock, {})
    client.open.clear()
    running = asyncio.create_task(made(planned("put", in_flight=7), clock).run([client]))
    await client.asked.wait()
    await asyncio.sleep(0)
    assert client.did["put"] == 7
    client.open.set()
    await running


@pytest.mark.parametrize("workload", ["get", "mix"])
async def test_gets_find_keys_that_were_put_before_and_that_is_not_measured(workload: str) -> None:
    clock, store, told = Clock(), dict[bytes, bytes](), io.StringIO()
    client = Slow(clock, store, takes=1 / 128)
    bench = made(planned(workload), clock, told)
    await bench.run([client])
    assert sorted(store) == [PREFIX + b"%07d" % number for number in range(20)]
    assert (bench.seconds, bench.latencies.longest) == (10.0, 1 / 128)
    assert bench.latencies.count == client.did.total() == 1280
    assert not bench.errors
    part = client.did["get"] / client.did.total()
    assert part == 1.0 if workload == "get" else 0.75 < part < 0.85
    assert told.getvalue().startswith("stored 20 of 20 keys")
    assert "\ndone 128 operations" in told.getvalue()


async def test_what_fails_is_counted_by_its_reason_and_has_no_latency() -> None:
    clock = Clock()
    client = Slow(clock, {})
    client.raises = iter([None, NoLeader("nobody leads"), UnknownOutcome("lost"), None, NoLeader("still nobody")])
    bench = made(planned("put"), clock)
    await bench.run([client])
    assert bench.errors == {"no_leader": 2, "unknown_outcome": 1}
    assert bench.latencies.count == 17
    assert bench.last == "still nobody"


@pytest.mark.parametrize("serializable", [False, True])
async def test_a_key_that_is_gone_is_an_error_unless_an_old_state_may_answer(*, serializable: bool) -> None:
    clock, store = Clock(), dict[bytes, bytes]()

    class Forgetful(Slow):
        async def get(self, key: bytes, **more: Any) -> KeyValue | None:
            self.store.clear()
            return await super().get(key, **more)

    bench = made(planned("get", serializable=serializable), clock)
    await bench.run([Forgetful(clock, store)])
    assert bench.errors == ({} if serializable else {"key_not_found": 20})
    assert bench.latencies.count == (20 if serializable else 0)


async def test_a_put_that_is_under_way_is_waited_for_when_it_ends_early() -> None:
    """It would come after the keys have been removed."""
    clock, store = Clock(), dict[bytes, bytes]()
    client = Slow(clock, store)
    client.open.clear()
    bench = made(planned("put"), clock)
    running = asyncio.create_task(bench.run([client]))
    await client.asked.wait()
    running.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not running.done()
    client.open.set()
    await running
    assert (bench.latencies.count, len(store), bench.seconds) == (1, 1, 0.5)


async def test_it_may_end_while_the_keys_are_stored() -> None:
    clock = Clock()
    client = Slow(clock, {})
    client.open.clear()
    bench = made(planned("get", keys=10_000), clock)
    running = asyncio.create_task(bench.run([client]))
    await client.asked.wait()
    running.cancel()
    await asyncio.sleep(0)
    client.open.set()
    await running
    assert (bench.latencies.count, bench.errors, len(client.store)) == (0, {}, 4096)


# The command


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by being asked: so much is done as is asked in the time, however long it takes."""
    ticks = itertools.count()
    monkeypatch.setattr("nebuladb.cli.bench.monotonic", lambda: next(ticks) / 500)


def rows(nodes: list[Node]) -> list[bytes]:
    store = nodes[0].store
    return [key for key in store.history if store.read(key) is not None]


@pytest.mark.usefixtures("ticking")
@pytest.mark.parametrize("words", [(), ("get",), ("mix",), ("get", "--serializable")], ids=" ".join)
def test_it_measures_at_all_endpoints_and_leaves_nothing(cli: Cli, nodes: list[Node], words: tuple[str, ...]) -> None:
    cli("put", "nebula-bench/mine", "1")
    cli("put", "nebula-bench0", "2")
    answer = cli("-o", "json", "bench", *words, "--seconds", "1", "--in-flight", "4", "--keys", "50")
    assert answer.exit_code == 0, answer.stderr
    row = json.loads(answer.stdout)
    assert list(row) == [
        *("workload", "operations", "seconds", "rate", "p50_ms", "p99_ms", "max_ms", "failed", "errors")
    ]
    assert (row["workload"], row["failed"], row["errors"]) == (words[0] if words else "put", 0, {})
    assert row["operations"] > 50
    assert row["rate"] == pytest.approx(row["operations"] / row["seconds"], rel=0.01)
    assert 0 < row["p50_ms"] <= row["p99_ms"] <= row["max_ms"]
    assert all(node.count("Put") + node.count("Get") > 10 for node in nodes)
    assert rows(nodes) == [b"nebula-bench/mine", b"nebula-bench0"]


@pytest.mark.usefixtures("ticking")
def test_the_other_styles(cli: Cli, nodes: list[Node]) -> None:
    nodes[0].faults = [Fault("Put", LOST)]
    nodes[1].faults = [Fault("Put", Corruption("it is damaged"))]
    simple = cli("bench", "--seconds", "1", "--in-flight", "2")
    assert (simple.exit_code, simple.stdout.count("\n")) == (0, 1)
    values = dict(part.split("=") for part in simple.stdout.split())
    assert (values["failed"], values["unknown_outcome"], values["corruption"]) == ("2", "1", "1")
    assert values["operations"].isdecimal()
    nodes[0].faults = [Fault("Put", LOST)]
    table = cli("-o", "table", "bench", "--seconds", "1", "--in-flight", "2")
    heads, line = table.stdout.splitlines()
    assert " ".join(heads.split()) == "WORKLOAD OPERATIONS SECONDS RATE P50 MS P99 MS MAX MS FAILED ERRORS"
    assert line.endswith("  unknown_outcome=1")


@pytest.mark.usefixtures("ticking")
def test_if_everything_fails_it_says_why(cli: Cli, nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    async def put(*_: object, **__: object) -> PutResult:
        raise NoSpace("it is full: make room")

    monkeypatch.setattr(AsyncClient, "put", put)
    answer = cli("-o", "json", "bench", "--seconds", "1")
    row = json.loads(answer.stdout)
    assert (answer.exit_code, row["operations"], row["p50_ms"]) == (1, 0, None)
    assert row["errors"] == {"no_space": row["failed"]}
    last = answer.stderr.splitlines()[-1]
    assert last == f"nebula-cli: none of {row['failed']} operations succeeded; the last one: it is full: make room"


def test_what_is_wrong_from_the_beginning_is_told_before_there_are_keys(cli: Cli, nodes: list[Node]) -> None:
    away = cli("--endpoints", "127.0.0.1:1", "--timeout", "0.1", "bench")
    assert (away.exit_code, away.stdout, away.stderr.count("\n")) == (1, "", 1)
    unknown = cli("--keyspace", "nowhere", "bench")
    assert (unknown.exit_code, unknown.stdout, unknown.stderr.count("\n")) == (1, "", 1)
    assert "keyspace list" in unknown.stderr
    assert {name for node in nodes for name, _ in node.calls} == {"Describe"}


@pytest.mark.usefixtures("ticking")
def test_keys_that_cannot_be_stored_end_it_and_are_removed(cli: Cli, nodes: list[Node]) -> None:
    nodes[0].faults = [Fault("Txn", Corruption("it is damaged"), after=True)]
    answer = cli("bench", "get", "--seconds", "1", "--keys", "50")
    assert (answer.exit_code, answer.stdout, answer.stderr) == (1, "", "nebula-cli: it is damaged\n")
    assert nodes[0].store.history
    assert rows(nodes) == []


@pytest.mark.usefixtures("ticking")
@pytest.mark.parametrize("after", [False, True])
def test_a_removal_whose_outcome_is_unknown_is_looked_after(cli: Cli, nodes: list[Node], *, after: bool) -> None:
    nodes[0].faults = [Fault("Delete", LOST, after=after)]
    answer = cli("bench", "--seconds", "1", "--in-flight", "4")
    assert answer.exit_code == 0, answer.stderr
    assert rows(nodes) == []
    assert nodes[0].count("Delete") + nodes[1].count("Delete") == (1 if after else 2)


@pytest.mark.usefixtures("ticking")
def test_a_keyspace_that_is_dropped_meanwhile_keeps_nothing(cli: Cli, nodes: list[Node]) -> None:
    nodes[0].faults = [Fault("Delete", KeyspaceNotFound())]
    answer = cli("bench", "--seconds", "1", "--in-flight", "4")
    assert (answer.exit_code, "remain" in answer.stderr) == (0, False)


@pytest.mark.usefixtures("ticking")
@pytest.mark.parametrize("ends", [Corruption("it is damaged"), KeyboardInterrupt()], ids=["node", "ctrl-c"])
def test_what_remains_is_said_and_how_to_remove_it(
    cli: Cli, nodes: list[Node], monkeypatch: pytest.MonkeyPatch, ends: BaseException
) -> None:
    run = Settings.run

    def ended(self: Settings, work: Callable[[AsyncClient], Awaitable[Any]], timeout: float = 0.0) -> Any:
        if timeout:
            raise ends
        return run(self, work, timeout)

    monkeypatch.setattr(Settings, "run", ended)
    answer = cli("bench", "--seconds", "1", "--in-flight", "4")
    assert (answer.exit_code, answer.stdout[:20]) == (1, "workload=put operati")
    (prefix,) = {key.decode()[:-7] for key in rows(nodes)}
    why = "stopped" if isinstance(ends, KeyboardInterrupt) else "it is damaged"
    line = f"keys below {prefix} may remain ({why}); delete them: nebula-cli --keyspace default del --prefix {prefix}"
    assert answer.stderr.splitlines()[-1] == f"nebula-cli: {line}"
    monkeypatch.undo()
    assert int(cli(*line.rpartition("nebula-cli ")[2].split()).stdout) > 0
    assert rows(nodes) == []


async def test_keys_in_several_shards_are_removed_one_by_one(monkeypatch: pytest.MonkeyPatch, ticking: None) -> None:
    faced = Faced()
    await asyncio.wait_for(faced.open(), SECONDS)
    monkeypatch.setattr("nebuladb.cli.bench.CHUNK_KEYS", 7)

    async def cli(*words: str) -> Any:
        begin = ["--endpoints", faced.address, "--keyspace", "users"]
        return await asyncio.to_thread(CliRunner().invoke, main, [*begin, *words], catch_exceptions=False)

    async with AsyncClient([faced.address], keyspace="users") as client:
        await client.create_keyspace("users", shards=3)
        for key in (b"nebula-bench/", b"nebula-bench/\xff", b"user"):
            await client.put(key, b"v")
        answer = await cli("bench", "mix", "--seconds", "1", "--in-flight", "4", "--keys", "50")
        assert answer.exit_code == 0, answer.stderr
        assert [row.key async for row in client.scan()] == [b"nebula-bench/", b"nebula-bench/\xff", b"user"]

        async def refused(*_: object) -> None:
            raise Corruption("it is damaged")

        monkeypatch.setattr("nebuladb.cli.bench._remove_each", refused)
        answer = await cli("bench", "--seconds", "1", "--keys", "5")
        how = answer.stderr.splitlines()[-1].rpartition("delete them: ")[2]
        scan, _, delete = how.partition(" | xargs -n 1 ")
        found = await cli(*scan.split()[3:])
        assert len(found.stdout.split()) == 5
        for key in found.stdout.split():
            assert (await cli(*delete.split()[3:], key)).stdout == "1\n"
        assert len([row async for row in client.scan()]) == 3
    await faced.close()


INTERRUPTIBLE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
"""Which a process in the background of a script is not."""


@pytest.mark.parametrize("workload", ["put", "mix"])
def test_ctrl_c_ends_it_early_with_what_was_measured(nodes: list[Node], workload: str) -> None:
    program = f"{INTERRUPTIBLE}\nfrom nebuladb.cli.main import main; main()"
    command = [sys.executable, "-c", program, "-o", "json", "bench", workload, "--seconds", "600", "--keys", "100"]
    environ = {**os.environ, "NEBULA_ENDPOINTS": ",".join(node.address for node in nodes)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert next(line for line in process.stderr if "operations" in line).startswith("done ")
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, "Aborted" in stderr) == (0, False)
    row = json.loads(stdout)
    assert (row["operations"] > 0, row["failed"], row["seconds"] < 600) == (True, 0, True)
    assert nodes[0].store.history
    assert rows(nodes) == []


@pytest.mark.parametrize(
    "words",
    [
        ("scan",),
        ("put", "--seconds", "0"),
        ("put", "--seconds", "601"),
        ("put", "--in-flight", "1025"),
        ("put", "--value-size", "1048577"),
        ("get", "--keys", "1000001"),
        ("get", "--keys", "100000", "--value-size", "100000"),
        ("put", "--in-flight", "1000", "--value-size", "1000000", "--keys", "1"),
        ("put", "--serializable"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_meant(cli: Cli, nodes: list[Node], words: tuple[str, ...]) -> None:
    answer = cli("bench", *words)
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert not any(node.calls for node in nodes)


def test_the_help_says_what_it_is_not() -> None:
    text = " ".join(CliRunner().invoke(main, ["bench", "--help"]).output.split())
    assert "the client is Python" in text
    assert "`make bench`" in text

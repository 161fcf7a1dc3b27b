from __future__ import annotations

import asyncio
import gc
import inspect
import os
import signal
import subprocess
import sys
import threading
from contextlib import closing
from typing import Any

import pytest

from nebuladb import errors
from nebuladb.client import AsyncClient, Client, SyncTxn, Txn, sync
from nebuladb.client.sync import SyncWrites
from nebuladb.client.writes import Writes
from tests.unit.client.fake import LOST, Fault, Node, wait_until

SECONDS = 20.0


def test_the_synchronous_client(nodes: list[Node]) -> None:
    a, b, _ = nodes
    with Client([a.address, b.address]) as client:
        client.put(b"k", b"v")
        found = client.get(b"k")
        assert found is not None
        assert found.value == b"v"
        assert client.compare_and_set(b"k", b"w", expected=b"v").succeeded
        assert client.txn().when("version", b"k", "=", 2).put(b"l", b"x").commit().succeeded
        a.break_scan_after = 1
        rows = client.scan()
        assert [row.key for row in rows] == [b"k", b"l"]
        assert rows.revisions == {2: 4}
        with closing(client.watch(b"k", start_revisions={2: 2})) as events:
            assert [next(events).kv.value, next(events).kv.value] == [b"v", b"w"]
        lease = client.grant_lease(10, lease=7)
        assert client.time_to_live(7).ttl == 10
        assert client.leases() == (7,)
        with client.keep_alive(7) as keeper:
            assert keeper.held
        client.revoke_lease(lease.id)
        assert client.delete(b"k").deleted == 1
        with pytest.raises(errors.InvalidArgument):
            client.put(b"", b"")
        a.faults.append(Fault("Put", LOST, after=True))
        with client.session() as session:
            session.put(b"k", b"once")
            assert session.txn().put(b"m", b"once").commit().succeeded
        found_many = client.get_many([b"k", b"nothing"])
        assert found_many[b"k"] is not None
        assert found_many[b"nothing"] is None
    assert a.store.executed.count("put") == 3  # the refused one too


def _public(kind: type) -> dict[str, Any]:
    return {name: member for name, member in inspect.getmembers(kind) if not name.startswith("_")}


@pytest.mark.parametrize(("asynchronous", "synchronous"), [(AsyncClient, Client), (Writes, SyncWrites), (Txn, SyncTxn)])
def test_the_same_without_async(asynchronous: type, synchronous: type) -> None:
    ours = _public(synchronous)
    for name, member in _public(asynchronous).items():
        assert name in ours, name
        assert not inspect.iscoroutinefunction(ours[name]), name
        if callable(member):
            assert list(inspect.signature(member).parameters) == list(inspect.signature(ours[name]).parameters), name


def test_help_says_what_comes_of_it() -> None:
    shown = {name: inspect.signature(getattr(Client, name)).return_annotation for name in ("scan", "watch", "get")}
    assert shown == {"scan": "SyncRows", "watch": "SyncItems[Event]", "get": "KeyValue | None"}


def test_a_script_with_an_unfinished_scan_and_watch_comes_to_its_end(node: Node) -> None:
    script = """
import sys
from nebuladb.client import Client
client = Client([sys.argv[1]])
client.put(b"k", b"v")
rows, events = client.scan(), client.watch(b"k", start_revision=1)
print(next(rows).value, next(events).kv.value)
"""
    assert _run(script, node) == (0, "b'v' b'v'\n", "")


@pytest.mark.parametrize(
    "ends",
    [
        "with Client([sys.argv[1]]) as other: yield other.get(b'k')",
        "with client.session() as session: yield session.put(b'k', b'v')",
        "with client.keep_alive(7): yield",
        """try: yield
    finally: client.put(b'k', b'w')""",
    ],
)
def test_what_is_left_open_to_the_interpreters_end_does_not_hold_it_up(node: Node, ends: str) -> None:
    """A generator ends when the interpreter does, and no thread of the client's runs any more: it hung for ever."""
    node.store.leases[7] = 10
    script = f"""
import sys
from nebuladb.client import Client
client = Client([sys.argv[1]])
def left_open():
    {ends}
held = left_open()
next(held)
print("ends")
"""
    code, said, _ = _run(script, node)
    assert (code, said) == (0, "ends\n")


def _run(script: str, node: Node) -> tuple[int, str, str]:
    """A script that is given the node's address: its exit code, stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-c", script, node.address], capture_output=True, timeout=SECONDS, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_a_client_that_nobody_has_any_more_ends_its_thread(node: Node) -> None:
    """It kept the thread, its loop and its connections for as long as the process lived."""
    before = set(threading.enumerate())
    client = Client([node.address])
    [thread] = set(threading.enumerate()) - before
    client.batch({b"a": b"", b"b": b""})
    rows = client.scan(page_size=1)
    del client
    gc.collect()
    assert [row.key for row in rows] == [b"a", b"b"], "what is still read from needs it"
    del rows
    gc.collect()
    thread.join(SECONDS)
    assert not thread.is_alive()


def test_the_collector_may_end_a_scan_on_the_clients_own_thread(node: Node) -> None:
    with Client([node.address]) as client:
        client.put(b"k", b"v")
        cycle: list[Any] = [client.scan()]
        cycle.append(cycle)
        next(cycle[0])
        del cycle

        async def collect() -> int:
            return gc.collect()

        over = threading.Timer(SECONDS, os._exit, [9])  # it would hang for ever
        over.start()
        assert client._thread.run(collect())
        assert client.get(b"k") is not None
        over.cancel()


def test_what_is_handed_to_a_call_may_come_from_the_client_itself(node: Node) -> None:
    with Client([node.address]) as client:
        client.put(b"index/1", b"one")
        client.put(b"one", b"1")
        over = threading.Timer(SECONDS, os._exit, [9])  # it would hang for ever
        over.start()
        found = client.get_many(row.value for row in client.scan(b"index/", b"index0"))
        assert [kv and kv.value for kv in found.values()] == [b"1"]
        client.batch({b"two": b"2"}, (row.key for row in client.scan(b"index/", b"index0")))
        assert [row.key for row in client.scan()] == [b"one", b"two"]
        over.cancel()


def test_a_call_on_the_clients_own_thread_is_refused(node: Node) -> None:
    with Client([node.address]) as client:

        async def call() -> None:
            client.get(b"k")

        over = threading.Timer(SECONDS, os._exit, [9])  # it would hang for ever
        over.start()
        with pytest.raises(errors.InvalidArgument, match="hand over a list"):
            client._thread.run(call())
        over.cancel()
        assert client.get(b"k") is None


def test_an_interrupt_as_a_call_is_handed_over_comes_as_itself(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop may be amid it by then, and what runs can't be closed."""
    running, checked = threading.Event(), threading.Event()

    async def work() -> None:
        running.set()
        assert checked.wait(SECONDS)

    with Client([node.address]) as client:
        hand_over = client._thread._loop.call_soon_threadsafe

        def interrupted(*given: Any) -> None:
            hand_over(*given)
            assert running.wait(SECONDS)
            raise KeyboardInterrupt

        monkeypatch.setattr(client._thread._loop, "call_soon_threadsafe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client._thread.run(work())
        checked.set()
        monkeypatch.undo()
        assert client.get(b"k") is None


def test_a_client_that_a_signal_closes_as_a_call_is_handed_over_says_so(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client([node.address])
    hand_over = client._thread._loop.call_soon_threadsafe

    def closing(*given: Any) -> None:
        monkeypatch.undo()
        client.close()
        hand_over(*given)

    monkeypatch.setattr(client._thread._loop, "call_soon_threadsafe", closing)
    with pytest.raises(errors.ClientClosed):
        client.get(b"k")


@pytest.mark.filterwarnings("ignore")  # a call that is interrupted before it begins is never awaited
def test_interrupts_at_any_time_leave_the_client_whole(node: Node) -> None:
    class Alarm(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, interrupt)
    came = 0
    try:
        with Client([node.address]) as client:
            for number in range(4000):
                try:
                    try:
                        signal.setitimer(signal.ITIMER_REAL, 0.00002 + number % 100 * 0.000005)
                        client.get(b"k")
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except Alarm:
                    came += 1
            call = Call(client.get, b"k")
            call.join(SECONDS)
            assert not call.is_alive()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert came


class Call(threading.Thread):
    """A call in a thread of its own, and what came of it."""

    def __init__(self, call: Any, *given: Any) -> None:
        super().__init__(daemon=True)
        self.error: BaseException | None = None
        self._call = call, given
        self.start()

    def run(self) -> None:
        call, given = self._call
        try:
            call(*given)
        except BaseException as error:
            self.error = error

    def kind(self) -> type[BaseException | None]:
        self.join(SECONDS)
        assert not self.is_alive()
        return type(self.error)


def test_a_watch_may_be_closed_by_another_thread(node: Node) -> None:
    with Client([node.address]) as client:
        events = client.watch(b"k")
        waits = Call(list, events)
        wait_until(lambda: node.count("Watch") == 1)
        events.close()
        assert waits.kind() is type(None)
        assert list(events) == []
        events.close()


def interrupt() -> None:
    """Ctrl-C."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no thread can be sent a signal")
def test_an_interrupted_watch_goes_on(node: Node) -> None:
    def watched() -> None:
        wait_until(lambda: node.count("Watch") == 1)
        interrupt()

    with Client([node.address]) as client:
        events = client.watch(b"k", start_revision=2)
        call = Call(watched)
        with pytest.raises(KeyboardInterrupt):
            next(events)
        assert call.kind() is type(None)
        client.put(b"k", b"v")
        assert next(events).kv.value == b"v"
        assert node.count("Watch") == 1


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no thread can be sent a signal")
def test_an_interrupted_close_can_be_repeated(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, released = threading.Event(), threading.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            interrupt()
            await asyncio.to_thread(released.wait, SECONDS)

    monkeypatch.setattr(sync, "CLOSING", 0.01)
    client = Client([node.address])
    call = Call(client._thread.run, work())
    assert begun.wait(SECONDS)
    with pytest.raises(KeyboardInterrupt):
        client.close()
    assert client._thread._thread.is_alive()
    released.set()
    client.close()
    assert not client._thread._thread.is_alive()
    assert call.kind() is errors.UnknownOutcome


def test_close_ends_what_waits_in_other_threads(node: Node) -> None:
    client = Client([node.address])
    client.put(b"k", b"v")
    rows = client.scan()
    next(rows)
    events = Call(next, client.watch(b"k"))
    wait_until(lambda: node.count("Watch") == 1)
    with node.store.lock:  # nothing is answered
        calls = [Call(client.put, b"k", b"w"), Call(client.get, b"k")]
        wait_until(lambda: node.count("Put") == 2 and node.count("Get") == 1)
        client.close()
        assert [call.kind() for call in calls] == [errors.UnknownOutcome, errors.ClientClosed]
    assert events.kind() is errors.ClientClosed
    client.close()
    with pytest.raises(errors.ClientClosed, match="make another"):
        client.get(b"k")
    with pytest.raises(errors.ClientClosed):
        next(client.scan())
    rows.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_hears_that_the_client_is_not_its_own(node: Node) -> None:
    """In a process without the node, whose grpcio begins threads in a child, which crash now and then."""
    script = """
import os, sys, warnings
from nebuladb import errors
from nebuladb.client import Client
warnings.simplefilter("ignore")
with Client([sys.argv[1]]) as client:
    client.put(b"k", b"v")
    rows, events = client.scan(), client.watch(b"k", start_revision=1)
    next(rows), next(events)
    child = os.fork()
    if not child:
        code = 1
        try:
            client.get(b"k")
        except errors.ClientClosed as error:
            code = 0 if "fork" in error.message else 2
        finally:
            rows.close()
            events.close()
            client.close()
            os._exit(code)
    print(os.waitpid(child, 0)[1], client.get(b"k").value)
"""
    assert _run(script, node)[:2] == (0, "0 b'v'\n")

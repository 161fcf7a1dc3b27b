"""Mutated octets against the HTTP/2 connection: ``python -m tests.fuzz.rpc --inputs 1000000 --seed 1``.

Whatever comes in, nothing is raised, the invariants hold, memory and output keep to their bounds, and the same octets
mean the same however they are cut.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from nebuladb.rpc.http2 import Connection, ConnectionEnded, ErrorCode, Event, Limits, Stream
from nebuladb.rpc.http2 import frames as wire
from nebuladb.rpc.http2.core import Core
from nebuladb.rpc.http2.decoder import CACHED_BLOCKS, CACHED_OCTETS
from nebuladb.rpc.http2.events import DataReceived, HeadersReceived
from tests.fuzz.conversations import FUZZ_LIMITS, client_says, mutate, server_says
from tests.unit.rpc.http2.ends import REQUEST, RESPONSE, TRAILERS, Told, meaning

CORPUS: Final = 400
"""Conversations of each side that are made once, and mutated."""
CLIENT_CALLS: Final = 6
"""Calls that a client has under way when the octets come."""
OWN_OUTPUT: Final = 6000
"""Octets that an owner makes us write for each event, at most."""
WIDE_LIMITS: Final = replace(FUZZ_LIMITS, connection_window=8 << 20)
"""No input fills this window, so that it doesn't matter when it is given back."""
ONE_BY_ONE: Final = 1000
"""Longer inputs are not fed octet by octet, for the time it takes."""
SHOWN: Final = 500
"""Characters of a violation."""
SLOW_SECONDS: Final = 1.0
"""An input that takes longer is reported: a loop."""


class Violation(Exception):
    """What must not happen."""


def fresh(*, client: bool, limits: Limits = FUZZ_LIMITS) -> Connection:
    """A connection as the octets find it."""
    connection = Connection(client=client, limits=limits)
    if client:
        connection.whole_responses = True
        for _ in range(CLIENT_CALLS):
            connection.call(REQUEST, b"hello")
    connection.take()
    return connection


def own(connection: Connection, event: Event, answer: bytes) -> None:
    """An owner that consumes all and answers every request at once."""
    if isinstance(event, DataReceived):
        connection.consumed(event.stream, len(event.data))
    ended = isinstance(event, DataReceived | HeadersReceived) and event.ended
    stream: Stream | None = getattr(event, "stream", None)
    if ended and stream is not None and not connection.client and not stream.answered:
        connection.respond(stream, RESPONSE, answer, TRAILERS)


def check_bounds(connection: Connection) -> None:
    """What a peer can grow, against its bounds."""
    limits = connection.limits
    decoder = connection._decoder
    held = {
        "streams": (len(connection.streams), max(limits.concurrent_streams, CLIENT_CALLS)),
        "rest": (len(connection._rest), limits.frame_size + wire.HEAD_SIZE),
        "fragment": (len(connection._fragment.block) if connection._fragment else 0, limits.frame_size),
        "waiting": (connection.waiting, limits.waiting_bytes),
        "unread": (connection._unread, connection._connection_window),
        "resets": (len(connection._resets), limits.remembered_resets),
        "answers": (connection._answers, limits.answers + 1),
        "known": (len(decoder.known) + len(decoder._known_old), 2 * CACHED_BLOCKS),
        "lists": (len(decoder._lists) + len(decoder._lists_old), 2 * CACHED_BLOCKS),
        "list octets": (sum(block.size for block in decoder._lists.values()), CACHED_OCTETS),
        "table": (decoder._table._current_size, max(limits.header_table, 4096)),
    }
    over = {name: pair for name, pair in held.items() if pair[0] > pair[1]}
    if over:
        raise Violation(f"over bounds: {over}")


def feed(connection: Connection, pieces: list[bytes], answer: bytes) -> list[Event]:
    """What the owner is told, with all checks after each piece."""
    told: list[Event] = []
    for number, piece in enumerate(pieces):
        events = connection.receive(piece, number / 100)
        for event in events:
            own(connection, event, answer)
        connection.check()
        check_bounds(connection)
        output = connection.take()
        if len(output) > 64 * FUZZ_LIMITS.answers + OWN_OUTPUT * (len(events) + 1) + FUZZ_LIMITS.waiting_bytes:
            raise Violation(f"{len(output)} octets of output for {len(events)} events")
        told += events
    if connection.closed and connection.receive(b"\0" * 20, 0.0):
        raise Violation("events after the end")
    return told


def only_listen(connection: Connection, pieces: list[bytes]) -> list[Told]:
    """What an owner is told that does nothing about it, so that how the octets are cut changes nothing for the peer."""
    told: list[Event] = []
    for piece in pieces:
        told += connection.receive(piece, 0.0)
    connection.check()
    return meaning(told)


def cut(rng: random.Random, octets: bytes) -> list[bytes]:
    """The octets in a few pieces, or many."""
    if len(octets) < ONE_BY_ONE and rng.random() < 0.1:
        return [octets[at : at + 1] for at in range(len(octets))]
    marks = sorted({rng.randrange(len(octets) + 1) for _ in range(rng.randrange(1, 8))})
    return [octets[start:end] for start, end in zip([0, *marks], [*marks, len(octets)], strict=True)]


def run_one(rng: random.Random, octets: bytes, *, client: bool, tally: Counter[str]) -> None:
    """One input: with an owner who acts; whole and cut with one who doesn't.

    Raises:
        Violation: one of the promises is broken. Anything else that comes out is one as well.
    """
    answer = b"a" * rng.choice((1, 100, 5000))
    told = feed(fresh(client=client), cut(rng, octets), answer)
    once = only_listen(fresh(client=client, limits=WIDE_LIMITS), [octets])
    split = only_listen(fresh(client=client, limits=WIDE_LIMITS), cut(rng, octets))
    if once != split:
        raise Violation(f"cut it means something else: {str(once)[:SHOWN]} / {str(split)[:SHOWN]}")
    tally["events"] += len(told)
    if told and isinstance(told[-1], ConnectionEnded):
        tally[ErrorCode(told[-1].code).name.lower()] += 1
    else:
        tally["survived"] += 1


def campaign(inputs: int, seed: int) -> tuple[Counter[str], str]:
    """Run them; what came out, and the violation if there was one."""
    rng = random.Random(seed)
    says: tuple[Callable[[random.Random], bytes], ...] = (client_says, server_says)
    corpus = [[one(rng) for _ in range(min(CORPUS, inputs))] for one in says]
    tally: Counter[str] = Counter()
    for number in range(inputs):
        client = rng.random() < 0.4
        pool = corpus[client]
        octets = mutate(rng, rng.choice(pool), rng.choice(pool))
        began = time.perf_counter()
        try:
            run_one(rng, octets, client=client, tally=tally)
        except Exception as error:  # whatever it is, it is what this looks for
            return tally, f"input={number} client={client} {type(error).__name__}: {error}"
        if time.perf_counter() - began > SLOW_SECONDS:
            tally["slow"] += 1
        tally["inputs"] += 1
    return tally, ""


def forget_to_subtract(self: Core, stream: Stream) -> None:
    """The broken variant: what waited of a stream that was reset still counts."""
    stream.waiting = 0
    stream.queue = None
    self._sendable.pop(stream.id, None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--self-test", action="store_true", help="a broken variant must be caught")
    options = parser.parse_args()
    if options.self_test:
        Core._drop_waiting = forget_to_subtract  # type: ignore[method-assign]
    tally, violation = campaign(options.inputs, options.seed)
    if violation:
        print(violation, file=sys.stderr)
    print(" ".join(f"{key}={tally[key]}" for key in sorted(tally)), f"violations={int(bool(violation))}")
    return int(bool(violation) != options.self_test)


if __name__ == "__main__":
    sys.exit(main())

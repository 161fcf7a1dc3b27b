"""Random logs: entries of commands that hit each other."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from nebuladb.kv.answer import Answer
from nebuladb.kv.command import Command, Kind, Work
from nebuladb.pb.nebula.v1 import kv_pb2
from tests.unit.kv import helpers
from tests.unit.kv.model import Model

KEYS = [b"a", b"b", b"b\0", b"c", b"ca", b"\0", b"\xff"]
ENDS = [b"", b"", b"\0", b"b", b"c", b"\xff\xff"]

key = st.sampled_from(KEYS)
end = st.sampled_from(ENDS)
value = st.sampled_from([b"", b"1", b"2", b"x" * 40])
lease = st.sampled_from([0, 0, 0, 1, 1, 2, 3, -1, -2, -(1 << 63), (1 << 63) - 1])
flag = st.booleans()
revision = st.integers(-1, 24)
NO_SESSION = (None, 0, 0)

compare = st.builds(
    kv_pb2.Compare,
    result=st.integers(0, 3),
    target=st.integers(0, 4),
    key=key,
    range_end=end,
    number=st.integers(0, 6),
    value=value,
)
ranged = st.builds(
    lambda key, end, limit, order, filters, flags: kv_pb2.Operation(
        range=kv_pb2.RangeRequest(
            key=key, range_end=end, limit=limit, order=order[0], target=order[1], **filters, **flags
        )
    ),
    key,
    end,
    st.integers(-1, 3),
    st.one_of(st.just((0, 0)), st.tuples(st.integers(0, 2), st.integers(0, 4))),
    st.one_of(
        st.just({}),
        st.dictionaries(
            st.sampled_from(["min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"]),
            st.integers(-1, 20),
            max_size=2,
        ),
    ),
    st.fixed_dictionaries(
        {
            "revision": st.one_of(st.just(0), st.just(0), revision),
            "keys_only": flag,
            "count_only": st.sampled_from([False, False, True]),
        }
    ),
)
ignoring = st.sampled_from([(False, False)] * 3 + [(True, False), (False, True), (True, True)])


def kept(fields: dict[str, Any], ignore: tuple[bool, bool]) -> dict[str, Any]:
    """A put's fields, without those that it says to ignore."""
    value, lease = ignore
    fields = {**fields, **({"value": b""} if value else {}), **({"lease": 0} if lease else {})}
    return {**fields, "ignore_value": value, "ignore_lease": lease}


put_fields = st.builds(
    kept, st.fixed_dictionaries({"key": key, "value": value, "lease": lease, "prev_kv": flag}), ignoring
)
operation = st.one_of(
    ranged,
    put_fields.map(lambda fields: kv_pb2.Operation(put=kv_pb2.TxnPut(**fields))),
    st.builds(
        lambda *a: kv_pb2.Operation(delete=kv_pb2.TxnDelete(key=a[0], range_end=a[1], prev_kv=a[2])), key, end, flag
    ),
)


def nest(inner: st.SearchStrategy[kv_pb2.Operation]) -> st.SearchStrategy[kv_pb2.Operation]:
    """Transactions of such operations, as operations."""
    return st.builds(
        lambda *a: kv_pb2.Operation(txn=kv_pb2.NestedTxn(compare=a[0], success=a[1], failure=a[2])),
        st.lists(compare, max_size=1),
        st.lists(inner, max_size=2),
        st.lists(inner, max_size=2),
    )


nested = st.one_of(nest(operation), nest(st.one_of(operation, nest(operation))))
operation = st.one_of(operation, operation, operation, nested)
txn = st.builds(
    kv_pb2.TxnRequest,
    compare=st.lists(compare, max_size=2),
    success=st.lists(operation, max_size=3),
    failure=st.lists(operation, max_size=3),
)
reading = st.builds(
    kv_pb2.TxnRequest,
    compare=st.lists(compare, max_size=2),
    success=st.lists(st.one_of(ranged, nest(ranged)), max_size=3),
    failure=st.lists(ranged, max_size=2),
)
"""Transactions that write nothing."""
header = st.fixed_dictionaries(
    {"epoch": st.sampled_from([0, 0, 0, 1, 2])},
)
number = st.integers(1, 6)
START: list[Any] = [
    ("open",),
    (helpers.grant(1, 3), {}, NO_SESSION),
    *[(helpers.put(k, k), {}, NO_SESSION) for k in KEYS],
]
"""The first entry of every program, so that there is something to hit."""
session = st.tuples(st.sampled_from([None, None, None, None, 0, 0, 1, 3]), number, st.integers(0, 4))
"""Which of the sessions opened so far, sequence, lowest."""

keyed = st.one_of(
    *[st.builds(lambda k, v, le, p: helpers.put(k, v, le, prev_kv=p), key, value, lease, flag)] * 5,
    put_fields.map(lambda fields: Command(Kind.PUT, kv_pb2.PutRequest(**fields).SerializeToString())),
    st.builds(lambda k, e, p: helpers.delete(k, e, prev_kv=p), key, end, flag),
    *[st.builds(helpers.delete, key)] * 2,
    st.builds(helpers.delete, key, end),
    *[st.builds(helpers.txn, txn)] * 2,
    st.builds(helpers.compact, revision),
    st.builds(lambda i, t, c: helpers.grant(i, t, chosen=c), lease, st.integers(-1, 5), lease),
    st.builds(helpers.revoke, lease),
    st.builds(helpers.keep_alive, lease),
)
command = st.one_of(
    *[st.tuples(keyed, header, session)] * 6,
    st.tuples(st.just("open")),
    st.tuples(st.just("close"), st.integers(0, 3)),
    st.tuples(st.just("compact"), st.integers(-1, 4)),
    st.tuples(st.just("expire"), lease, st.sampled_from([0, 0, 0, 1])),
)
program = st.lists(
    st.tuples(st.lists(command, min_size=0, max_size=8), st.sampled_from([0, 0, 1000, 3000])), min_size=3, max_size=14
).map(lambda entries: [(START, 0), *entries])
"""Entries: commands, and by how much the leader's lease clock has moved."""


def build(entries: list[Any], model: Model) -> tuple[list[Work], list[tuple[int, Answer]]]:
    """The log of a program, and what the model, which has then applied it, answers."""
    log, works, answers = helpers.Log(), [], []
    opened: list[int] = []
    clock = 0
    for specs, step in entries:
        clock += step
        commands: list[Command] = []
        for spec in specs:
            if spec[0] == "open":
                opened.append((log.index + 1) * 65536 + len(commands))
                commands.append(helpers.open_session())
            elif spec[0] == "close":
                commands.append(helpers.close_session(opened[spec[1] % len(opened)] if opened else 5))
            elif spec[0] == "compact":
                commands.append(helpers.compact(model.revision - spec[1]))
            elif spec[0] == "expire":
                row = model.leases.get(spec[1])
                commands.append(helpers.expire(spec[1], (row.renewal if row else 1) - spec[2]))
            else:
                one, fields, (which, sequence, lowest) = spec
                one = one._replace(**fields)
                if which is not None:
                    name = opened[-1 - which % len(opened)] if opened else 5
                    one = one._replace(session=name, sequence=sequence, lowest=lowest)
                commands.append(one)
        work = log.work(*commands, clock=clock)
        works.append(work)
        answers += model.apply(work)
    return works, answers


def with_hash(works: list[Work]) -> list[Work]:
    """The log with one more entry that asks for the hash."""
    index = works[-1].index + 1
    return [*works, Work(index, 1, 0, [Command(Kind.HASH, b"")])]

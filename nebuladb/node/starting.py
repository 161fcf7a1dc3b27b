"""What a replica starts from: its log, its registry row and its data, and what is to be said if one of them is gone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nebuladb.env import probe
from nebuladb.errors import Corruption, IdentityError
from nebuladb.ids import Generation, GroupId, NodeId
from nebuladb.kv.cache import RecordShare
from nebuladb.kv.rows import Keys
from nebuladb.kv.state import State
from nebuladb.kv.store import Store
from nebuladb.node.registry import GroupState, RegistryRow
from nebuladb.node.replica import Start
from nebuladb.raft import Configuration
from nebuladb.storage.engine import Engine, Reader
from nebuladb.storage.log import LogStore
from nebuladb.storage.log_reader import GroupLog
from nebuladb.storage.memory import MemoryEngine

Leases = Sequence[tuple[int, int, int]]
"""(lease, expires, renewal)"""


def check_home(rows: Iterable[RegistryRow], node: int) -> None:
    """Raise `IdentityError` if a registry row's replica is on another node than `node`, which is this one: replicas
    never move, so the log and its votes are that node's (S14, S16). One that left its group isn't listed in its row."""
    for row in rows:
        home = dict(row.nodes).get(row.replica, node)
        if home != node:
            raise IdentityError(
                f"raft/ is of node {home:016x}, and this is {node:016x}, as identity.json says: directories were "
                "interchanged. Put raft/ and data/ back beside the identity.json that they belong to; else replace "
                "this member: `nebula-cli member replace`"
            )


def only_copies(log: LogStore) -> list[int]:
    """Groups of which no other node that votes has the data, nor their logs all of it: nobody would send it again."""
    rows = {group: RegistryRow.decode(row) for group, row in log.registry().items()}
    normal = {group: row for group, row in rows.items() if row.state == GroupState.NORMAL}
    alone = [group for group, row in normal.items() if not row.configuration.votes_beside(row.replica)]
    return [group for group in alone if group in log.groups() and log.reader(group).start() != rows[group].initial]


def cure_of(row: RegistryRow) -> str:
    """What an operator is told of a replica without data."""
    if row.configuration.votes_beside(row.replica):
        return "it waits for a snapshot from its leader"
    if len(row.nodes) > 1:
        return "no other node that votes has it: `nebulad recover` one that doesn't vote, or restore a backup"
    return "no other node has it: restore a backup"


def open_replica(
    group: int, row: RegistryRow, log: LogStore, data: Engine, node: int, records: RecordShare
) -> tuple[Start, Store]:
    """The start of `row`'s replica, and its store. Without data behind the log the start is `lost`, and the store
    empty, in memory: the node gets a snapshot instead (S5, S15)."""
    name = GroupId(group)
    reader = log.reader(name)
    found = None
    if row.state != GroupState.INSTALLING:
        try:
            found = _open_store(name, row, reader, data, node, records)
        except Corruption:
            probe("data damaged at the start")
    store, leases = found or (_stand_in(name, reader, row, node), ())
    # The configuration stands with the data and in the registry; the one of the higher index holds (S4, S30).
    newer = found is not None and store.index >= row.configuration_index
    start = Start(
        group=group,
        replica=row.replica,
        generation=row.generation,
        nodes=dict(row.nodes),
        configuration=Configuration.decode(store.configuration) if newer else row.configuration,
        configuration_index=store.index if newer else row.configuration_index,
        hard_state=log.hard_state(name),
        log=reader,
        applied=store.index,
        durably_applied=store.index,
        clock=store.clock,
        leases=leases,
        partial=store.partial,
        lost=found is None,
    )
    return start, store


def _open_store(
    group: GroupId, row: RegistryRow, log: GroupLog, data: Engine, node: int, records: RecordShare
) -> tuple[Store, Leases] | None:
    """The store that the log can go on from, and its leases; None: there is none (any more). Raises `Corruption`."""
    generation = Generation(row.generation)
    if not Store.exists(data, group, generation):
        # The first rows of the data are written without WAL, after the registry row: a crash may have lost them, and
        # they are the same on every replica. Later data can't be made up.
        if log.start() != row.initial:
            probe("data lost")
            return None
        index, term = row.initial
        # Perhaps of a later index; it is not in force before the entry that brings it is applied again, and until then
        # the replica neither campaigns nor leads (S4).
        configuration = row.configuration.encode()
        Store.initialise(data, group, generation, index=index, term=term, configuration=configuration)
    read_state(data, group, generation)
    store = Store(data, group, generation, NodeId(node), records=records)
    if store.index < log.start()[0]:
        probe("data older than the log")
        store.close()
        return None
    return store, [(lease.id, lease.expires, lease.renewal) for lease in store.leases()]


def read_state(reader: Reader, group: GroupId, generation: Generation) -> State | None:
    """What a shard's data says of itself; None: there is none. Raises `Corruption`, also where only the configuration
    can't be read, which ``kv`` leaves to others."""
    data = reader.get(Keys(group, generation).state)
    if data is None:
        return None
    state = State.decode(data)
    Configuration.decode(state.configuration)
    return state


def _stand_in(group: GroupId, log: GroupLog, row: RegistryRow, node: int) -> Store:
    """An empty store at the log's start, which nobody is served from (`Replica.serves_from`)."""
    engine, (index, term), generation = MemoryEngine(wal=False), log.start(), Generation(row.generation)
    Store.initialise(engine, group, generation, index=index, term=term, configuration=row.configuration.encode())
    return Store(engine, group, generation, NodeId(node))

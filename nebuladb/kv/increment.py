"""A shard's state as what changed since a revision, for a backup on top of an earlier one.

The history above the revision, whole, and everything small: leases, sessions, the state. A newest record is the last of
its key's changes, so it isn't sent. It takes a floor at or below the revision: above it, deletion may have taken away
a tombstone, and a key would come back to life.
"""

from __future__ import annotations

from nebuladb.errors import Unavailable
from nebuladb.ids import Generation, GroupId
from nebuladb.kv.export import Exporter
from nebuladb.kv.rows import ATTACHMENT, KEY_AT, RECORD, ROW_HEAD_SIZE, SESSION, STATE, Keys, decode_row
from nebuladb.storage.engine import PUT, Batch, Engine


class IncrementExporter(Exporter):
    """See the module; otherwise as `Exporter`. Raises `Unavailable` where the floor is above `after`."""

    def __init__(self, engine: Engine, group: GroupId, generation: Generation, after: int) -> None:
        keys = Keys(group, generation)
        prefix = keys.state[: KEY_AT - 1]
        super().__init__(
            engine,
            group,
            generation,
            [
                (prefix + STATE, prefix + bytes((STATE[0] + 1,))),
                (prefix + ATTACHMENT, prefix + bytes((keys.lease[-1] + 1,))),
                (keys.record_key(after + 1, 0), prefix + bytes((RECORD[0] + 1,))),
                (prefix + SESSION, prefix + b"\xff"),
            ],
        )
        if self.head.floor > after:
            self.close()
            raise Unavailable(f"history up to revision {self.head.floor} is compacted")


class IncrementTarget:
    """What an `Importer` writes an increment through: an engine that holds the state at the revision before."""

    def __init__(self, engine: Engine, group: GroupId, generation: Generation) -> None:
        self._engine = engine
        self._keys = keys = Keys(group, generation)
        prefix = keys.state[: KEY_AT - 1]
        batch = Batch()
        batch.delete(keys.state)  # half an import is never seen
        batch.delete_range(keys.attachment, prefix + bytes((keys.lease[-1] + 1,)))
        batch.delete_range(keys.session, prefix + b"\xff")
        engine.write(batch)

    def write(self, batch: Batch) -> None:
        """As `Engine.write`: each change brings its key's newest record with it."""
        both = Batch()
        for kind, row, value in batch.operations:
            if kind == PUT:
                both.put(row, value)
                if row.startswith(self._keys.record):
                    key, _ = decode_row(value)
                    both.put(self._keys.current + key, value[ROW_HEAD_SIZE + len(key) :])
        self._engine.write(both)

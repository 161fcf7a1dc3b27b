"""The meta group's rows without a group."""

from __future__ import annotations

from nebuladb.kv.answer import KeyValue
from nebuladb.node.keyspaces import Spec, create_step
from nebuladb.node.meta import Meta, founding_request
from nebuladb.pb.nebula.v1 import kv_pb2
from tests.unit.node.trio import Trio


class Rows:
    """The meta group's rows, and transactions on them: the plainest model."""

    def __init__(self) -> None:
        self.rows: dict[bytes, tuple[int, bytes]] = {}
        self.revision = 1
        self.run(founding_request(Trio().founding))

    @property
    def meta(self) -> Meta:
        return Meta(KeyValue(key, mod, mod, 1, 0, value) for key, (mod, value) in sorted(self.rows.items()))

    def run(self, transaction: bytes) -> bool:
        request = kv_pb2.TxnRequest.FromString(transaction)
        if any(self.rows.get(compare.key, (0,))[0] != compare.number for compare in request.compare):
            return False
        self.revision += 1
        assert len(request.success) <= 128
        for operation in request.success:
            if operation.WhichOneof("operation") == "put":
                self.rows[operation.put.key] = self.revision, operation.put.value
            else:
                self.rows.pop(operation.delete.key, None)
        return True

    def create(self, spec: Spec) -> int:
        count = 0
        while (step := create_step(self.meta, spec)) is not None:
            assert self.run(step)
            count += 1
        return count

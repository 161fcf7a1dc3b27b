"""Requests of every shape, drawn: what `Explorer` asks."""

from __future__ import annotations

from random import Random
from typing import Final

from nebuladb.pb.nebula.v1 import kv_pb2

KEYS: Final = 6
LOW: Final = b"any/"
HIGH: Final = b"any0"
DEEP: Final = 3
"""How deep transactions are nested."""
FAR: Final = 12
"""Revisions around the newest, of which most are told apart."""

Txn = kv_pb2.TxnRequest | kv_pb2.NestedTxn


class Shapes:
    """Draws from `rng`. `revision` is about the newest, `lease` perhaps one that lives: set both before a request."""

    def __init__(self, rng: Random) -> None:
        self.revision = 1
        self.lease = 0
        self._rng = rng

    def key(self) -> bytes:
        """One of the keys."""
        return LOW + b"%d" % self._rng.randrange(KEYS)

    def txn(self, *, writes: bool = True) -> kv_pb2.TxnRequest:
        """A transaction, of which one in some writes a key twice, and is refused."""
        request = kv_pb2.TxnRequest()
        self._fill(request, 0, writes)
        return request

    def _fill(self, txn: Txn, depth: int, writes: bool) -> None:
        rng = self._rng
        for _ in range(rng.randrange(3)):
            self._compare(txn.compare.add())
        for branch in (txn.success, txn.failure):
            for number in range(rng.randrange(4)):
                draw = rng.random()
                # Each level has keys of its own, mostly.
                key = self.key() if rng.random() < 0.1 else LOW + b"%d" % ((number + 2 * depth) % KEYS)
                if draw < 0.2 and depth < DEEP:
                    nested = branch.add().txn
                    nested.SetInParent()  # it may stay empty, and is an operation all the same
                    self._fill(nested, depth + 1, writes)
                elif draw < 0.55 or not writes:
                    branch.add(range=self.range())
                elif draw < 0.9:
                    branch.add(put=self.put(key))
                else:
                    branch.add(
                        delete=kv_pb2.TxnDelete(key=key, range_end=rng.choice((b"", b"", HIGH)), prev_kv=draw < 0.95)
                    )

    def _compare(self, compare: kv_pb2.Compare) -> None:
        rng = self._rng
        compare.key, compare.result = self.key(), rng.choice(kv_pb2.Compare.Result.values())
        compare.target = rng.choice(kv_pb2.Compare.Target.values())
        compare.range_end = HIGH if rng.random() < 0.3 else b""
        if compare.target == kv_pb2.Compare.VALUE:
            compare.value = b"%d" % rng.randrange(4)
        elif compare.target == kv_pb2.Compare.LEASE:
            compare.number = rng.choice((0, self.lease))
        elif compare.target == kv_pb2.Compare.VERSION:
            compare.number = rng.randrange(4)
        else:
            compare.number = self._near()

    def put(self, key: bytes) -> kv_pb2.TxnPut:
        """A put: now and then with a lease, or to keep value or lease."""
        rng = self._rng
        draw = rng.random()
        put = kv_pb2.TxnPut(
            key=key, prev_kv=rng.random() < 0.5, ignore_value=draw < 0.15, ignore_lease=0.1 < draw < 0.25
        )
        if not put.ignore_value:
            put.value = b"%d" % rng.randrange(4)
        if not put.ignore_lease and rng.random() < 0.3:
            put.lease = self.lease
        return put

    def range(self) -> kv_pb2.RangeRequest:
        """One key or all, perhaps sorted, filtered, cut short or of the past."""
        rng = self._rng
        asked = kv_pb2.RangeRequest(key=LOW, range_end=HIGH, limit=rng.randrange(4), keys_only=rng.random() < 0.2)
        if rng.random() < 0.2:
            asked.key, asked.range_end = self.key(), b""
        if rng.random() < 0.5:
            asked.order = rng.choice(kv_pb2.RangeRequest.Order.values())
            asked.target = rng.choice(kv_pb2.RangeRequest.Target.values())
        if rng.random() < 0.3:
            name = rng.choice(("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"))
            setattr(asked, name, self._near())
        if rng.random() < 0.15:
            asked.revision = self._near()
        asked.count_only = rng.random() < 0.1
        return asked

    def _near(self) -> int:
        """A revision near the newest, seldom above it."""
        return max(self.revision + 2 - self._rng.randrange(FAR), 1)

"""Random requests go to a real etcd and to ours; every answer and every error must be equal.

``values`` draws the small things (keys, ranges, revisions, leases) from a `World` that follows what the real etcd
answered; ``kv_ops``, ``txn_ops``, ``lease_ops``, ``watch_ops`` and ``upkeep_ops`` draw operations of them, each a
generator that yields the steps of ``calls`` and is sent the real etcd's answers. Operation i of a seed has a random
generator of its own, so any subset of a sequence can run again, and a failing one is made smaller by leaving operations
out (``shrink``).
``target`` speaks to one server; ``normal`` says what is made equal before the comparison, and nothing else is;
``run`` sends, compares, counts.

``python -m tests.etcd.diff --seed 7 --ops 5000``; ``--etcd-twice`` compares etcd with itself: the harness must find
nothing.
"""

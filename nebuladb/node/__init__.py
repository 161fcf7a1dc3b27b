"""One node: its replicas of all groups, and what connects them to disks, peers and clients.

`host.Host` steps every group and is pure; ``output`` is its boundary, and says what a pump owes it. `node.Node` adds
the log that Host's batches are written to, the stores that its slices are applied to, and this node's picture of the
meta group; it knows no event loop, so the daemon and the simulator drive the same object. `pump.Pump` is the daemon's
loop around it: it decides nothing and retries nothing between nodes.

What the caller owes a `Node`: one thread; a tick every 50 ms, after a gap one only and the input first (S12); a `turn`
after any input, and `Host.durable` once the log was synced behind a turn's batch. An error that any method raises ends
the node (S33), but for a request that is refused (`Unavailable`, `TooManyRequests`, `NotLeader`): that was not taken.

What it promises: a request that was taken is answered once, with its answer, with an error that says *failed* only if
the write is certainly in no log, or with *unknown* (S19). It won't wait, won't forward what was forwarded to it, and
won't run a peer's forward twice.
"""

"""The replicated state machine of one shard: MVCC with etcd's model, transactions, leases, sessions, watches.

`Store` applies commands in log order and answers reads. It is deterministic: no clock, no randomness, no iteration
order that can differ; what varies comes in with the command, chosen once by the leader. It is total: any bytes give
a deterministic answer, and only an unknown kind or version stops the replica (S22).

What the caller owes it: entries in order, each committed and durable in the log (S1); after an `apply` that raised
`WriteStalled` or returned `partial`, the same works again; one thread; and what `Applied` holds told to clients and
watches (``watch``) only after `apply` returned, for by then its batch is in the engine.

What it promises: the applied index, the configuration and everything the entries changed are in one batch, in one
column family (S6); every read names a published revision, and nothing under an unpublished one is visible, hashed or
watched (S23, S24); the work of one `apply` call is bounded by count and bytes, never by time; an entry larger than that
is continued by the next call, hidden until its last slice.

Rows, records and answers are described byte by byte in ``docs/formats.md``.
"""

"""Durable bytes: an ordered map in atomic batches (`Engine`), and the Raft log of all groups on top of one.

Two databases a node: ``raft/`` (`RocksEngine.open_log`, with a WAL, under a `LogStore`) and ``data/``
(`RocksEngine.open_data`, without: the log can replay it). What the caller owes:

1. Take the `DirectoryLock` before anything is opened, and keep it until everything is closed (S18).
2. Call `sync` and `flush` in threads, everything else from one thread; close only when those calls have returned.
3. After a write that raised `WriteStalled`, write the same batch again later (S32). After any other error of the
   log's engine stop the process: its WAL writer stays broken even when space comes back, and a second fsync may
   succeed without having written what the first could not (S33).
4. Exhaust or close every scan within the turn that began it; scan a `Snapshot` for anything longer (S24).
5. Send what a log batch promises only after a `sync` that began after its `write` (S3).

Raises only `StoreError` and its kin: `WriteStalled`, `DiskFull`, `Corruption`; `IdentityError` for a directory in use,
`ConfigurationError` for one that is another user's (``owner``); `InvariantViolation` for a caller's bug. It won't
retry, doesn't know what a registry row means, decides nothing about when to sync, flush or cut, and starts no thread.
"""

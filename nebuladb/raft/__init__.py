"""Raft, as a pure state machine for one group (Ongaro and Ousterhout 2014, "the paper"; Ongaro's thesis).

`Raft` takes messages, ticks, proposals and completions in, and hands out what must be persisted, what may be sent and
when, and what is committed, as data (`Ready`). It does no I/O, knows no clock, no thread and no group id; randomness
comes in. One call changes one replica's state and returns at once.

What the caller owes it (and what breaks otherwise):

1. After any calls, take `ready()`, which has all there is: asked again with nothing in between, it has None. Persist
   `hard_state`, the truncation that `entries[0].index` implies, and `entries`, in one atomic batch, in the order of the
   Readys. (Else a vote can outlive the log that it was granted for.)
2. Send `messages` at once if you like; send `held` only once that batch **and every earlier one** is durable. Losing,
   repeating or reordering messages is harmless; sending a held one early is not (S3).
3. When a batch is durable, pass its `mark` to `durable()`; marks in the order of their batches. A mark says what the
   batch made durable and in which term it was accepted, so a late one can't acknowledge what was overwritten (S2).
4. Apply what `committed_entries()` returns, in order, and report with `applied_to()`. Those entries are committed and
   durable here (S1).
5. Call `tick()` once a tick (50 ms); after a gap drain the input first and tick once only (S12).
6. After a crash, build a new `Raft` from what was durable. Nothing else survives.
7. If any call raises `InvariantViolation`, stop the node.

It raises `NotLeader` or `TooManyRequests` for proposals that certainly were not appended. It won't retry a proposal,
order messages, or answer a client. Every read that it took ends in exactly one `ReadState`, a failed one included.
"""

from nebuladb.raft.configuration import Configuration
from nebuladb.raft.core import Raft
from nebuladb.raft.entry import CONFIGURATION, NORMAL, Entry, EntryKind
from nebuladb.raft.message import APPEND, REPLIES, Message, MessageType
from nebuladb.raft.ready import DurableMark, HardState, LogReader, ReadState, Ready
from nebuladb.raft.state import FOLLOWER, LEADER, Config, StateRole

__all__ = [
    "APPEND",
    "CONFIGURATION",
    "FOLLOWER",
    "LEADER",
    "NORMAL",
    "REPLIES",
    "Config",
    "Configuration",
    "DurableMark",
    "Entry",
    "EntryKind",
    "HardState",
    "LogReader",
    "Message",
    "MessageType",
    "Raft",
    "ReadState",
    "Ready",
    "StateRole",
]

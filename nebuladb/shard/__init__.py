"""Keyspaces, shard descriptors and routing, as pure values and functions.

A keyspace is a named set of keys with a partitioning; a shard owns a range of its keys (`range`, `single`) or of its
hash slots (`hash`), is replicated by the Raft group of the same id, and has an epoch that every change of its
descriptor raises. ``node.meta`` keeps these values in the meta group; requests name the epoch they were routed by.
Nothing here does I/O or decides anything by itself.
"""

from nebuladb.shard.balance import preferred
from nebuladb.shard.descriptor import Descriptor, Keyspace, KeyspaceState, Partitioning, Plan, Role, slot_of
from nebuladb.shard.layout import shard_of
from nebuladb.shard.routing import RoutingTable

__all__ = [
    "Descriptor",
    "Keyspace",
    "KeyspaceState",
    "Partitioning",
    "Plan",
    "Role",
    "RoutingTable",
    "preferred",
    "shard_of",
    "slot_of",
]

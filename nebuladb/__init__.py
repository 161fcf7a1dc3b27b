"""NebulaDB: a sharded, Raft-replicated key-value database server.

The packages form floors; imports point downwards only (``pyproject.toml`` holds that):
``cli > sim > server | client > api > node | rpc > shard | kv > storage > raft > pb > addresses >
errors | futures | ids | env``.
``docs/architecture.md`` walks through the house.
"""

__version__ = "0.1.0"

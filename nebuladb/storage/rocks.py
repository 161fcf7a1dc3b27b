"""RocksDB behind the `Engine` protocol."""

from rocksdict import Rdict

__all__ = ["Rdict"]

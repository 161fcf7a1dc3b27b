"""Which etcd this face says it is: numbers only, since clients compare them (etcd 61)."""

from __future__ import annotations

from typing import Final

VERSION: Final = "3.5.16"
"""The release whose behaviour it has; not NebulaDB's own version, which ``nebula.v1`` tells."""
CLUSTER_VERSION: Final = "3.5.0"

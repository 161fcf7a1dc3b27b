"""When a node that leaves a shard takes no more writes for it."""

from __future__ import annotations

from nebuladb.raft import Configuration
from nebuladb.shard import Descriptor, Role


def departs(shard: Descriptor, node: int, configuration: Configuration | None) -> bool:
    """Whether the replica on `node` is about to be removed. It might never hear what became of a write that it took
    now: that write would be *unknown* (S19).

    `configuration`: in force at that replica; None: it isn't there. A voter whose place another is to take serves until
    that one has caught up, which may take long: then a joint configuration says that it goes.
    """
    own = next((replica for replica, home in shard.replicas if home == node), 0)
    if not own or shard.role(own) is not Role.LEAVING:
        return False
    if configuration is None or configuration.outgoing or own not in configuration.voters:
        return True
    return all(role is not Role.JOINING for _, role in shard.roles)

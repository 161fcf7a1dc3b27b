"""Which node should lead which group: a pure function, so that all nodes want the same without talking about it.

Group ids of a keyspace follow each other, so rotating by id gives each node as many as any other, but for one. A group
has a home, and while that lives nothing else counts: a node's death moves the groups that it led and no other, and its
return moves those back.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence


def preferred(group: int, nodes: Sequence[int], live: Collection[int], dead: Collection[int]) -> int:
    """The node of `nodes` (ascending: where the group's replicas are) that should lead `group`; 0: leave it as it is.

    `live` and `dead` are those of which that is certain. A home that is neither has just gone or just come back, and
    whatever were done now might have to be undone. (A node that crashes and restarts every second would take
    leadership with it each time.)
    """
    if not nodes:
        return 0
    home = nodes[group % len(nodes)]
    if home in live:
        return home
    if home not in dead:
        return 0
    others = [node for node in nodes if node in live]
    # By the quotient: the dead node's groups differ by multiples of len(nodes), so by the id itself they might all
    # get the same successor.
    return others[group // len(nodes) % len(others)] if others else 0

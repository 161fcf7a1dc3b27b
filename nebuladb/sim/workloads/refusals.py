"""What an operator may never have, asked at each look that the steward takes at meta."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from nebuladb.errors import ChangeRefused, InvalidArgument
from nebuladb.node.identity import Founding
from nebuladb.node.members import add_step, claim_step, move_step, promote_step, remove_step, replace_step
from nebuladb.node.meta import Meta
from nebuladb.node.record import NodeRecord, NodeState
from nebuladb.sim.violation import Violation

FREE: Final = "elsewhere:2"
"""A peer address that no node has."""


def ask_wrongly(rng: Random, meta: Meta, founding: Founding) -> None:
    """One wish of those that no picture of meta allows. Raises `Violation` unless it is refused."""
    record = rng.choice([record for _, record in sorted(meta.nodes.items())])
    fresh = rng.getrandbits(63) | 1
    what, ask = rng.choice(_wishes(meta, founding, record, fresh))
    try:
        ask()
    except (ChangeRefused, InvalidArgument):
        return
    raise Violation(f"{what}, {record.name}, was not refused (S13, S14)")


def _wishes(
    meta: Meta, founding: Founding, record: NodeRecord, fresh: int
) -> list[tuple[str, Callable[[], bytes | None]]]:
    name, peer = record.name, record.peer_address
    wishes: list[tuple[str, Callable[[], bytes | None]]] = [
        ("a node of a name that is taken", lambda: add_step(meta, name, FREE, fresh)),
        ("a node at a peer address that is taken", lambda: add_step(meta, f"not-{name}", peer, fresh)),
        ("a node without a name", lambda: add_step(meta, "", FREE, fresh)),
        ("a node that nobody can reach", lambda: add_step(meta, f"not-{name}", "0.0.0.0:2", fresh)),
        ("a vote for a node that isn't there", lambda: promote_step(meta, f"not-{name}")),
        ("the end of a node that isn't there", lambda: remove_step(meta, founding, f"not-{name}", ())),
        ("a node in the place of itself", lambda: replace_step(meta, name, name, FREE, fresh)),
    ]
    if record.state is not NodeState.JOINING or record.claim:
        # Its data directory was emptied, and it starts with --join under its name: it forgot its votes.
        wishes.append(("its id for another data directory", lambda: claim_step(meta, name, peer, fresh, fresh)))
        wishes.append(("another address from outside", lambda: move_step(meta, record.node, FREE)))
    return wishes

"""Who belongs to the cluster: from the picture of meta to the next transaction, as pure functions (S14, S16, S17).

An operator's wish is one transaction on a node's record: *joining*, *leaving*. What follows is `Planner`'s steps, asked
for by the meta group's leader until there is none: replicas with fresh ids in descriptors for who joins, roles for who
leaves, then *member* or *removed*. What descriptors say, the groups' leaders make true (`node.surgeon`).

Each transaction compares the modification revisions of what it was planned from, as those of ``node.keyspaces`` do. So
no id is issued twice, no name is given twice, and a step from an old picture changes nothing; whoever dies in between
has lost nothing but time.
"""

from __future__ import annotations

from collections.abc import Collection
from string import ascii_lowercase
from typing import Final

from nebuladb.addresses import is_unspecified
from nebuladb.errors import ChangeRefused, ConfigurationError, InvalidArgument, Unavailable
from nebuladb.ids import META_GROUP
from nebuladb.kv.limits import MAX_TXN_OPERATIONS
from nebuladb.node.identity import Founding
from nebuladb.node.keyspaces import shard_key, transaction
from nebuladb.node.meta import GROUP_KEY, NODE_KEY, REPLICA_KEY, Meta, Removal, meta_shard
from nebuladb.node.record import MAX_MEMBERS, MAX_NODE_NAME, NODE_NAME, NodeRecord, NodeState
from nebuladb.shard import Descriptor, KeyspaceState, Role
from nebuladb.shard.membership import Standing, revision, wanted

STEP_GROUPS: Final = 32
"""Descriptors that one transaction changes."""


# --- what an operator wants


def add_step(meta: Meta, name: str, peer: str, node: int, *, learner: bool = False) -> bytes | None:
    """Issue id `node`, a fresh random one, to a new node; None: that was done before. Raises `ChangeRefused`."""
    _check_name(meta, name)
    known = find(meta, name)
    if known is not None:
        if known.state is NodeState.JOINING and (known.peer_address, known.learner) == (peer, learner):
            return None
        raise ChangeRefused(
            f"there is a node {name!r} ({known.state}, peer address {known.peer_address}); choose another name, or "
            f"remove it first: `nebula-cli member remove {name}`"
        )
    return _issue(meta, NodeRecord(node, name, peer, state=NodeState.JOINING, learner=learner))


def replace_step(meta: Meta, old: str, name: str, peer: str, node: int) -> bytes | None:
    """Issue id `node` to a node that shall take the place of `old` when it has started; None: that was done before."""
    replaced = _existing(meta, old)
    _check_name(meta, name)
    known = find(meta, name)
    if known is not None:
        theirs = known.state is NodeState.JOINING and known.replaces == replaced.node
        if theirs and known.peer_address == peer:
            return None
        if not theirs:
            raise ChangeRefused(
                f"there is a node {name!r} ({known.state}) already: the new node needs a name of its own, like "
                f"{_free_name(meta, old)}"
            )
    if replaced.state is NodeState.JOINING and not replaced.claim:
        raise ChangeRefused(f"node {old!r} was never started; remove it: `nebula-cli member remove {old}`")
    if replaced.state is not NodeState.LEAVING:
        _alone(meta, replaced)
    taken = next((one for one in meta.nodes.values() if one.replaces == replaced.node), None)
    if taken is not None:
        how, first = ("replace", "") if taken.claim else ("remove", " first")
        raise ChangeRefused(
            f"node {taken.name!r} replaces {old!r} already, at {taken.peer_address}; start it, or {how} it{first}: "
            f"`nebula-cli member {how} {taken.name}`"
        )
    return _issue(meta, NodeRecord(node, name, peer, state=NodeState.JOINING, replaces=replaced.node))


def promote_step(meta: Meta, name: str) -> bytes | None:
    """Let a node that was added as a learner vote; None: it may. Raises `ChangeRefused`."""
    record = _existing(meta, name)
    if record.state is NodeState.LEAVING:
        raise ChangeRefused(f"node {name!r} is leaving")
    return put_node(meta, record._replace(learner=False)) if record.learner else None


def move_step(meta: Meta, node: int, peer: str) -> bytes | None:
    """Another peer address for a node that hasn't started; None: it has it. Raises `ChangeRefused`."""
    record = meta.nodes.get(node)
    if record is None or record.state is not NodeState.JOINING or record.claim:
        raise ChangeRefused(f"node {meta.name(node)!r} has started, and says itself where it is reached")
    _check_peer(peer)
    if record.peer_address == peer:
        return None
    return transaction(_all_nodes(meta), {record.key: record._replace(peer_address=peer).encode()})


def remove_step(meta: Meta, founding: Founding, name: str, connected: Collection[int]) -> bytes | None:
    """Begin to remove a node; None: that was done before. `connected`: the nodes that are there, so that no majority is
    given away (S13). Raises `ChangeRefused`."""
    record = find(meta, name)
    if record is None and any(one.name == name for one in meta.removed.values()):
        return None
    record = _existing(meta, name)
    if record.state is NodeState.LEAVING:
        return None
    if record.state is NodeState.JOINING and not record.claim:
        return put_node(meta, record._replace(state=NodeState.REMOVED))
    staying = [one for one in meta.nodes.values() if one.node != record.node and one.state is NodeState.MEMBER]
    if not staying:
        raise ChangeRefused(f"node {name!r} is the last member; a cluster has at least one. To end it, stop the node")
    if record.state is NodeState.MEMBER:
        _alone(meta, record)
    for shard in descriptors(meta, founding):
        voters = [node for replica, node in shard.replicas if shard.role(replica) is Role.VOTER and node != record.node]
        dead = [node for node in voters if node not in connected]
        if voters and len(dead) * 2 >= len(voters):
            names = ", ".join(sorted(map(meta.name, dead)))
            raise ChangeRefused(
                f"without {name!r} no live majority would be left: {names} of {len(voters)} nodes not connected; "
                "start those first, or replace the one that is dead"
            )
    return transaction(_all_nodes(meta), {record.key: record._replace(state=NodeState.LEAVING).encode()})


# --- a node that starts with --join


def claim_step(meta: Meta, name: str, peer: str, claim: int, node: int) -> bytes | None:
    """Give the data directory that drew `claim` the id that was issued for `name`; None: it has it.

    If no id was, it gets the one of a node without a name at that peer address, which is called `name` then; else
    `name` is added, under id `node`, a fresh random one. A name that was added may come with another address than it
    was added with, but with no other node's. Raises `ChangeRefused`, or `Unavailable` if it has to wait.
    """
    _check_name(meta, name)
    record = find(meta, name) or _nameless(meta, peer)
    if record is None:
        return _issue(meta, NodeRecord(node, name, peer, state=NodeState.JOINING, claim=claim))
    if record.claim == claim:
        return None
    if record.claim or record.state is not NodeState.JOINING:
        raise ChangeRefused(
            f"node {name!r} (id {record.node:016x}) has joined with another data directory. A node that lost its data "
            f"must not return under its old identity, because it forgot its votes: restore the directory, or run "
            f"`nebula-cli member replace {name} NEWNAME --peer-address {peer}` and start that one"
        )
    claimed = record._replace(name=name, claim=claim, peer_address=peer)
    other = _occupant(meta, claimed)
    if other is not None and other != _nameless(meta, peer):  # a name goes before an address
        raise ChangeRefused(
            f"node {other.name!r} has the peer address {peer}; give node {name!r} its own: --advertise-peer-addr, or "
            "--peer-addr where that is not given"
        )
    as_added = (record.name, record.peer_address) == (name, peer)  # nobody else can have taken these
    compares = {record.key: meta.mod(record.key)} if as_added else _all_nodes(meta)
    changes: dict[bytes, bytes | None] = {record.key: claimed.encode()}
    old = meta.nodes.get(record.replaces)
    if old is not None and old.state is not NodeState.LEAVING:
        try:
            _alone(meta, old)
        except ChangeRefused as refused:
            raise Unavailable(refused.message) from refused
        compares |= _all_nodes(meta)
        changes[old.key] = old._replace(state=NodeState.LEAVING).encode()
    return transaction(compares, changes)


# --- what follows from it


class Planner:
    """Of the meta group's leader: what follows from nodes' states. It remembers what it has looked at, so that
    thousands of shards are not looked at again for each of them that changes."""

    def __init__(self, founding: Founding) -> None:
        self._founding = founding
        self._right: dict[int, tuple[Descriptor, list[Standing]]] = {}
        """Group → what was right the last time: a descriptor, for these nodes."""
        self._whole: Meta | None = None
        """A picture in which every group has a replica on every member."""

    def step(self, meta: Meta) -> bytes | None:
        """The next transaction; None: everything is on its way, or done."""
        orphans = [removal for node in meta.ordered if node not in meta.nodes for removal in meta.orders(node)]
        if orphans:
            # Nobody is left to carry them out: the node is removed as a whole.
            return transaction({}, dict.fromkeys(removal.key for removal in orphans[:MAX_TXN_OPERATIONS]))
        moving = sorted(one for one in meta.nodes.values() if one.state is NodeState.LEAVING or is_joining(one))
        if not (moving or self._lacking(meta)):
            self._right.clear()
            return None
        return self._replicas_step(meta) or _state_step(meta, self._founding, moving)

    def _lacking(self, meta: Meta) -> bool:
        """Whether a group has no replica on some member: an older build gave some to five of them only."""
        if meta is self._whole:
            return False
        members = sum(one.active for one in meta.nodes.values())
        if any(len(shard.replicas) < members for shard in descriptors(meta, self._founding)):
            return True
        self._whole = meta
        return False

    def _replicas_step(self, meta: Meta) -> bytes | None:
        """Descriptors that say something else than `wanted`, some of them, with ids for what is new."""
        compares: dict[bytes, int] = {}
        changes: dict[bytes, bytes | None] = {}
        issued = meta.next_replica
        active = [Standing(one.node, votes=not one.learner) for _, one in sorted(meta.nodes.items()) if one.active]
        for shard in descriptors(meta, self._founding):
            standings = _in_meta(meta, shard, active) if shard.group == META_GROUP else active
            if self._right.get(shard.group) == (shard, standings):
                continue
            change = revision(shard, wanted(shard, standings))
            if not change:
                self._right[shard.group] = shard, standings
                continue
            for replica, node, role in change.roles:
                shard = shard.with_role(replica, node, role)
            for node, role in change.added:
                shard = shard.with_role(issued, node, role)
                issued += 1
            key = shard_key(shard.group)
            compares[key], changes[key] = meta.mod(key), shard.encode()
            if len(changes) == STEP_GROUPS:
                break
        if not changes:
            return None
        compares |= {record.key: meta.mod(record.key) for record in meta.nodes.values()}
        if issued > meta.next_replica:
            compares[REPLICA_KEY], changes[REPLICA_KEY] = meta.mod(REPLICA_KEY), b"%d" % issued
        return transaction(compares, changes)


def is_joining(record: NodeRecord) -> bool:
    """Whether a node was started and isn't a member yet; a learner stays on that way until somebody promotes it."""
    return record.state is NodeState.JOINING and record.claim != 0


def _in_meta(meta: Meta, own: Descriptor, active: list[Standing]) -> list[Standing]:
    """Who may have a replica of the meta group. While one that votes lingers nobody new votes: who takes its place does
    so by one joint change, as in every group. With a vote before, it and the dead node that it replaces would be two of
    four, and if it died, too, the two that live no majority any more."""
    lingering = _lingering(meta, own)
    if any(one.votes for one in lingering):
        voting = {node for replica, node in own.replicas if own.role(replica) is Role.VOTER}
        active = [one._replace(votes=one.votes and one.node in voting) for one in active]
    return active + lingering


def _lingering(meta: Meta, own: Descriptor) -> list[Standing]:
    """Who leaves keeps its replica of the meta group until it has no other, and gets none: by meta it learns what to
    make and to destroy."""
    here = {node: own.role(replica) for replica, node in own.replicas}
    return [
        Standing(node, votes=here[node] is not Role.LEARNER)
        for node, one in sorted(meta.nodes.items())
        if one.state is NodeState.LEAVING and here.get(node, Role.LEAVING) is not Role.LEAVING and _holds(meta, node)
    ]


def _holds(meta: Meta, node: int) -> bool:
    """Whether a shard has a replica there, or may get one by a keyspace's plan: a replica that votes and that nobody
    ever makes, since its node doesn't hear of it, would leave a group of two without a leader for ever."""
    plans = (one.plan for one in meta.keyspaces.values() if one.plan and one.state is KeyspaceState.CREATING)
    return any(node in plan.nodes for plan in plans) or any(
        node == holder for shard in meta.shards.values() for _, holder in shard.replicas
    )


def _state_step(meta: Meta, founding: Founding, moving: list[NodeRecord]) -> bytes | None:
    """The first of `moving` that has come to the end of its way takes the last step."""
    if any(keyspace.state is KeyspaceState.CREATING for keyspace in meta.keyspaces.values()):
        return None  # its plan names nodes; what it makes of them is looked at first
    for record in moving:
        roles = [
            shard.role(replica)
            for shard in descriptors(meta, founding)
            for replica, node in shard.replicas
            if node == record.node
        ]
        if record.state is NodeState.LEAVING and not roles:
            return put_node(meta, record._replace(state=NodeState.REMOVED))
        if record.state is NodeState.JOINING and not record.learner and roles and Role.JOINING not in roles:
            # A keyspace whose plan this picture doesn't show yet has none on the new member.
            return put_node(meta, record._replace(state=NodeState.MEMBER, replaces=0), GROUP_KEY)
    return None


def report(meta: Meta, founding: Founding, found: Descriptor) -> bytes:
    """A group's leader says what has come true: `found` takes the descriptor's place, and each replica that isn't in it
    any more is to be destroyed where it is (S17). The meta group's own are not: without it their nodes are removed."""
    key = shard_key(found.group)
    changes: dict[bytes, bytes | None] = {key: found.encode()}
    before = next(shard for shard in descriptors(meta, founding) if shard.group == found.group)
    for replica, node in before.replicas:
        if replica not in dict(found.replicas) and found.group != META_GROUP:
            removal = Removal(found.group, replica, node)
            changes[removal.key] = removal.encode()
    return transaction({key: meta.mod(key)}, changes)


def descriptors(meta: Meta, founding: Founding) -> list[Descriptor]:
    """All groups', the meta group's first."""
    return [own_descriptor(meta, founding), *(shard for _, shard in sorted(meta.shards.items()))]


def own_descriptor(meta: Meta, founding: Founding) -> Descriptor:
    """The meta group's."""
    return meta.own or meta_shard(founding)


def find(meta: Meta, name: str) -> NodeRecord | None:
    """The node of this name that is no former one."""
    return next((record for record in meta.nodes.values() if record.name == name), None)


def _free_name(meta: Meta, old: str) -> str:
    """One that nobody has, for who takes the place of `old`."""
    names = (f"{old}{letter}" for letter in ascii_lowercase[1:])
    return next((name for name in names if find(meta, name) is None), f"{old}-2")


def unnamed(node: int) -> str:
    """What a node is called that was added by its address alone, until it starts under a name of its own."""
    return f"{node:016x}"


def _nameless(meta: Meta, peer: str) -> NodeRecord | None:
    """The node without a name that was added at this address and hasn't started."""
    for record in meta.nodes.values():
        if record.name == unnamed(record.node) and record.peer_address == peer and not record.claim:
            return record
    return None


def _existing(meta: Meta, name: str) -> NodeRecord:
    record = find(meta, name)
    if record is None:
        raise ChangeRefused(f"there is no node {name!r}; `nebula-cli member list` shows those there are")
    return record


def _check_name(meta: Meta, name: str) -> None:
    if not NODE_NAME.fullmatch(name):
        raise InvalidArgument(
            f"{name!r} is no node's name: up to {MAX_NODE_NAME} letters, digits, dots, dashes and underscores"
        )
    if not meta.version:
        raise Unavailable("this node does not know the cluster yet; try again")


def _check_peer(peer: str) -> None:
    """Refuse what `nebulad start` would."""
    try:
        why = "nobody can be sent there" if is_unspecified(peer) else ""
    except ConfigurationError as error:
        why = error.message
    if why:
        raise InvalidArgument(f"{peer!r} is no peer address: give HOST:PORT, as other nodes reach it ({why})")


def _alone(meta: Meta, record: NodeRecord) -> None:
    """One change at a time: of two that lose a node each, a group of three would not survive the first failure. A node
    that dies on its way may be replaced: whom it replaces leaves by the same change then."""
    if _waited_for(meta, record.node):
        return
    for other in sorted(meta.nodes.values()):
        if other.node not in (record.node, record.replaces) and (
            other.state is NodeState.LEAVING or (is_joining(other) and not other.learner)
        ):
            raise ChangeRefused(
                f"another change is under way: node {other.name!r} is {other.state}; wait until `nebula-cli member "
                f"list` shows that it has come to its end, or remove {other.name!r} if it is the one that is dead"
            )


def _all_nodes(meta: Meta) -> dict[bytes, int]:
    """What a step compares that takes a member away, or a name or an address that nobody has: all nodes, and that there
    is no other. With its own record alone, of two that were planned from one picture both came true: each left the
    other, and nobody stayed; or each got what the other got, and frames for the one went to the other."""
    return {key: meta.mod(key) for key in (NODE_KEY, *(record.key for record in meta.nodes.values()))}


def _waited_for(meta: Meta, node: int) -> bool:
    """Whether somebody can't leave before a replica on `node` votes: if that node is dead, it never will."""
    return any(
        Role.LEAVING in dict(shard.roles).values()
        and any(home == node and shard.role(replica) is Role.JOINING for replica, home in shard.replicas)
        for shard in meta.told
    )


def _issue(meta: Meta, record: NodeRecord) -> bytes:
    """A new node's record."""
    _check_peer(record.peer_address)
    if len(meta.nodes) >= MAX_MEMBERS:
        raise ChangeRefused(f"a cluster has at most {MAX_MEMBERS} nodes; remove one first")
    if other := _occupant(meta, record):
        raise ChangeRefused(f"node {other.name!r} has the peer address {record.peer_address}; give the new node's own")
    return transaction(
        {**_all_nodes(meta), record.key: 0},
        {NODE_KEY: b"%d" % (meta.issued_nodes + 1), record.key: record.encode()},
    )


def _occupant(meta: Meta, record: NodeRecord) -> NodeRecord | None:
    """Another node at its peer address, the one that it replaces excepted: frames for it would go there."""
    others = (other for other in meta.nodes.values() if other.node not in (record.node, record.replaces))
    return next((other for other in others if other.peer_address == record.peer_address), None)


def put_node(meta: Meta, record: NodeRecord, *others: bytes) -> bytes:
    """The transaction that changes a node's record from what it is in `meta`, if `others` are as there, too."""
    return transaction({key: meta.mod(key) for key in (record.key, *others)}, {record.key: record.encode()})


def removed_text(name: str) -> str:
    """What a node is told that is no member any more."""
    return (
        f"node {name!r} was removed from its cluster and must not come back as it is; to use the machine again, empty "
        f"the data directory, run `nebula-cli member add {name} --peer-address HOST:PORT` and start what it prints"
    )

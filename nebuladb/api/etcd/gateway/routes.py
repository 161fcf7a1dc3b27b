"""Which path of HTTP is which method (etcd's rpc.proto, v3lock.proto and v3election.proto, ``google.api.http``)."""

from __future__ import annotations

import posixpath
from typing import Final

_BASE: Final = {
    "KV": {
        "kv/range": "Range",
        "kv/put": "Put",
        "kv/deleterange": "DeleteRange",
        "kv/txn": "Txn",
        "kv/compaction": "Compact",
    },
    "Watch": {"watch": "Watch"},
    "Lease": {
        "lease/grant": "LeaseGrant",
        "lease/revoke": "LeaseRevoke",
        "kv/lease/revoke": "LeaseRevoke",
        "lease/keepalive": "LeaseKeepAlive",
        "lease/timetolive": "LeaseTimeToLive",
        "kv/lease/timetolive": "LeaseTimeToLive",
        "lease/leases": "LeaseLeases",
        "kv/lease/leases": "LeaseLeases",
    },
    "Cluster": {
        "cluster/member/add": "MemberAdd",
        "cluster/member/remove": "MemberRemove",
        "cluster/member/update": "MemberUpdate",
        "cluster/member/list": "MemberList",
        "cluster/member/promote": "MemberPromote",
    },
    "Maintenance": {
        "maintenance/alarm": "Alarm",
        "maintenance/status": "Status",
        "maintenance/defragment": "Defragment",
        "maintenance/hash": "Hash",
        "maintenance/hashkv": "HashKV",
        "maintenance/snapshot": "Snapshot",
        "maintenance/transfer-leadership": "MoveLeader",
        "maintenance/downgrade": "Downgrade",
    },
    "Auth": {
        "auth/enable": "AuthEnable",
        "auth/disable": "AuthDisable",
        "auth/status": "AuthStatus",
        "auth/authenticate": "Authenticate",
        "auth/user/add": "UserAdd",
        "auth/user/get": "UserGet",
        "auth/user/list": "UserList",
        "auth/user/delete": "UserDelete",
        "auth/user/changepw": "UserChangePassword",
        "auth/user/grant": "UserGrantRole",
        "auth/user/revoke": "UserRevokeRole",
        "auth/role/add": "RoleAdd",
        "auth/role/get": "RoleGet",
        "auth/role/list": "RoleList",
        "auth/role/delete": "RoleDelete",
        "auth/role/grant": "RoleGrantPermission",
        "auth/role/revoke": "RoleRevokePermission",
    },
}
_CONCURRENCY: Final = {
    "v3lockpb.Lock": {"lock/lock": "Lock", "lock/unlock": "Unlock"},
    "v3electionpb.Election": {
        "election/campaign": "Campaign",
        "election/proclaim": "Proclaim",
        "election/leader": "Leader",
        "election/observe": "Observe",
        "election/resign": "Resign",
    },
}

PATHS: Final[dict[str, tuple[str, str]]] = {
    f"/v3/{path}": (service, method)
    for services in ({f"etcdserverpb.{name}": paths for name, paths in _BASE.items()}, _CONCURRENCY)
    for service, paths in services.items()
    for path, method in paths.items()
}
"""Path → full name of the service, and method."""


def clean(path: str) -> str:
    """`path` without empty parts and dots, as Go's router has it: who writes it otherwise is sent there."""
    found = "/" + posixpath.normpath(path).lstrip("/")
    return found + "/" if (path.endswith("/") and found != "/") or found == "/v3" else found


def normal(path: str) -> str:
    """``/v3beta/…`` is ``/v3/…`` (etcd 61)."""
    return f"/v3/{path.removeprefix('/v3beta/')}" if path.startswith("/v3beta/") else path

"""Which of etcd's integration tests are about its API as clients see it, and why the others aren't."""

from __future__ import annotations

from typing import Final

PACKAGES: Final = (
    "",
    "clientv3",
    "clientv3/concurrency",
    "clientv3/connectivity",
    "clientv3/examples",
    "clientv3/experimental/recipes",
    "clientv3/lease",
    "clientv3/naming",
)
"""Below ``tests/integration``. Not: ``client``, ``v2store`` (etcd's API of version 2), ``embed``, ``proxy``,
``snapshot`` (parts of etcd)."""

FILES: Final = {
    "cluster_test.go": "etcd's members and their discovery, over its API of version 2",
    "clientv3/mirror_auth_test.go": "users and rights, which there are none of yet",
    "clientv3/role_test.go": "the same",
    "clientv3/user_test.go": "the same",
    "corrupt_test.go": "looks into etcd's data",
    "grpc_test.go": "TLS and Unix sockets",
    "hashkv_test.go": "etcd's hash of its own rows, through its own server object",
    "member_test.go": "the member's own object",
    "metrics_test.go": "etcd's metrics",
    "network_partition_test.go": "parts members within the process",
    "testing_test.go": "of the harness",
    "tracing_test.go": "OpenTelemetry",
    "v2_http_kv_test.go": "etcd's API of version 2",
    "v3_alarm_test.go": "quotas, and corruption that is put into etcd's data",
    "v3_auth_test.go": "users and rights",
    "v3_leadership_test.go": "the member's own object",
    "v3_tls_test.go": "TLS",
    "v3_watch_restore_test.go": "parts members within the process",
}

_TLS: Final = "TLS, which there is none of yet"
_QUOTA: Final = "a quota: there is none, NOSPACE comes from the disk"
_METRICS: Final = "etcd's metrics"
_INTERVAL: Final = "sets the interval of the servers in its own process"
_WHOLE: Final = "etcd gives leases their whole time anew with each leader; here they keep what is left, as they should"

_ONE: Final = "takes it for granted that all of history that a watch wants comes as one response"
_EACH: Final = "waits for a response for each revision; two that were applied in one turn may share one (docs/etcd.md)"

TESTS: Final = {
    "ExampleAuth": "users and rights, which there are none of yet",
    "ExampleCluster_memberUpdate": "a member announces its own peer URL (docs/etcd.md)",
    "ExampleWatcher_watchWithProgressNotify": "an interval of 200 ms; the least is a second here",
    "TestCompactionHash": "etcd's hash of its own rows",
    "TestConfigurableWatchProgressNotifyInterval": "an interval of 200 ms; the least is a second here",
    "TestKVLargeRequests": "sets the largest request",
    "TestKVPutError": _QUOTA,
    "TestKVPutWithRequireLeader": "waits for etcd's election timeout in the tests, 100 ms, and reads its metrics",
    "TestMaintenanceSnapshotErrorInflight": "writes etcd's own database beside a stopped member",
    "TestMemberUpdate": "a member announces its own peer URL (docs/etcd.md)",
    "TestTLSReloadAtomicReplace": _TLS,
    "TestTLSReloadCopy": _TLS,
    "TestTLSReloadCopyIPOnly": _TLS,
    "TestV3LargeRequests": "sets the largest request",
    "TestV3LeaseCheckpoint": _WHOLE,
    "TestV3LeaseFailover": "parts a member from its peers within the process",
    "TestV3LeasePromote": _WHOLE,
    "TestV3LeaseRequireLeader": "allows 5 s, with etcd's election timeout of 100 ms, for what takes 3 to 5 s here",
    "TestV3StorageQuotaAPI": _QUOTA,
    "TestV3WatchCancellation": _METRICS,
    "TestV3WatchCloseCancelRace": _METRICS,
    "TestV3WatchProgressWaitsForSync": "the revision of a response with events is the last event's (docs/etcd.md)",
    "TestWatchCancelOnServer": _METRICS,
    "TestWatchFragmentDisable": _ONE,
    "TestWatchFragmentDisableWithGRPCLimit": _ONE,
    "TestWatchFragmentEnable": _ONE,
    "TestWatchFragmentEnableWithGRPCLimit": _ONE,
    "TestWatchMultiWatcher": _EACH,
    "TestWatchWithProgressNotify": _INTERVAL,
    "TestWatchWithProgressNotifyNoEvent": _INTERVAL,
    "TestWatchWithRequireLeader": "waits for etcd's election timeout in the tests, 100 ms, and reads its metrics",
}
"""Name → why it isn't run without ``--all``."""

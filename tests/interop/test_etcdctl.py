"""etcdctl, as operators and scripts use it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from tests.etcd.servers import Nebula

ETCDCTL: Final = shutil.which("etcdctl")
SECONDS: Final = 60.0
pytestmark = pytest.mark.skipif(ETCDCTL is None, reason="etcdctl isn't installed here (Debian: etcd-client)")


def command(nodes: Nebula, *arguments: str) -> list[str]:
    """etcdctl with all endpoints."""
    assert ETCDCTL is not None
    return [ETCDCTL, "--endpoints", ",".join(nodes.endpoints), *arguments]


def environ() -> dict[str, str]:
    """Without what may be set for somebody's own cluster."""
    return {key: value for key, value in os.environ.items() if not key.startswith("ETCDCTL_")}


def etcdctl(nodes: Nebula, *arguments: str, stdin: str = "", code: int = 0) -> str:
    """What it prints."""
    done = subprocess.run(
        command(nodes, *arguments),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=environ(),
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def loaded(nodes: Nebula, *arguments: str) -> Any:
    """What it prints as JSON."""
    return json.loads(etcdctl(nodes, *arguments, "-w", "json"))


class Running:
    """An etcdctl that goes on; its lines are read as they come."""

    def __init__(self, nodes: Nebula, *arguments: str) -> None:
        self.process = subprocess.Popen(
            command(nodes, *arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ()
        )

    def line(self) -> str:
        """The next."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(SECONDS)
        if self.process.stdout is not None:
            self.process.stdout.close()


def test_put_get_del(nodes: Nebula) -> None:
    assert etcdctl(nodes, "put", "ctl/a", "1") == "OK\n"
    assert etcdctl(nodes, "put", "--prev-kv", "ctl/a", "2") == "OK\nctl/a\n1\n"
    etcdctl(nodes, "put", "ctl/b", "3")
    assert etcdctl(nodes, "get", "ctl/a") == "ctl/a\n2\n"
    assert etcdctl(nodes, "get", "--prefix", "--order=DESCEND", "ctl/", "--keys-only") == "ctl/b\n\nctl/a\n\n"
    assert etcdctl(nodes, "get", "--from-key", "ctl/b", "--limit=1", "--print-value-only") == "3\n"
    found = loaded(nodes, "get", "ctl/a")
    assert (found["count"], found["kvs"][0]["version"]) == (1, 2)
    old = str(found["kvs"][0]["create_revision"])
    assert etcdctl(nodes, "get", "--rev", old, "ctl/a") == "ctl/a\n1\n"
    assert "required revision is a future revision" in etcdctl(nodes, "get", "--rev", "99999999", "ctl/a", code=1)
    assert etcdctl(nodes, "del", "--prefix", "ctl/") == "2\n"
    assert etcdctl(nodes, "get", "ctl/a") == ""


def test_txn(nodes: Nebula) -> None:
    script = 'mod("ctl/t") = "0"\n\nput ctl/t one\nget ctl/t\n\nget ctl/t\n\n'
    assert etcdctl(nodes, "txn", stdin=script) == "SUCCESS\n\nOK\n\nctl/t\none\n"
    assert etcdctl(nodes, "txn", stdin=script) == "FAILURE\n\nctl/t\none\n"
    etcdctl(nodes, "del", "ctl/t")


def test_watch(nodes: Nebula) -> None:
    revision = loaded(nodes, "put", "ctl/w", "1")["header"]["revision"]
    with Running(nodes, "watch", "--prefix", "ctl/w", "--rev", str(revision), "--prev-kv") as watch:
        assert [watch.line() for _ in range(3)] == ["PUT", "ctl/w", "1"]
        etcdctl(nodes, "put", "ctl/w", "2")
        assert [watch.line() for _ in range(5)] == ["PUT", "ctl/w", "1", "ctl/w", "2"]
        etcdctl(nodes, "del", "ctl/w")
        assert [watch.line() for _ in range(5)] == ["DELETE", "ctl/w", "2", "ctl/w", ""]


def test_leases(nodes: Nebula) -> None:
    lease = etcdctl(nodes, "lease", "grant", "600").split()[1]
    etcdctl(nodes, "put", "--lease", lease, "ctl/l", "1")
    assert lease in etcdctl(nodes, "lease", "list")
    left = etcdctl(nodes, "lease", "timetolive", "--keys", lease)
    assert left.startswith(f"lease {lease} granted with TTL(600s), remaining(")
    assert left.rstrip().endswith("attached keys([ctl/l])")
    assert etcdctl(nodes, "lease", "keep-alive", "--once", lease) == f"lease {lease} keepalived with TTL(600)\n"
    assert etcdctl(nodes, "lease", "revoke", lease) == f"lease {lease} revoked\n"
    assert etcdctl(nodes, "get", "ctl/l") == ""
    assert etcdctl(nodes, "lease", "timetolive", lease) == f"lease {lease} already expired\n"
    assert "requested lease not found" in etcdctl(nodes, "lease", "revoke", lease, code=1)


def test_lock(nodes: Nebula) -> None:
    with Running(nodes, "lock", "ctl/lock") as holder:
        key = holder.line()
        assert key.startswith("ctl/lock/")
        with Running(nodes, "lock", "ctl/lock") as waiter:
            keys = etcdctl(nodes, "get", "--prefix", "ctl/lock/", "--keys-only").split()
            while len(keys) < 2:
                keys = etcdctl(nodes, "get", "--prefix", "ctl/lock/", "--keys-only").split()
            holder.process.terminate()
            second = waiter.line()
            assert {key, second} == set(keys)
            assert second != key
    assert etcdctl(nodes, "lock", "ctl/lock", "echo", "mine") == "mine\n"


def test_elect(nodes: Nebula) -> None:
    with Running(nodes, "elect", "ctl/e", "one") as first:
        key = first.line()
        assert key.startswith("ctl/e/")
        assert first.line() == "one"
        with Running(nodes, "elect", "-l", "ctl/e") as observer:
            assert [observer.line(), observer.line()] == [key, "one"]
            with Running(nodes, "elect", "ctl/e", "two") as second:
                keys = etcdctl(nodes, "get", "--prefix", "ctl/e/", "--keys-only").split()
                while len(keys) < 2:
                    keys = etcdctl(nodes, "get", "--prefix", "ctl/e/", "--keys-only").split()
                first.process.terminate()
                assert second.line() != key
                assert second.line() == "two"
                assert observer.line() != key
                assert observer.line() == "two"


def test_members_and_endpoints(nodes: Nebula) -> None:
    members = loaded(nodes, "member", "list")["members"]
    assert {member["name"] for member in members} == {"n1", "n2", "n3"}
    assert {url for member in members for url in member["clientURLs"]} == {f"http://{at}" for at in nodes.endpoints}
    statuses = loaded(nodes, "endpoint", "status")
    assert {status["Endpoint"] for status in statuses} == set(nodes.endpoints)
    assert len({status["Status"]["leader"] for status in statuses}) == 1
    assert {status["Status"]["header"]["member_id"] for status in statuses} == {member["ID"] for member in members}
    healths = loaded(nodes, "endpoint", "health", "--cluster")
    assert [health["health"] for health in healths] == [True] * 3
    etcdctl(nodes, "put", "ctl/h", "1")
    revision = loaded(nodes, "get", "ctl/h")["header"]["revision"]
    hashes = loaded(nodes, "endpoint", "hashkv", "--rev", str(revision))
    assert len({found["HashKV"]["hash"] for found in hashes}) == 1
    assert "name" in etcdctl(nodes, "member", "list", "-w", "table").lower()


def test_alarms_and_defragmentation(nodes: Nebula) -> None:
    assert etcdctl(nodes, "alarm", "list") == ""
    assert etcdctl(nodes, "alarm", "disarm") == ""
    assert etcdctl(nodes, "defrag").count("Finished defragmenting") == 3


def test_compaction(nodes: Nebula) -> None:
    revision = loaded(nodes, "put", "ctl/c", "1")["header"]["revision"]
    assert etcdctl(nodes, "compaction", "--physical", str(revision)) == f"compacted revision {revision}\n"
    assert "required revision has been compacted" in etcdctl(nodes, "compaction", str(revision), code=1)


def test_snapshot_save(nodes: Nebula, tmp_path: Path) -> None:
    file = tmp_path / "snapshot.db"
    single = [nodes.endpoints[0]]
    assert ETCDCTL is not None
    done = subprocess.run(
        [ETCDCTL, "--endpoints", *single, "snapshot", "save", str(file)],
        capture_output=True, text=True, timeout=SECONDS, env=environ(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"Snapshot saved at {file}" in done.stdout
    assert file.stat().st_size > 32


def test_move_leader(nodes: Nebula) -> None:
    statuses = loaded(nodes, "endpoint", "status")
    before = statuses[0]["Status"]["leader"]
    target = next(member for status in statuses if (member := status["Status"]["header"]["member_id"]) != before)
    assert "Leadership transferred" in etcdctl(nodes, "move-leader", f"{target:x}")
    nodes.wait_for(
        lambda: {s["Status"]["leader"] for s in loaded(nodes, "endpoint", "status")} == {target}, "all know the leader"
    )


@pytest.mark.skipif("NEBULA_INTEROP_LONG" not in os.environ, reason="it takes a minute: make interop-perf")
def test_check_perf(nodes: Nebula, capsys: pytest.CaptureFixture[str]) -> None:
    """It runs, and every put is answered; its verdict on their times is printed, not asserted: it is the machine's."""
    done = subprocess.run(
        command(nodes, "check", "perf"), capture_output=True, text=True, timeout=180, env=environ(), check=False
    )
    verdict = [line for line in done.stdout.splitlines() if "%" not in line and line.strip()]
    with capsys.disabled():
        print("", *verdict, sep="\n")
    assert any("Throughput is" in line or "Throughput too low" in line for line in verdict), done.stderr
    assert "Too many errors" not in done.stdout
    assert done.stderr == ""
    assert etcdctl(nodes, "get", "--prefix", "/etcdctl-check-perf/", "--count-only", "--write-out=fields").count(
        '"Count" : 0'
    )

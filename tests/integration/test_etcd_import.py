"""`nebula-cli etcd import` from a real etcd with three members."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.etcd.client import Client
from tests.etcd.servers import ETCD, Nebula, RealEtcd

SECONDS = 120.0
KEYS = 3_000

pytestmark = pytest.mark.skipif(ETCD is None, reason="etcd isn't installed here (Debian: etcd-server)")


def run(target: str, source: str, *arguments: str) -> tuple[int, dict[str, int], str]:
    """Exit code, counts and stderr."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("NEBULA_")}
    program = [sys.executable, "-c", "from nebuladb.cli.main import main; main()", "--endpoints", target]
    done = subprocess.run(
        [*program, "etcd", "import", "--from", source, *arguments],
        capture_output=True, text=True, timeout=SECONDS, check=False, env=environ,
    )  # fmt: skip
    counts = {name: int(number) for name, number in (part.split("=") for part in done.stdout.split())}
    return done.returncode, counts, done.stderr


def content(client: Client) -> dict[bytes, tuple[bytes, int]]:
    found: dict[bytes, tuple[bytes, int]] = {}
    start = b"\0"
    while True:
        page = client.range(start, b"\0", limit=500)
        found |= {kv.key: (kv.value, kv.lease) for kv in page.kvs}
        if not page.more:
            return found
        start = page.kvs[-1].key + b"\0"


def test_a_live_etcd_comes_over(tmp_path: Path) -> None:
    with (
        RealEtcd(tmp_path / "etcd", 3) as theirs,
        Nebula(tmp_path / "nebula", 1) as ours,
        Client(theirs.endpoints[0]) as source,
        Client(ours.endpoints[0]) as target,
    ):
        for number in range(KEYS):
            source.put(b"many/%06d" % number, b"%d" % number)
        for number in range(8):
            source.put(b"large/%d" % number, os.urandom(1_000_000))
        source.put(b"\0raw\xff", b"")
        source.grant(1000, 77)
        source.grant(500, 78)
        source.grant(2, 79)
        for number in range(200):
            source.put(b"leased/%d" % number, b"x", lease=77)
        source.put(b"short", b"x", lease=79)
        source.delete(b"many/000000")
        ended = time.monotonic() + SECONDS
        while source.time_to_live(79).TTL >= 0:
            assert time.monotonic() < ended
        code, counts, error = run(ours.endpoints[0], theirs.endpoints[1])
        assert code == 0, error
        keys = KEYS - 1 + 8 + 1 + 200
        assert (counts["keys"], counts["written"], counts["expired"], counts["leases"]) == (keys, keys, 0, 2)
        assert (counts["source_revision"], counts["revision"]) == (source.revision(), target.revision())
        assert content(target) == content(source)
        for lease, granted in ((77, 1000), (78, 500)):
            theirs_left, ours_left = source.time_to_live(lease), target.time_to_live(lease, keys=True)
            assert theirs_left.TTL - 60 < ours_left.TTL <= granted
            assert len(ours_left.keys) == (200 if lease == 77 else 0)

        source.put(b"many/000000", b"back")
        code, _, error = run(ours.endpoints[0], theirs.endpoints[1])
        assert code == 1
        assert "--merge" in error
        code, counts, error = run(ours.endpoints[0], theirs.endpoints[1], "--merge")
        assert (code, counts["written"], counts["same"]) == (0, 1, keys), error
        target.put(b"ours", b"gone soon")
        code, counts, error = run(ours.endpoints[0], theirs.endpoints[1], "--force")
        assert (code, counts["written"]) == (0, keys + 1), error
        assert content(target) == content(source)

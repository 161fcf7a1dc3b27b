"""/version, /health, /livez and /readyz, as etcd 3.5 serves them on its client port (etcd 61)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from nebuladb.api.etcd.face import Face
from nebuladb.api.etcd.gateway.answer import JSON, TEXT, Answer, text
from nebuladb.api.etcd.version import CLUSTER_VERSION, VERSION
from nebuladb.errors import NebulaError
from nebuladb.node.meta import ETCD
from nebuladb.shard import Descriptor

HEALTH_SECONDS: Final = 5.0
"""A check that takes longer says "not healthy"."""
MAX_CHECKS: Final = 64
"""In progress; one more is refused: a poller that doesn't wait must not pile up reads."""
_CHECKS: Final = {
    "livez": ("serializable_read",),
    "readyz": ("data_corruption", "linearizable_read", "serializable_read"),
}
PAGES: Final = (
    "/version",
    "/health",
    *(f"/{probe}" for probe in _CHECKS),
    *(f"/{probe}/{name}" for probe, names in _CHECKS.items() for name in names),
)
"""Each check of a probe has a page of its own."""

Query = Mapping[str, Sequence[str]]


class Pages:
    """Answers these pages for one node."""

    def __init__(self, face: Face, alarms: Callable[[], Sequence[str]]) -> None:
        """`alarms`: names of the kinds of alarm that are raised now."""
        self._face = face
        self._alarms = alarms
        self._checks = 0

    async def answer(self, path: str, query: Query) -> Answer:
        """A page, for GET."""
        if path == "/version":
            body = {"etcdserver": VERSION, "etcdcluster": CLUSTER_VERSION}
            return Answer(200, (JSON,), json.dumps(body, separators=(",", ":")).encode())
        if self._checks >= MAX_CHECKS:
            return text(503, "too many health checks")
        self._checks += 1
        try:
            return await (self._health(query) if path == "/health" else self._probe(path, query))
        finally:
            self._checks -= 1

    async def _health(self, query: Query) -> Answer:
        serializable = query.get("serializable", [""])[0] == "true"
        excluded = query.get("exclude", ())
        alarms = [name for name in self._alarms() if name not in excluded]
        reason = ""
        if alarms:
            reason = f"ALARM {alarms[0]}"
        elif not serializable and not self._leader():
            reason = "RAFT NO LEADER"
        elif problem := await self._read(serializable=serializable):
            reason = f"RANGE ERROR:{problem}"
        body = json.dumps({"health": "false" if reason else "true", "reason": reason}, separators=(",", ":"))
        return text(503, body) if reason else Answer(200, (TEXT,), body.encode())

    async def _probe(self, path: str, query: Query) -> Answer:
        probe, _, alone = path.removeprefix("/").partition("/")
        names = [alone] if alone else [name for name in _CHECKS[probe] if name not in query.get("exclude", ())]
        checks = {name: await self._check(name) for name in names}
        lines = "".join(f"[-]{name} failed: {why}\n" if why else f"[+]{name} ok\n" for name, why in checks.items())
        if any(checks.values()):
            return text(503, lines)
        return Answer(200, (TEXT,), (lines if "verbose" in query else "").encode() + b"ok\n")

    async def _check(self, name: str) -> str:
        """What is wrong."""
        if name == "data_corruption":
            return "alarm activated: CORRUPT" if "CORRUPT" in self._alarms() else ""
        return await self._read(serializable=name == "serializable_read")

    def _leader(self) -> int:
        shards = self._shards()
        return self._face.backend.leader(shards[0].group) if shards else 0

    def _shards(self) -> Sequence[Descriptor]:
        try:
            return self._face.backend.routing.shards(ETCD)
        except NebulaError:
            return ()

    async def _read(self, *, serializable: bool) -> str:
        """Read from the keyspace `etcd`; what went wrong."""
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                backend = self._face.backend
                await backend.current(backend.routing.shards(ETCD)[0], HEALTH_SECONDS, serializable=serializable)
        except TimeoutError:
            return "context deadline exceeded"
        except NebulaError as error:
            return " ".join(error.message.split())
        return ""

"""A candidate for leadership, as Patroni's own loop is one: it asks, takes, keeps, watches, and gives up what it lost.

Each thing that happens is a line of JSON on stdout with the time of the machine's monotonic clock, which all processes
share. A line on stdin makes it resign.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from typing import Any

from patroni.dcs import get_dcs
from patroni.exceptions import DCSError

TTL, LOOP, RETRY = 20, 2, 5
"""Seconds: the least that Patroni allows, and LOOP + 2 RETRY ≤ TTL, as it demands."""


def say(event: str, **more: Any) -> None:
    """One line."""
    print(json.dumps({"at": time.monotonic(), "event": event, **more}), flush=True)


class Candidate:
    """One loop."""

    def __init__(self, name: str, endpoints: list[str]) -> None:
        self._name = name
        config = {
            "etcd3": {"hosts": endpoints},
            "scope": "demo",
            "name": name,
            "ttl": TTL,
            "loop_wait": LOOP,
            "retry_timeout": RETRY,
        }
        self._dcs = get_dcs(config)
        self._holds = False
        self._until = 0.0
        """When the lease ends at the latest, if nothing renews it."""
        self._turn = 0
        self._resign = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for _ in sys.stdin:
            self._resign.set()

    def run(self) -> None:
        """For ever."""
        while True:
            version = None
            try:
                version = self._round()
            except DCSError as error:
                say("trouble", text=repr(error))
            if self._holds and time.monotonic() > self._until:
                self._lose("its time is over")
            woken = self._dcs.watch(version, LOOP)
            if woken:
                say("woken")

    def _round(self) -> Any:
        self._turn += 1
        cluster = self._dcs.get_cluster()
        self._dcs.touch_member({"conn_url": f"postgres://{self._name}", "state": "running"})
        leader = cluster.leader
        if leader is None or not leader.name:
            if self._holds:
                self._lose("the key is gone")
            self._acquire()
        elif leader.name == self._name:
            self._keep(cluster)
        elif self._holds:
            self._lose(f"{leader.name} has it")
        return leader.version if leader else None

    def _acquire(self) -> None:
        began = time.monotonic()
        if self._dcs.attempt_to_acquire_leader():
            self._holds, self._until = True, began + TTL
            say("took", until=self._until)

    def _keep(self, cluster: Any) -> None:
        if self._resign.is_set():
            self._resign.clear()
            self._lose("it resigns")
            say("resigned", done=self._dcs.delete_leader(cluster.leader))
            time.sleep(2 * LOOP)  # so that the other one has the first word
            return
        began = time.monotonic()
        if self._dcs.update_leader(cluster, self._turn):
            self._holds, self._until = True, began + TTL
            say("kept", until=self._until)
        else:
            self._lose("it could not be kept")

    def _lose(self, why: str) -> None:
        if self._holds:
            say("lost", why=why)
        self._holds = False


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    Candidate(sys.argv[1], sys.argv[2].split(",")).run()

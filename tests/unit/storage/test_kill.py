"""A writer killed at any moment, again and again: what was said to be flushed is there, and every log is whole."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from nebuladb.storage.log import LogStore
from nebuladb.storage.rocks import RocksEngine

KILLS = 8
WRITER = """
import pathlib, sys
from random import Random
import nebuladb.storage.rocks as rocks
from nebuladb.errors import WriteStalled
from nebuladb.raft.entry import encode_entry
from nebuladb.raft.ready import HardState
from nebuladb.storage.log import LogStore
from nebuladb.storage.log_batch import GroupWrite, LogBatch
rocks.LOG_MEMTABLE_BYTES = int(sys.argv[3])
rng = Random(int(sys.argv[2]))
store = LogStore(rocks.RocksEngine.open_log(pathlib.Path(sys.argv[1])))
flushed = store.last_batch
while True:
    batch = LogBatch(store.last_batch + 1)
    for group in range(1, 6):
        if group not in store.groups():
            batch.create(group, 0, 1)
            continue
        if rng.randrange(3):
            continue
        reader, state = store.reader(group), store.hard_state(group)
        (start, _), (last, _) = reader.start(), reader.last()
        first = last + 1 if rng.randrange(4) else rng.randrange(max(start, state.commit) + 1, last + 2)
        term = state.term + (first <= last)
        end = first + rng.randrange(1, 9)
        entries = [encode_entry(index, term, 0, rng.randbytes(200)) for index in range(first, end)]
        commit = rng.randrange(state.commit, first)
        batch.write(GroupWrite(group, HardState(term, group, commit), entries))
        if commit > start + 50:
            batch.cut(group, commit, reader.term(commit))
    while True:
        try:
            store.write(batch, flushed)
            break
        except WriteStalled:
            pass
    if rng.randrange(20) == 0:
        store.sync()
        flushed = batch.id
        print(flushed, *(store.reader(group).last()[0] for group in store.groups()), flush=True)
"""


@pytest.mark.parametrize("memtable", [64 << 20, 1 << 16])
def test_killed_writer(memtable: int, tmp_path: Path) -> None:
    rng = Random(memtable)
    promised = 0
    for kill in range(KILLS):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(kill), str(memtable)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            for _ in range(rng.randrange(1, 40)):
                said = writer.stdout.readline()
            writer.send_signal(signal.SIGKILL)
            said = writer.stdout.read().rpartition(b"\n")[0].rpartition(b"\n")[2] or said
        assert int(said.split()[0]) > promised
        promised = int(said.split()[0])
        store = LogStore(RocksEngine.open_log(tmp_path))  # checks each log: contiguous, CRCs, terms, commit
        assert store.last_batch >= promised
        for group in store.groups():
            reader = store.reader(group)
            (start, _), (last, _) = reader.start(), reader.last()
            if last > start:
                assert len(reader.entries(start + 1, last + 1, 1 << 30)) == last - start
        store.close()

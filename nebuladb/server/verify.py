"""`nebulad verify`: a data directory that no node runs on, checked from the documents down to the rows.

It writes nothing but the lock file. A log that would be opened behind a torn end is sound: what lies after it was
promised to nobody (S34).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from nebuladb.errors import IdentityError, NebulaError, StoreError
from nebuladb.ids import Generation, GroupId
from nebuladb.kv.store import Store
from nebuladb.kv.verify import verify_rows
from nebuladb.node.identity import FOUNDING_FILE, IDENTITY_FILE, Founding, Identity
from nebuladb.node.joined import JOINED_FILE, Joined
from nebuladb.node.registry import GroupState, RegistryRow
from nebuladb.node.starting import check_home, read_state
from nebuladb.server.directory import ANOTHER_VOTING, VOTING, life_in
from nebuladb.storage.files import read
from nebuladb.storage.lock import DirectoryLock
from nebuladb.storage.log import LogStore
from nebuladb.storage.owner import check_access, unusable
from nebuladb.storage.rocks import RocksEngine, examine_log
from nebuladb.storage.rocks_errors import is_damage
from nebuladb.storage.wal import Found

MAX_PROBLEMS: Final = 20
"""Told of one shard; there are more where there are so many."""
LOST: Final = (
    "this node must not take part as it is: put a new member with an empty directory in its place, `nebula-cli member "
    "replace`; only where the majority is gone for good, `nebulad recover` shows what can be had of it"
)
REBUILT: Final = (
    "the log is whole, so the node keeps its vote: move data/ away and let it catch up, or replace the member"
)


class Finding(NamedTuple):
    """What was looked at, and what is wrong with it."""

    part: str
    problem: str = ""
    """Empty: it is sound."""
    advice: str = ""


def verify(path: Path) -> Iterator[Finding]:
    """Check the directory `path`. Raises `IdentityError` if a node runs on it or it holds none, `ConfigurationError` or
    `StoreError` if it can't be read, which is no damage."""
    try:
        if not any((path / name).exists() for name in (IDENTITY_FILE, "raft")):
            raise IdentityError(f"{path} is no data directory: it has neither identity.json nor raft/")
        lock = DirectoryLock(path, give=True)
    except OSError as error:
        raise unusable(path, error) from error
    try:
        check_access(path)
        yield from _documents(path)
        yield from _databases(path)
    except OSError as error:
        raise _unread(StoreError(str(error))) from error
    finally:
        lock.release()


def _documents(path: Path) -> Iterator[Finding]:
    clusters: dict[str, int] = {}
    readers: dict[str, Callable[[bytes], int]] = {
        IDENTITY_FILE: lambda data: Identity.decode(data).cluster,
        FOUNDING_FILE: lambda data: Founding.decode(data).cluster,
        JOINED_FILE: lambda data: Joined.decode(data).founding.cluster,
    }
    for name, cluster_in in readers.items():
        file = path / name
        if not file.exists():
            if name == IDENTITY_FILE:
                yield Finding(
                    name, "it is missing", "restore it from a backup of this very directory; else replace the member"
                )
            continue
        data = _read(file)
        try:
            clusters[name] = cluster_in(data)
        except (NebulaError, ValueError, KeyError, json.JSONDecodeError) as error:
            text = error.message if isinstance(error, NebulaError) else str(error)
            yield Finding(name, text, "restore it from a backup of this very directory; else replace the member")
            continue
        yield Finding(name)
    voting = path / VOTING
    if voting.exists():
        damaged = life_in(_read(voting)) is None
        yield Finding(VOTING, "it is damaged", ANOTHER_VOTING) if damaged else Finding(VOTING)
    if clusters.get(IDENTITY_FILE) and not any((path / name).exists() for name in (FOUNDING_FILE, JOINED_FILE)):
        yield Finding(
            f"{FOUNDING_FILE} or {JOINED_FILE}",
            "both are missing",
            f"copy {FOUNDING_FILE} from another founding node; {JOINED_FILE}, of a node that joined later, restore "
            "from a backup of this very directory; else replace the member",
        )
    known = {cluster for cluster in clusters.values() if cluster}
    if len(known) > 1:
        yield Finding(
            "documents", f"they name several clusters: {sorted(map(hex, known))}", "one directory, one cluster"
        )


def _read(file: Path) -> bytes:
    try:
        return read(file)
    except StoreError as error:
        raise _unread(error) from error


def _damage(error: NebulaError) -> str:
    """What is damaged, or gone. Raises `StoreError` if the bytes could not be had: for want of descriptors, say."""
    if isinstance(error, StoreError) and not is_damage(error):
        raise _unread(error) from error
    return error.message


def _unread(error: NebulaError) -> StoreError:
    return StoreError(f"{error.message}. That says nothing of what is stored: mend the cause, and check again")


def _databases(path: Path) -> Iterator[Finding]:
    if not (path / "raft").exists():
        if any((path / name).exists() for name in ("data", VOTING)):
            yield Finding("raft", "the log's database is missing", LOST)
        else:  # as `DataDirectory.identity` has it: the node starts
            yield Finding("raft: none yet, and no vote: this node has not been in its cluster")
        return
    try:
        found = examine_log(path / "raft")
    except NebulaError as error:
        yield Finding("raft: WAL", _damage(error), LOST)
        return
    yield _wal(found)
    engine = None
    try:
        engine = RocksEngine.inspect(path / "raft", found)
        log = LogStore(engine)
        rows = {int(group): RegistryRow.decode(row) for group, row in log.registry().items()}
    except NebulaError as error:
        if engine is not None:
            engine.close()
        yield Finding("raft", _damage(error), LOST)
        return
    if not rows and (path / VOTING).exists():
        yield Finding("raft", f"it is empty, and was in use, as the file {VOTING} says: the votes are lost", LOST)
    else:
        yield Finding(f"raft: {len(log.groups())} logs, {len(rows)} rows in the registry")
    yield from _home(path, rows)
    try:
        yield from _data(path / "data", log, rows)
    finally:
        engine.close()


def _home(path: Path, rows: dict[int, RegistryRow]) -> Iterator[Finding]:
    """Whether the log, with its votes, is that of the node which `IDENTITY_FILE` names."""
    try:
        node = Identity.decode(read(path / IDENTITY_FILE)).node
    except (NebulaError, ValueError, KeyError):
        return  # said already
    try:
        check_home(rows.values(), node)
    except IdentityError as error:
        yield Finding("raft", error.message, "until then the node does not start")


def _wal(found: Found | None) -> Finding:
    """What an opening of the log would lose, and whether that was promised (S34)."""
    if found is None:
        return Finding("raft: no WAL")
    if found.missing:
        return Finding("raft: WAL", found.missing, LOST)
    return Finding(f"raft: WAL, {len(found.sound)} files up to batch {found.kept}")


def _data(path: Path, log: LogStore, rows: dict[int, RegistryRow]) -> Iterator[Finding]:
    if not path.exists():
        yield Finding("data", "the data's database is missing", REBUILT)
        return
    try:
        engine = RocksEngine.inspect(path)
    except NebulaError as error:
        yield Finding("data", _damage(error), REBUILT)
        return
    try:
        yield from _groups(engine, log, rows)
    finally:
        engine.close()


def _groups(engine: RocksEngine, log: LogStore, rows: dict[int, RegistryRow]) -> Iterator[Finding]:
    wanted = {(group, row.generation) for group, row in rows.items() if row.state == GroupState.NORMAL}
    try:
        held = {(int(group), int(generation)) for group, generation in Store.generations(engine)}
    except NebulaError as error:
        yield Finding("data", _damage(error), REBUILT)
        return
    for group, generation in sorted(held - wanted):
        yield Finding(f"shard {group}, generation {generation}: nobody refers to it; the next start removes it")
    for group, generation in sorted(wanted):
        part = f"shard {group}"
        try:
            state = read_state(engine, GroupId(group), Generation(generation))
            start, (last, term) = log.reader(GroupId(group)).start()[0], log.reader(GroupId(group)).last()
        except NebulaError as error:
            yield Finding(part, _damage(error), REBUILT)
            continue
        end = f"its log ends at index {last} of term {term}"  # the rest of it is applied at a start, and by `recover`
        if state is None:
            if (start, rows[group].initial[0]) != (rows[group].initial[0],) * 2:
                yield Finding(part, f"its data is gone, its log begins after index {start}", REBUILT)
            else:
                yield Finding(f"{part}: no data yet, and the whole log; {end}")
            continue
        if state.index < start:
            yield Finding(part, f"its data ends at index {state.index}, its log begins after {start}", REBUILT)
        if state.index + state.partial > last:
            where = f"amid entry {state.index + 1}" if state.partial else f"at index {state.index}"
            yield Finding(part, f"its data is {where}, its log ends at {last}: the log lost entries", LOST)
        if (yield from _rows(engine, group, generation, part)):
            known = f"{state.keys} keys at revision {state.revision}, applied up to index {state.index}"
            yield Finding(f"{part}: {known}; {end}")


def _rows(engine: RocksEngine, group: int, generation: int, part: str) -> Generator[Finding, None, bool]:
    """Returns whether they agree with each other."""
    told = 0
    try:
        for problem in verify_rows(engine, GroupId(group), Generation(generation)):
            told += 1
            if told > MAX_PROBLEMS:
                yield Finding(part, "and more", REBUILT)
                return False
            yield Finding(part, problem, REBUILT)
    except NebulaError as error:
        yield Finding(part, _damage(error), REBUILT)
        return False
    return not told


def report(path: Path, say: Callable[[str], None]) -> bool:
    """Check `path` and tell every finding in a line; whether all is sound. Raises as `verify`."""
    sound = True
    for finding in verify(path):
        if finding.problem:
            sound = False
            say(f"PROBLEM  {finding.part}: {finding.problem}; {finding.advice}")
        else:
            say(f"ok       {finding.part}")
    say("sound" if sound else "NOT sound: see above")
    return sound

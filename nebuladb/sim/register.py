"""What clients may see of one key, which has one writer (a linearizable register without search)."""

from __future__ import annotations

from dataclasses import dataclass

from nebuladb.kv.answer import KeyValue
from nebuladb.sim.violation import Violation, require


@dataclass(slots=True)
class _State:
    value: bytes | None
    """None: the key does not exist."""
    version: int
    """Puts since the key was created: a put that ran twice shows here."""
    revision: int
    """0 = not known yet."""

    def shows(self, kv: KeyValue | None) -> bool:
        if kv is None or self.value is None:
            return kv is None and self.value is None
        return (kv.value, kv.version) == (self.value, self.version) and self.revision in (0, kv.mod_revision)


class Register:
    """The states that its one writer made of a key, in order. `settled` is the newest that certainly holds: it was
    acknowledged, or a linearizable read saw it. At most one more state follows, of a write that is under way or of
    unknown outcome; after an unknown one the writer leaves the key alone for ever."""

    def __init__(self, group: int, key: bytes) -> None:
        self.group = group
        self.key = key
        self.settled = 0
        self._states = [_State(None, 0, 0)]

    @property
    def revision(self) -> int:
        """Mod revision of the settled state."""
        return self._states[self.settled].revision

    @property
    def exists(self) -> bool:
        """Whether the key exists in the settled state."""
        return self._states[self.settled].value is not None

    def begin(self, value: bytes | None) -> None:
        """A write of a value never written before (None: a delete) is sent."""
        version = 0 if value is None else self._states[-1].version + 1
        self._states.append(_State(value, version, 0))

    def acknowledged(self, revision: int) -> None:
        """It was done, at `revision`."""
        state = self._states[-1]
        seen = state.revision
        if state.value is not None:
            require(seen in (0, revision), f"{self}: acknowledged at revision {revision}, but read at {seen}")
            state.revision = revision
        self.settled = len(self._states) - 1

    def failed(self) -> None:
        """It certainly was not done, says the answer."""
        require(self.settled < len(self._states) - 1, f"{self}: a write that was read is said to have failed")
        self._states.pop()

    def saw(self, floor: int, kv: KeyValue | None, *, linearizable: bool = True) -> None:
        """A read shows `kv`; `floor` is what `settled` was when it began. One that is not linearizable may show any
        state there ever was, but no other."""
        first = floor if linearizable else 0
        for place in range(first, len(self._states)):
            state = self._states[place]
            if state.shows(kv):
                if linearizable:
                    self.settled = max(self.settled, place)
                    if kv is not None:
                        state.revision = kv.mod_revision
                return
        shown = "nothing" if kv is None else f"{kv.value!r} of version {kv.version}, revision {kv.mod_revision}"
        old = any(state.shows(kv) for state in self._states[:first])
        raise Violation(
            f"{self}: a read shows {shown}{', which is stale' if old else ''}; it may show {self._states[first:]}"
        )

    def __str__(self) -> str:
        return f"group {self.group}, key {self.key.decode()}"

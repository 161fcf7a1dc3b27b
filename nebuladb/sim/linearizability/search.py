"""The search of Wing and Gong (1993), as Lowe (2017) made it quick, with operations of unknown outcome."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Final, Generic, NamedTuple

from nebuladb.sim.linearizability.model import REJECTED, Model, S
from nebuladb.sim.linearizability.operation import UNKNOWN, I, O, Operation

MAX_STEPS: Final = 5_000_000
"""Work of a search in one mode: operations tried, visited configurations compared with, and new ones, which count
`NEW_STEPS` each. A few seconds, and at worst half a gigabyte."""
NEW_STEPS: Final = 10
"""A new configuration is remembered, so that it costs not only time."""
MAX_STATES: Final = 16
"""As many states of a dead end are kept, to be shown."""

_HEAD: Final = 0


class Verdict(Enum):
    """What can be said of a history."""

    LINEARIZABLE = "linearizable"
    NOT_LINEARIZABLE = "not linearizable"
    UNDECIDED = "undecided"


class Found(NamedTuple, Generic[S]):
    """What a search ended with."""

    verdict: Verdict
    order: tuple[int, ...]
    """If linearizable: places of operations in an order that shows it."""
    furthest: int
    """If not: the time of the first return that no order came past."""
    states: tuple[S, ...]
    """If not: every state found there, up to `MAX_STATES`, and perhaps more that can't be."""


class Mode(Enum):
    """How unknown operations count, if there are any."""

    HASTY = 1
    """A configuration is visited if its like was, with whatever unknown operations taken. What it finds is right,
    but it doesn't find all."""
    RELAXED = 2
    """Each unknown operation may happen often, but all together not more often than there are. If it finds nothing,
    there is nothing."""
    EXACT = 3
    """The whole truth, which may cost exponential time in the unknown operations; that of the other two does not
    depend on which of them were taken."""


def search(model: Model[S, I, O], operations: Sequence[Operation[I, O]], max_steps: int = MAX_STEPS) -> Found[S]:
    """Whether one part of a history, ordered by call, is linearizable. `max_steps` bounds each mode."""
    conclusive = {Mode.HASTY: Verdict.LINEARIZABLE, Mode.RELAXED: Verdict.NOT_LINEARIZABLE}
    for mode in Mode:
        attempt = Search(model, operations, mode, max_steps)
        found = attempt.run()
        if found.verdict is conclusive.get(mode) or not attempt.has_unknown:
            break
    return found


class _Configuration(NamedTuple, Generic[S]):
    """What has been linearized, and what that led to. Known operations are ranked by call."""

    base: int
    """The first known operation that is not linearized."""
    window: int
    """Bit i: the known operation base + i is linearized. Only as long as operations overlap, so a long history costs
    no more an operation than a short one."""
    state: S
    taken: int
    """Bit i: the unknown operation i took effect. RELAXED: as many bits as unknown operations did. So one is at least
    as good as another, all else being equal, if its bits are among the other's."""


class _Class(NamedTuple):
    """Unknown operations with the same input. The one called first is always taken first: wherever another may take
    effect, so may it, to the same end. So k of them are k + 1 choices instead of 2**k."""

    members: list[int]
    """Their places in the history, by call."""
    calls: list[int]
    first_bit: int


class _Frame(NamedTuple, Generic[S]):
    configuration: _Configuration[S]
    moves: Iterator[tuple[int, S]]
    """What may come next; resumed after a failure, when the linked list is again as it was."""
    move: int
    """What led here: a known operation's rank, or ~class."""


class Search(Generic[S, I, O]):
    """One search.

    The calls and returns of the known operations are a doubly linked list in order of time. A known operation may
    come next if its call stands before the list's first return; it is then lifted out, and put back on the way back.
    The search succeeds when the list is empty, for unknown operations need not happen.

    Unknown operations are not in the list, where they would stay for ever and be walked over each time, but in
    classes (`_Class`). They are tried after all known ones. None is taken if it changes nothing; if it makes the
    unknown one just before it needless (a blind write after another); or if nobody notices (`Model.noticed`).

    A visited configuration stands for every one with the same known operations linearized, the same state, and
    the same unknown operations *or more*: fewer taken means more left to take. This is Lowe's cache, and sharper:
    without it n unknown writes are 2**n configurations."""

    def __init__(
        self, model: Model[S, I, O], operations: Sequence[Operation[I, O]], mode: Mode, max_steps: int
    ) -> None:
        self._mode = mode
        self._step = model.step
        self._noticed = model.noticed
        self._merge = model.merge(operations)
        self._max_steps = max_steps
        self._steps = 0
        simple = model.simplify(operations)
        self._places: list[int] = []
        """Rank of a known operation → its place in `operations`."""
        self._known: list[Operation[I, O]] = []
        unknown: dict[I, list[tuple[int, int]]] = {}
        for place, operation in enumerate(simple):
            if operation is None:
                continue
            if operation.returned is None:
                unknown.setdefault(operation.input, []).append((place, operation.call))
            else:
                self._places.append(place)
                self._known.append(operation)
        self._observes = [model.observes(operation) for operation in self._known]
        self._inputs = list(unknown)
        self._classes: list[_Class] = []
        bits = 0
        for members in unknown.values():
            self._classes.append(_Class([place for place, _ in members], [call for _, call in members], bits))
            bits += len(members)
        self._unknown = bits
        self._counts = [0] * len(self._classes)
        """How many of a class are taken."""
        self._link()
        self._visited: dict[tuple[int, int, S], list[int]] = {}
        self._frames: list[_Frame[S]] = []
        self._left = len(self._known)
        self._furthest = 0
        """The entry of the latest return that was reached and not passed."""
        self._states: list[S] = []
        self._push(_Configuration(0, 0, model.initial(), 0), 0)

    def _link(self) -> None:
        """Make the list. At one instant calls come before returns: what meets is concurrent."""
        events = [(operation.call, 0, rank) for rank, operation in enumerate(self._known)]
        events += [(operation.returned or 0, 1, rank) for rank, operation in enumerate(self._known)]
        events.sort()
        self._owner = [0] * (len(events) + 1)
        """Entry → rank for a call, ~rank for a return."""
        self._times = [0] * (len(events) + 1)
        self._call_entry = [0] * len(self._known)
        self._return_entry = [0] * len(self._known)
        for entry, (time, returns, rank) in enumerate(events, 1):
            self._owner[entry] = ~rank if returns else rank
            self._times[entry] = time
            (self._return_entry if returns else self._call_entry)[rank] = entry
        self._after = [*range(1, len(events) + 1), _HEAD]
        self._before = [len(events), *range(len(events))]

    @property
    def has_unknown(self) -> bool:
        """Whether the mode makes a difference."""
        return self._unknown > 0

    def run(self) -> Found[S]:
        """Search."""
        frames = self._frames
        while self._left:
            if self._steps > self._max_steps:
                return Found(Verdict.UNDECIDED, (), 0, ())
            found = next(frames[-1].moves, None)
            if found is None:
                self._retreat()
                if not frames:
                    return Found(Verdict.NOT_LINEARIZABLE, (), self._times[self._furthest], tuple(self._states))
                continue
            move, state = found
            configuration = self._reached(frames[-1].configuration, move, state)
            if self._is_new(configuration):
                self._advance(configuration, move)
        return Found(Verdict.LINEARIZABLE, self._path(), 0, ())

    def _moves(self, configuration: _Configuration[S]) -> Iterator[tuple[int, S]]:
        """Operations of which one must come next, if the history is linearizable from here, with the state after it.
        If a known one is an observation, it alone: where it may come later, it may as well come now."""
        step, known, owner, after, merge = self._step, self._known, self._owner, self._after, self._merge
        observes, state = self._observes, configuration.state
        changing: list[tuple[int, S]] = []
        entry = after[_HEAD]
        while (rank := owner[entry]) >= 0:
            self._steps += 1
            operation = known[rank]
            result = step(state, operation.input, operation.output)
            if result is not REJECTED:
                if observes[rank]:
                    yield rank, state
                    return
                changing.append((rank, result if merge is None else merge(result)))
            entry = after[entry]
        yield from changing
        self._stuck(entry, state)
        if configuration.taken.bit_count() < self._unknown:
            yield from self._unknown_moves(state, self._times[entry])

    def _unknown_moves(self, state: S, fence: int) -> Iterator[tuple[int, S]]:
        """Those of unknown operations called by `fence`, the first return that is still in the list."""
        previous: S | None = None
        chained = self._frames[-1].move < 0
        if chained:
            previous = self._frames[-2].configuration.state
        for number, (given, group) in enumerate(zip(self._inputs, self._classes, strict=True)):
            count = self._counts[number]
            if count == len(group.calls) or group.calls[count] > fence:
                continue
            self._steps += 1
            result = self._step(state, given, UNKNOWN)
            if result is REJECTED or result == state:
                continue
            if chained and self._step(previous, given, UNKNOWN) == result:  # type: ignore[arg-type]
                continue
            if self._merge is not None:
                result = self._merge(result)
            if self._noticed(result):
                yield ~number, result

    def _reached(self, configuration: _Configuration[S], move: int, state: S) -> _Configuration[S]:
        """Where a move leads."""
        base, window, _, taken = configuration
        if move < 0:
            if self._mode is Mode.RELAXED:
                return _Configuration(base, window, state, taken << 1 | 1)
            bit = self._classes[~move].first_bit + self._counts[~move]
            return _Configuration(base, window, state, taken | 1 << bit)
        window |= 1 << move - base
        ones = (~window & window + 1).bit_length() - 1
        return _Configuration(base + ones, window >> ones, state, taken)

    def _is_new(self, configuration: _Configuration[S]) -> bool:
        """Whether no visited configuration can do all that this one can; then it counts as visited."""
        base, window, state, taken = configuration
        if self._mode is Mode.HASTY:
            taken = 0
        rivals = self._visited.setdefault((base, window, state), [])
        self._steps += len(rivals)
        for rival in rivals:
            if rival & taken == rival:
                return False
        rivals[:] = [rival for rival in rivals if rival & taken != taken]
        rivals.append(taken)
        self._steps += NEW_STEPS
        return True

    def _push(self, configuration: _Configuration[S], move: int) -> None:
        self._frames.append(_Frame(configuration, self._moves(configuration), move))

    def _advance(self, configuration: _Configuration[S], move: int) -> None:
        """Linearize an operation."""
        if move < 0:
            self._counts[~move] += self._mode is not Mode.RELAXED
        else:
            self._left -= 1
            for entry in (self._call_entry[move], self._return_entry[move]):
                before, after = self._before[entry], self._after[entry]
                self._after[before] = after
                self._before[after] = before
        self._push(configuration, move)

    def _retreat(self) -> None:
        """Undo the last one."""
        move = self._frames.pop().move
        if not self._frames:
            return
        if move < 0:
            self._counts[~move] -= self._mode is not Mode.RELAXED
        else:
            self._left += 1
            # In the reverse order, each entry's neighbours are again those that it remembers.
            for entry in (self._return_entry[move], self._call_entry[move]):
                self._after[self._before[entry]] = entry
                self._before[self._after[entry]] = entry

    def _stuck(self, entry: int, state: S) -> None:
        """No known operation leads on from here past the return at `entry`; remember the latest."""
        if entry > self._furthest:
            self._furthest = entry
            self._states = []
        if entry == self._furthest and len(self._states) < MAX_STATES and state not in self._states:
            self._states.append(state)

    def _path(self) -> tuple[int, ...]:
        """Places of the operations linearized, in that order."""
        members = [iter(group.members) for group in self._classes]
        moves = [frame.move for frame in self._frames[1:]]
        # RELAXED may take more than there are; nobody looks at what it finds.
        return tuple(self._places[move] if move >= 0 else next(members[~move], -1) for move in moves)

"""Linearizability by trying everything, and small histories to try it on. It shares no code with the checker: the
objects are written again, over all keys at once, with neither partition nor memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any, TypeAlias

from nebuladb.sim.linearizability.key_value import Append, Get, Put
from nebuladb.sim.linearizability.operation import UNKNOWN, Operation
from nebuladb.sim.linearizability.register import CompareAndSet, Read, Write

History: TypeAlias = list[Operation[Any, Any]]
World: TypeAlias = dict[Any, Any]


def after(world: World, operation: Operation[Any, Any]) -> World | None:
    """The world after it took effect; None if it can't have answered so."""
    given = operation.input
    answered = operation.returned is not None and operation.output is not UNKNOWN
    value: Any = world.get(given.key, "" if isinstance(given, Get | Put | Append) else None)
    match given:
        case Read() | Get():
            return None if answered and operation.output != value else world
        case Write() | Put():
            return {**world, given.key: given.value}
        case Append():
            return {**world, given.key: value + given.value}
        case CompareAndSet():
            if answered and operation.output is not (value == given.old):
                return None
            return {**world, given.key: given.new} if value == given.old else world
    raise AssertionError(given)


def explainable(history: Sequence[Operation[Any, Any]], world: World | None = None) -> bool:
    """Whether some order explains it."""
    world = {} if world is None else world
    ends = [operation.returned for operation in history if operation.returned is not None]
    if not ends:
        return True
    for at, operation in enumerate(history):
        if operation.call <= min(ends):
            then = after(world, operation)
            if then is not None and explainable([*history[:at], *history[at + 1 :]], then):
                return True
    return False


def prefix(history: History, end: int) -> History:
    """What was known at a time."""
    called = [operation for operation in history if operation.call <= end]
    return [
        replace(operation, returned=None) if operation.returned is not None and operation.returned > end else operation
        for operation in called
    ]


def shortest(history: History) -> int:
    """The time of the first completion that can't be explained."""
    ends = sorted({operation.returned for operation in history if operation.returned is not None})
    return next(end for end in ends if not explainable(prefix(history, end)))


def random_history(random: Random, size: int = 8) -> History:
    """Few values, one or two keys, times that meet; half of them as a real object would answer, maybe with one lie."""
    register, keys = random.random() < 0.5, random.choice(["a", "a", "ab"])
    span = random.choice([6, 12, 24])
    history: History = []
    for process in range(random.randint(1, size)):
        key = random.choice(keys)
        call = random.randrange(span)
        returned = None if random.random() < 0.3 else call + random.randrange(1 + span // 3)
        given = _register(random, key) if register else _key_value(random, key)
        history.append(Operation(process, call, returned, given, UNKNOWN))
    if random.random() < 0.5:
        return [replace(operation, output=_output(random, operation)) for operation in history]
    world: World = {}
    order = {id(operation): operation.call + random.randrange(1 + span // 3) for operation in history}
    honest = []
    for operation in sorted(history, key=lambda operation: min(order[id(operation)], operation.returned or span * 2)):
        answers = [replace(operation, output=output) for output in _outputs(operation)]
        honest.append(next((answer for answer in answers if after(world, answer) is not None), operation))
        if operation.returned is not None or random.random() < 0.5:
            world = after(world, operation) or world
    if random.random() < 0.5:
        at = random.randrange(len(honest))
        honest[at] = replace(honest[at], output=_output(random, honest[at]))
    return honest


def _register(random: Random, key: str) -> Read | Write | CompareAndSet:
    value = random.randrange(3)
    match random.randrange(3):
        case 0:
            return Read(key)
        case 1:
            return Write(value, key)
    return CompareAndSet(random.choice([None, 0, 1, 2]), value, key)


def _key_value(random: Random, key: str) -> Get | Put | Append:
    value = random.choice(["x", "y", "xy"])
    match random.randrange(4):
        case 0 | 1:
            return Get(key)
        case 2:
            return Put(key, value)
    return Append(key, value)


def _outputs(operation: Operation[Any, Any]) -> list[Any]:
    match operation.input:
        case Read():
            return [None, 0, 1, 2]
        case CompareAndSet():
            return [True, False]
        case Get():
            letters = ["", "x", "y"]
            return sorted({a + b + c + d for a in letters for b in letters for c in letters for d in letters})
    return [None]


def _output(random: Random, operation: Operation[Any, Any]) -> Any:
    outputs = _outputs(operation)
    return UNKNOWN if random.random() < 0.05 else random.choice(outputs[:8])

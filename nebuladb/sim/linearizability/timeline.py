"""A history as a picture: one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from enum import Enum
from html import escape
from typing import Any, Final

from nebuladb.sim.linearizability.check import Part, Report
from nebuladb.sim.linearizability.model import Model
from nebuladb.sim.linearizability.operation import Operation
from nebuladb.sim.linearizability.search import Verdict

MAX_DRAWN: Final = 2000
"""Operations of one key that are drawn: the first, or those around a failure."""

_COLUMN: Final = 26
_ROW: Final = 26
_BAR: Final = 20
_MARGIN: Final = 90
_TAIL: Final = 40
"""How far an operation of unknown outcome reaches beyond the last event."""

_PAGE: Final = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 14px system-ui, sans-serif; margin: 1.5em; color: #222; background: #fff }}
h2 {{ font-size: 1.1em; margin: 1.5em 0 .3em }} p {{ margin: .3em 0; max-width: 60em }}
div {{ overflow-x: auto; border: 1px solid #ddd }} svg {{ display: block; font: 11px ui-monospace, monospace }}
.known rect {{ fill: #cfe3f7; stroke: #4a7fb5 }} .unknown rect {{ fill: #eee; stroke: #999; stroke-dasharray: 4 3 }}
.after {{ opacity: .35 }} .failed rect {{ fill: #f7c6c5; stroke: #c0302b; stroke-width: 2 }}
.lane {{ stroke: #eee }} .end {{ stroke: #c0302b; stroke-dasharray: 3 3 }}
.point {{ fill: #24517f }} .place {{ fill: #24517f; font-size: 9px; text-anchor: middle }}
</style>
<h1>{title}: {verdict}</h1>
<p>A row is a process, a bar an operation from call to return; only the order of events is to scale. A dashed bar is of
unknown outcome. Numbers say in which order the operations can have taken effect. Point at a bar for its text.</p>
{parts}
</html>
"""


def show_state(state: Hashable) -> str:
    """For people; a member of an enumeration stands for several states and says which."""
    return str(state.value) if isinstance(state, Enum) else repr(state)


def draw(title: str, report: Report[Any, Any, Any], model: Model[Any, Any, Any]) -> str:
    """The page; failed keys first."""
    ranks = {Verdict.NOT_LINEARIZABLE: 0, Verdict.UNDECIDED: 1, Verdict.LINEARIZABLE: 2}
    parts = sorted(report.parts, key=lambda part: (part is not report.failed, ranks[part.verdict]))
    drawn = "\n".join(_part(part, model) for part in parts)
    return _PAGE.format(title=escape(title), verdict=report.verdict.value, parts=drawn)


def _part(part: Part[Any, Any, Any], model: Model[Any, Any, Any]) -> str:
    shown = _shown(part)
    words = [f"{len(part.operations)} operations, {part.verdict.value}."]
    if len(shown) < len(part.operations):
        words.append(f"Only {len(shown)} are drawn.")
    order = part.order
    if part.failure is not None:
        order = part.failure.order
        words.append(f"Nothing explains {model.describe(part.failure.operation)} (red).")
        if part.failure.states:
            words.append(f"It can only have found: {', '.join(map(show_state, part.failure.states))}.")
    heading = "" if part.key is None else f"<h2>{escape(str(part.key))}</h2>\n"
    svg = _Drawing(part, shown, order, model).svg()
    return f"{heading}<p>{escape(' '.join(words))}</p>\n<div>{svg}</div>"


def _shown(part: Part[Any, Any, Any]) -> Sequence[Operation[Any, Any]]:
    last = MAX_DRAWN
    if part.failure is not None:
        last = max(last, len(part.failure.prefix) + MAX_DRAWN // 10)
    return part.operations[max(0, min(last, len(part.operations)) - MAX_DRAWN) : last]


class _Drawing:
    """The picture of one key."""

    def __init__(
        self,
        part: Part[Any, Any, Any],
        shown: Sequence[Operation[Any, Any]],
        order: Sequence[Operation[Any, Any]],
        model: Model[Any, Any, Any],
    ) -> None:
        self._shown = shown
        self._failure = part.failure
        self._model = model
        # A failure's prefix has copies of what returned later, but a process and a call are the same in both.
        self._places = {_name(operation): place for place, operation in enumerate(order, 1)}
        times = {operation.call for operation in shown}
        times |= {operation.returned for operation in shown if operation.returned is not None}
        self._columns: Mapping[int, int] = {time: column for column, time in enumerate(sorted(times))}
        self._lanes, self._rows = _lanes(shown)

    def svg(self) -> str:
        """The element."""
        width = _MARGIN + len(self._columns) * _COLUMN + _TAIL
        height = (len(self._rows) + 1) * _ROW
        lines = [f'<svg width="{width}" height="{height}">']
        for row, process in enumerate(self._rows):
            y = row * _ROW + _ROW // 2
            lines.append(f'<line class="lane" x1="{_MARGIN}" x2="{width}" y1="{y}" y2="{y}"/>')
            lines.append(f'<text x="4" y="{y + 4}">process {process}</text>')
        lines += [self._bar(operation, lane, width) for operation, lane in zip(self._shown, self._lanes, strict=True)]
        end = None if self._failure is None else self._failure.operation.returned
        if end is not None and end in self._columns:
            x = self._x(end)
            lines.append(f'<line class="end" x1="{x}" x2="{x}" y1="0" y2="{height}"/>')
        return "\n".join([*lines, "</svg>"])

    def _x(self, time: int) -> int:
        return _MARGIN + self._columns[time] * _COLUMN

    def _bar(self, operation: Operation[Any, Any], lane: int, width: int) -> str:
        left, y = self._x(operation.call), lane * _ROW + (_ROW - _BAR) // 2
        length = (width if operation.returned is None else self._x(operation.returned)) - left - 2
        text = escape(self._model.describe(operation))
        kinds = ["unknown" if operation.returned is None else "known"]
        place = self._places.get(_name(operation))
        if self._failure is not None:
            if operation == self._failure.operation:
                kinds.append("failed")
            elif operation.call > (self._failure.operation.returned or 0):
                kinds.append("after")
        times = f"{operation.call} to {'?' if operation.returned is None else operation.returned}"
        fits = max(1, (length - 22) // 7)
        label = escape(self._model.describe(operation)[:fits]) if length > 30 else ""
        mark = "" if place is None else f'<text class="place" x="{left + 9}" y="{y + 13}">{place}</text>'
        return (
            f'<g class="{" ".join(kinds)}"><title>{text}\nprocess {operation.process}, {times}</title>'
            f'<rect x="{left}" y="{y}" width="{max(length, 3)}" height="{_BAR}" rx="3"/>'
            f'<text x="{left + 19}" y="{y + 14}">{label}</text>{mark}</g>'
        )


def _name(operation: Operation[Any, Any]) -> tuple[int, int, Any]:
    return operation.process, operation.call, operation.input


def _lanes(shown: Sequence[Operation[Any, Any]]) -> tuple[list[int], list[int]]:
    """The row of each operation, and the process of each row; one whose operations overlap has several."""
    rows: dict[int, list[list[Operation[Any, Any]]]] = {}
    for operation in shown:
        own = rows.setdefault(operation.process, [])
        for row in own:
            last = row[-1]
            if last.returned is not None and last.returned <= operation.call:
                row.append(operation)
                break
        else:
            own.append([operation])
    lanes: dict[int, int] = {}
    processes: list[int] = []
    for process in sorted(rows):
        for row in rows[process]:
            lanes.update((id(operation), len(processes)) for operation in row)
            processes.append(process)
    return [lanes[id(operation)] for operation in shown], processes

"""Which metrics an expression of Prometheus's query language names, and with which labels.

Enough of the grammar for dashboards and alert rules: an identifier that is neither a function, nor a keyword, nor a
label is a metric. What it doesn't know counts as a metric, so that nothing slips through.
"""

from __future__ import annotations

import re
from typing import Final

FUNCTIONS: Final = (
    *("abs", "absent", "avg", "avg_over_time", "bottomk", "changes", "clamp_min", "count", "count_over_time", "delta"),
    *("deriv", "group", "histogram_quantile", "increase", "irate", "max", "max_over_time", "min", "min_over_time"),
    *("quantile", "rate", "sum", "time", "topk", "vector"),
)
KEYWORDS: Final = (
    "and",
    "bool",
    "by",
    "group_left",
    "group_right",
    "ignoring",
    "offset",
    "on",
    "or",
    "unless",
    "without",
)
WORDS: Final = frozenset((*FUNCTIONS, *KEYWORDS))
STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
RANGE: Final = re.compile(r"\[[^\]]*\]")
GROUPING: Final = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
SELECTOR: Final = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)?\s*\{([^}]*)\}")
NAME: Final = re.compile(r"(?<![\w.])[a-zA-Z_:][a-zA-Z0-9_:]*")
LABEL: Final = re.compile(r"([a-zA-Z_]\w*)\s*(?:=~|!~|!=|=)")


def metrics(expression: str) -> set[str]:
    """The metrics that it names."""
    text = RANGE.sub(" ", STRING.sub("''", expression))
    text = SELECTOR.sub(lambda match: f" {match[1] or ''} ", GROUPING.sub(" ", text))
    return {name for name in NAME.findall(text) if name not in WORDS}


def matched_labels(expression: str) -> dict[str, set[str]]:
    """Metric → the labels that it is selected by. Raises ValueError where a selector names no metric."""
    found: dict[str, set[str]] = {}
    for name, inside in SELECTOR.findall(STRING.sub("''", expression)):
        if not name:
            raise ValueError(f"{expression!r} selects by labels alone")
        found.setdefault(name, set()).update(LABEL.findall(inside))
    return found


def grouping_labels(expression: str) -> set[str]:
    """The labels that it groups or joins by."""
    inside = GROUPING.findall(STRING.sub("''", expression))
    return {label for part in inside for label in re.findall(r"\w+", part)}

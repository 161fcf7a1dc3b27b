"""The expressions in deploy/monitoring: of the Grafana dashboard and of the alert rules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

MONITORING: Final = Path(__file__).resolve().parent.parent / "deploy" / "monitoring"
DASHBOARD: Final = MONITORING / "grafana" / "dashboards" / "nebuladb.json"
ALERTS: Final = MONITORING / "alerts.yml"


def panels() -> list[dict[str, Any]]:
    """Of the dashboard."""
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def alerts() -> list[dict[str, Any]]:
    """The rules."""
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def expressions() -> Iterator[str]:
    """Everything that Prometheus is asked."""
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"]
    for rule in alerts():
        yield rule["expr"]

"""Alert rules and dashboard: sound for Prometheus, and about metrics and labels that a node shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from nebuladb.env import probe
from nebuladb.node.alarms import AlarmKind
from nebuladb.server.metrics import Metrics
from nebuladb.server.samples import GroupSample, QueueSample
from nebuladb.server.space import Amount, Reserves, SpaceWatch
from tools.compose_test.image import ROOT
from tools.compose_test.project import FILE, NODES
from tools.dashboards import ALERTS, DASHBOARD, MONITORING, alerts, expressions, panels
from tools.promql import grouping_labels, matched_labels, metrics

SCRAPED = {"job", "instance"}
"""Labels that Prometheus adds."""


NOTHING_KEPT = Reserves(Amount(0, 0), Amount(0, 0))


TWO_LIVES = """
import os, re, sys
from nebuladb.server.metrics import Metrics
shown = b"".join(Metrics().parts()).decode()
print(re.search(rf"^{sys.argv[1]} (.*)$", shown, re.MULTILINE)[1], flush=True)
if len(sys.argv) == 2:
    os.execv(sys.executable, [*sys.orig_argv, "again"])
"""


class Node:
    def groups(self) -> Iterable[GroupSample]:
        numbers = dict.fromkeys(
            ("term", "committed", "applied", "last_index", "log_start", "revision"), 1
        ) | dict.fromkeys(("leader_changes", "proposals", "proposals_refused"), 1)
        yield GroupSample(group=2, keyspace="default", leading=True, has_leader=True, **numbers)

    def queues(self) -> Iterable[QueueSample]:
        yield QueueSample("writes", 10, 1000)

    def alarms(self) -> Mapping[str, int]:
        return dict.fromkeys(map(str, AlarmKind), 0)

    def snapshots(self) -> Mapping[str, int]:
        return {}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Metric → labels of all that /metrics has once everything happened once."""
    disk = SpaceWatch(tmp_path_factory.mktemp("disk"), NOTHING_KEPT, lambda space, text: None)
    disk.look()
    mine = Metrics()
    mine.rpc("/nebula.v1.KV/Put", "OK", 0.002)
    mine.loop_late(0.03, "turn")
    mine.read_from(Node())
    mine.read_room_from(disk)
    probe("a test of the dashboard looks")
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(b"".join(mine.parts()).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_every_expression_names_metrics_and_labels_that_a_node_shows(shown: dict[str, set[str]]) -> None:
    known = {**shown, "up": set()}
    asked = list(expressions())
    assert len(asked) > 30
    for expression in asked:
        named = metrics(expression)
        assert named, expression
        assert named <= set(known), expression
        labels = SCRAPED.union(*(known[name] for name in named))
        for name, matched in matched_labels(expression).items():
            assert matched <= known[name] | SCRAPED, expression
        assert grouping_labels(expression) <= labels, expression


def test_every_legend_and_annotation_uses_labels_that_are_left(shown: dict[str, set[str]]) -> None:
    for panel in panels():
        for target in panel["targets"]:
            used = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            kept = set(re.findall(r"by \(([^)]*)\)", target["expr"]))
            if kept:
                assert used <= {label.strip() for part in kept for label in part.split(",")}, panel["title"]
    for rule in alerts():
        used = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        kept = {label for part in re.findall(r"by \(([^)]*)\)", rule["expr"]) for label in part.split(", ")}
        labels = SCRAPED.union(*(shown.get(name, set()) for name in metrics(rule["expr"])))
        assert used <= labels, rule["alert"]
        if kept and " group_right" not in rule["expr"]:
            assert used <= kept, rule["alert"]


def test_the_reader_of_expressions_sees_what_is_not_there() -> None:
    text = 'sum by (le, node) (rate(nebula_x_bucket{job="nebula",kind!~"a|b"}[5m])) / on (y) group_left () other > 1e3'
    assert metrics(text) == {"nebula_x_bucket", "other"}
    assert matched_labels(text) == {"nebula_x_bucket": {"job", "kind"}}
    assert grouping_labels(text) == {"le", "node", "y"}
    assert metrics('up{a="nebula_in_a_string"} and unknown_function(up)') == {"up", "unknown_function"}
    with pytest.raises(ValueError, match="labels alone"):
        matched_labels('{job="nebula"}')


def test_a_rare_path_that_an_expression_names_is_one_of_the_code() -> None:
    named = re.findall(r'nebula_rare_path_total\{[^}]*name="([^"]*)"', " ".join(expressions()))
    # Below its limit of 2,560 a node refuses clients long before eight tenths of its descriptors are taken.
    assert "connection refused for want of descriptors" in named
    code = "".join(file.read_text() for file in (ROOT / "nebuladb").rglob("*.py"))
    assert [name for name in named if f'probe("{name}")' not in code] == []


def test_a_start_in_the_same_process_is_one_that_the_alert_on_restarts_sees() -> None:
    """As after a full disk: a process that is executed anew keeps its `process_start_time_seconds`."""
    (rule,) = [rule for rule in alerts() if rule["alert"] == "NebulaRestarts"]
    (name,) = metrics(rule["expr"])
    done = subprocess.run(
        [sys.executable, "-c", TWO_LIVES, name], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    first, second = done.stdout.split()
    assert float(first) < float(second)


def test_prometheus_scrapes_each_node_s_admin_port_and_reads_the_rules() -> None:
    read = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    targets = read["scrape_configs"][0]["static_configs"][0]["targets"]
    assert targets == [f"{node}:7381" for node in NODES]
    assert read["rule_files"] == [ALERTS.name]
    jobs = {job for expression in expressions() for job in re.findall(r'job="(\w+)"', expression)}
    assert jobs == {read["scrape_configs"][0]["job_name"]}


def test_grafana_is_provisioned_from_the_places_that_compose_mounts() -> None:
    folder = MONITORING / "grafana" / "provisioning"
    source = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())["datasources"][0]
    provider = yaml.safe_load((folder / "dashboards" / "nebuladb.yml").read_text())["providers"][0]
    services = yaml.safe_load(FILE.read_text())["services"]
    mounts = {place: path for path, place, *_ in (mount.split(":") for mount in services["grafana"]["volumes"])}
    assert (FILE.parent / mounts[provider["options"]["path"]] / DASHBOARD.name).samefile(DASHBOARD)
    assert (FILE.parent / mounts["/etc/grafana/provisioning"]).samefile(folder)
    assert source["url"] == "http://prometheus:9090"
    assert {panel["datasource"]["uid"] for panel in panels()} == {source["uid"]}


def test_panels_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_every_alert_is_seen_firing_by_the_rules_test() -> None:
    tested = (MONITORING / "alerts_test.yml").read_text()
    names = [rule["alert"] for rule in alerts()]
    assert len(names) == len(set(names))
    assert [name for name in names if f'alertname="{name}"' not in tested] == []
    assert all(rule["labels"]["severity"] in ("critical", "warning") for rule in alerts())


@pytest.mark.parametrize(
    "words",
    [("check", "config", "prometheus.yml"), ("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")],
)
def test_prometheus_itself_accepts(words: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here")
    done = subprocess.run([promtool, *words], cwd=MONITORING, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

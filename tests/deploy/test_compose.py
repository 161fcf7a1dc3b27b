"""deploy/compose.yaml as a file: the contract's ports, the confinement, settings that a node takes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from nebuladb.node.memory import MIN_MEMORY
from nebuladb.server import config
from nebuladb.server.dev import PORTS_PER_NODE
from nebuladb.server.lifecycle import CLOSE_SECONDS, DRAIN_SECONDS
from tools.compose_test.image import ROOT
from tools.compose_test.project import BASE_PORT, FILE, NODES, ports_override

COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
BASE_CONFIG = ROOT / "deploy" / "docker" / "nebulad.toml"


def configuration(node: str) -> config.Config:
    """What the node makes of its environment, with variables at their defaults."""
    environ = {key: value.partition(":-")[2].rstrip("}") if value.startswith("${") else value
               for key, value in SERVICES[node]["environment"].items()}  # fmt: skip
    return config.load({}, environ, BASE_CONFIG)


def test_three_nodes_publish_the_contract_s_ports_to_this_machine_only() -> None:
    for number, node in enumerate(NODES):
        base = BASE_PORT + PORTS_PER_NODE * number
        assert SERVICES[node]["ports"] == [f"127.0.0.1:{base}:7379", f"127.0.0.1:{base + 2}:7381"]
    published = [port for service in SERVICES.values() for port in service["ports"]]
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert len({port.split(":")[1] for port in published}) == len(published)


@pytest.mark.parametrize("node", NODES)
def test_a_node_s_settings_are_ones_that_nebulad_takes(node: str) -> None:
    loaded = configuration(node)
    loaded.check_founding()
    assert loaded.name == node == SERVICES[node]["hostname"]
    assert loaded.advertise_client_addr == f"{node}:7379"
    assert tuple(loaded.initial_cluster) == NODES
    assert MIN_MEMORY <= loaded.memory <= (512 << 20) // 2


@pytest.mark.parametrize("node", NODES)
def test_a_node_is_confined_and_has_one_volume(node: str) -> None:
    service = SERVICES[node]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"] == service["memswap_limit"] == "512m"
    assert service["restart"] == "unless-stopped"
    assert service["volumes"] == [f"{node}:{configuration(node).data_dir}"]
    assert int(service["stop_grace_period"].removesuffix("s")) > DRAIN_SECONDS + CLOSE_SECONDS
    assert not {"privileged", "user", "cap_add", "network_mode", "pid"} & set(service)


def test_no_container_s_log_grows_for_ever() -> None:
    for name, service in SERVICES.items():
        options = service["logging"]["options"]
        assert {"max-size", "max-file"} <= set(options), name


def test_monitoring_is_a_profile_of_its_own_with_pinned_images() -> None:
    profiles = {name: service.get("profiles") for name, service in SERVICES.items() if name not in NODES}
    assert profiles == {"prometheus": ["monitoring"], "grafana": ["monitoring"]}
    for name in profiles:
        tag = SERVICES[name]["image"].rpartition(":")[2]
        assert any(letter.isdigit() for letter in tag), "not latest"


def test_what_is_mounted_from_here_is_there() -> None:
    mounts = [mount for service in SERVICES.values() for mount in service["volumes"]]
    paths = [mount.split(":") for mount in mounts if mount.startswith(".")]
    assert len(paths) == 4
    assert all((FILE.parent / path).exists() and mode == ["ro"] for path, _, *mode in paths)
    named = {mount.split(":")[0] for mount in mounts if not mount.startswith(".")}
    assert named == set(COMPOSE["volumes"])


def test_other_ports_replace_the_contract_s() -> None:
    text = ports_override(20_000)
    assert text.count("!override") == len(NODES)
    found = yaml.safe_load(text.replace("!override ", ""))
    assert found["services"]["n3"]["ports"] == ["127.0.0.1:20200:7379", "127.0.0.1:20202:7381"]
    assert tuple(found["services"]) == NODES


def compose() -> list[str]:
    """How compose is called here, on its own or as docker's plugin; or the test is skipped."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and not subprocess.run([*command, "version"], capture_output=True).returncode:
            return command
    pytest.skip("no compose here")


def test_compose_itself_accepts_the_file(tmp_path: Path) -> None:
    override = tmp_path / "ports.yaml"
    override.write_text(ports_override(20_000))
    environ = {**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/none"}  # reading takes no engine
    command = [*compose(), "--profile", "*", "--file", str(FILE), "--file", str(override), "config", "--format", "json"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    assert set(services) == set(SERVICES)
    assert [port["published"] for port in services["n2"]["ports"]] == ["20100", "20102"]
